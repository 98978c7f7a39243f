import torch
from torch import Tensor

from hybridlib.training.predictors.base import Weights, is_matrix
from hybridlib.training.predictors.nesterov import Nesterov


class Spectral(Nesterov):
    """Outer Nesterov whose look-ahead has a flat spectrum on every weight matrix, at the same Frobenius norm.

    The singular directions that training moves little are moved as far as those that it moves most. Embeddings and
    vectors follow plain outer Nesterov.
    """

    def __init__(self, gain: float = 1.0, momentum: float = 0.7, iterations: int = 5) -> None:
        super().__init__(gain, momentum)
        self.iterations = iterations

    def directions(self, group: Weights, ahead: list[Tensor]) -> list[Tensor]:
        chosen = [i for i, (name, weight) in enumerate(group) if is_matrix(name, weight)]
        if chosen:
            stacked = torch.stack([ahead[i] for i in chosen])
            for i, flat in zip(chosen, flatten_spectrum(stacked, self.iterations)):
                ahead[i] = flat
        return ahead


def flatten_spectrum(matrices: Tensor, iterations: int) -> Tensor:
    """(n, rows, columns) -> the same, all singular values of each pushed to about one value, each norm kept.

    Newton-Schulz iteration with Muon's quintic coefficients (Jordan et al. 2024, "Muon", algorithm 2).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[-2] > matrices.shape[-1]
    norms = matrices.norm(dim=(-2, -1), keepdim=True)
    u = (matrices.mT if tall else matrices) / norms.clamp_min(torch.finfo(matrices.dtype).tiny)
    for _ in range(iterations):
        gram = u @ u.mT
        u = a * u + (b * gram + c * gram @ gram) @ u
    u = u * (norms / u.norm(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(u.dtype).tiny))
    return u.mT if tall else u
