import torch
from torch import Tensor

from hybridlib.training.predictors.base import Weights, is_embedding, is_matrix
from hybridlib.training.predictors.nesterov import Nesterov


COEFFICIENTS = 3.4445, -4.7750, 2.0315
TOGETHER = {torch.float32: 10, torch.bfloat16: 3}  # iterations on the small side that each precision bears


class Spectral(Nesterov):
    """Outer Nesterov whose look-ahead has a flat spectrum on every weight matrix.

    The singular directions that training moves little are moved as far as those that it moves most, by the mean of what
    it moves them: the jump is the look-ahead's projection on its own flattened form, so it sizes itself. A look-ahead
    along few directions gives a short jump, where keeping the Frobenius norm would blow up all the others. So it is with
    the table of token embeddings, if `embeddings`: a row that did not move stays. All else, vectors and positions,
    follows plain outer Nesterov with a gain of its own, `vector_gain`: without a flat spectrum the look-ahead keeps its
    length, and the gain that suits matrices would overshoot.
    """

    def __init__(
        self,
        gain: float = 1.0,
        momentum: float = 0.7,
        fade: float = 0.0,
        fade_from: float = 0.6,
        iterations: int = 5,
        precision: str = "fp32",
        embeddings: bool = True,
        vector_gain: float = 0.7,
    ) -> None:
        super().__init__(gain, momentum, fade, fade_from)
        self.vector_gain = vector_gain
        self.iterations, self.dtype = iterations, {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
        self.embeddings = embeddings

    def directions(self, group: Weights, ahead: list[Tensor]) -> list[Tensor]:
        chosen = [i for i, (name, weight) in enumerate(group) if self.flattens(name, weight)]
        if chosen:
            together = torch.stack([ahead[i] for i in chosen]) if len(chosen) > 1 else ahead[chosen[0]][None]
            for i, flat in zip(chosen, flatten_spectrum(together, self.iterations, self.dtype)):
                ahead[i] = flat
        return ahead

    def gain_of(self, name: str, weight: Tensor) -> float:
        return self.gain if self.flattens(name, weight) else self.vector_gain

    def flattens(self, name: str, weight: Tensor) -> bool:
        return is_matrix(name, weight) or (self.embeddings and is_embedding(name, weight))


def flatten_spectrum(matrices: Tensor, iterations: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(n, rows, columns) -> the same, all singular values of each pushed to about their mean.

    The flat matrix U is scaled to the projection of D on it, <D, U> / <U, U>: with all of U's singular values equal that is
    D's nuclear norm over its rank, the length of the steepest descent in the spectral norm (Bernstein and Newhouse 2024,
    "Old optimizer, new norm", proposition 5). Newton-Schulz iteration in `dtype` with Muon's quintic coefficients (Jordan
    et al. 2024, "Muon", algorithm 2), whose values end between about 0.7 and 1.2 of one another.
    """
    norms, tiny = torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True), torch.finfo(torch.float32).tiny
    u = matrices.to(dtype, copy=True).div_(norms.clamp_min(tiny).to(dtype))
    if len(u) == 1:  # one matrix is multiplied faster than a batch of one
        u = newton_schulz(u[0], iterations, TOGETHER[dtype])[None]
    else:
        u = newton_schulz(u, iterations, TOGETHER[dtype])
    u = u.to(matrices.dtype)
    return u.mul_(inner(matrices, u) / inner(u, u).clamp_min(tiny))


def inner(a: Tensor, b: Tensor) -> Tensor:
    """(n, rows, columns) twice -> (n, 1, 1), their inner products, without a product of their elements in memory."""
    return torch.stack([torch.dot(x, y) for x, y in zip(a.flatten(1), b.flatten(1))]).view(-1, 1, 1)


def newton_schulz(u: Tensor, iterations: int, together: int) -> Tensor:
    """(..., rows, columns), norms <= 1: each iteration takes every singular value s to a s + b s^3 + c s^5.

    The iteration runs on the matrices' smaller sides, `together` iterations at a time, and meets `u` at their start and end:
    fewer products than one by one. What rounding does to the small side grows with every iteration that `u` does not correct.
    """
    a, b, c = COEFFICIENTS
    tall = u.shape[-2] > u.shape[-1]
    for done in range(0, iterations, together):
        gram, total = u.mT @ u if tall else u @ u.mT, None
        for left in reversed(range(min(together, iterations - done))):
            step = (gram @ gram).mul_(c).add_(gram, alpha=b)
            step.diagonal(dim1=-2, dim2=-1).add_(a)
            total = step if total is None else step @ total
            gram = step @ gram @ step if left else gram
        u = u @ total if tall else total @ u
    return u
