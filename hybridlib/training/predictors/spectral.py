import torch
from torch import Tensor

from hybridlib.training.predictors.base import Weights, is_embedding, is_matrix
from hybridlib.training.predictors.nesterov import Nesterov


COEFFICIENTS = 3.4445, -4.7750, 2.0315


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
    u = newton_schulz(u, iterations) if dtype is torch.bfloat16 else newton_schulz_by_gram(u, iterations)
    u = u.to(matrices.dtype)
    return u.mul_(inner(matrices, u) / inner(u, u).clamp_min(tiny))


def inner(a: Tensor, b: Tensor) -> Tensor:
    """(n, rows, columns) twice -> (n, 1, 1), their inner products, without a product of their elements in memory."""
    return torch.stack([torch.dot(x, y) for x, y in zip(a.flatten(1), b.flatten(1))]).view(-1, 1, 1)


def newton_schulz(u: Tensor, iterations: int) -> Tensor:
    """(n, rows, columns), norms <= 1: each step takes every singular value s to a s + b s^3 + c s^5.

    It forgives bfloat16's rounding, so it is the faster form where that has a unit of its own and matrices are large;
    one matrix after the other, because the product of a batch copies what it is given.
    """
    done = [_newton_schulz(matrix, iterations) for matrix in u]
    return torch.stack(done) if len(done) > 1 else done[0][None]


def _newton_schulz(u: Tensor, iterations: int) -> Tensor:
    a, b, c = COEFFICIENTS
    tall = u.shape[0] > u.shape[1]
    for _ in range(iterations):
        gram = u.T @ u if tall else u @ u.T
        step = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        step.diagonal().add_(a)
        u = u @ step if tall else step @ u
    return u


def newton_schulz_by_gram(u: Tensor, iterations: int) -> Tensor:
    """The same in fewer products: the iteration runs on the matrices' smaller sides, and meets `u` at its start and end."""
    a, b, c = COEFFICIENTS
    tall = u.shape[-2] > u.shape[-1]
    gram = u.mT @ u if tall else u @ u.mT
    total = torch.eye(gram.shape[-1], dtype=u.dtype, device=u.device).expand_as(gram)
    for left in reversed(range(iterations)):
        step = b * gram + c * gram @ gram
        step.diagonal(dim1=-2, dim2=-1).add_(a)
        total = step @ total
        gram = step @ gram @ step if left else gram
    return u @ total if tall else total @ u
