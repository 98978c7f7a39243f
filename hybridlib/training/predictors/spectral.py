import torch
from torch import Tensor

from hybridlib.training.predictors.base import Weights, is_matrix
from hybridlib.training.predictors.nesterov import Nesterov


class Spectral(Nesterov):
    """Outer Nesterov whose look-ahead has a flat spectrum on every weight matrix, at the same Frobenius norm.

    The singular directions that training moves little are moved as far as those that it moves most. Embeddings and
    vectors follow plain outer Nesterov.
    """

    def __init__(self, gain: float = 1.0, momentum: float = 0.7, iterations: int = 5, precision: str = "bf16") -> None:
        super().__init__(gain, momentum)
        self.iterations, self.dtype = iterations, {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]

    def directions(self, group: Weights, ahead: list[Tensor]) -> list[Tensor]:
        chosen = [i for i, (name, weight) in enumerate(group) if is_matrix(name, weight)]
        if chosen:
            stacked = torch.stack([ahead[i] for i in chosen])
            for i, flat in zip(chosen, flatten_spectrum(stacked, self.iterations, self.dtype)):
                ahead[i] = flat
        return ahead


def flatten_spectrum(matrices: Tensor, iterations: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(n, rows, columns) -> the same, all singular values of each pushed to about one value, each norm kept.

    Newton-Schulz iteration in `dtype` with Muon's quintic coefficients (Jordan et al. 2024, "Muon", algorithm 2), whose
    values end between about 0.7 and 1.2 of one another, so bfloat16's rounding does not matter.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[-2] > matrices.shape[-1]
    tiny = torch.finfo(torch.float32).tiny
    norms = matrices.float().norm(dim=(-2, -1), keepdim=True)
    u = ((matrices.mT if tall else matrices) / norms.clamp_min(tiny)).to(dtype)
    for _ in range(iterations):
        gram = u @ u.mT
        u = a * u + (b * gram + c * gram @ gram) @ u
    u = u.float()
    u = u * (norms / u.norm(dim=(-2, -1), keepdim=True).clamp_min(tiny))
    return (u.mT if tall else u).to(matrices.dtype)
