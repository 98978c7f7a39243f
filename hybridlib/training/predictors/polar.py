from functools import cache

import numpy as np
import torch
from torch import Tensor

from hybridlib.training.predictors.base import Weights
from hybridlib.training.predictors.spectral import Spectral, inner

Quintic = tuple[float, float, float]  # a, b, c of a s + b s^3 + c s^5


class Polar(Spectral):
    """Spectral with fewer products: each iteration's polynomial is the best there is for where the singular values then lie.

    `least` is the smallest singular value, as a share of the Frobenius norm, that is to end near one. All iterations run on
    the matrices' small side, so the large one is met twice, however many there are.
    """

    def __init__(
        self,
        gain: float = 1.0,
        momentum: float = 0.7,
        fade: float = 0.0,
        fade_from: float = 0.6,
        iterations: int = 3,
        least: float = 0.01,
        precision: str = "fp32",
        embeddings: bool = True,
        vector_gain: float = 0.7,
    ) -> None:
        super().__init__(gain, momentum, fade, fade_from, iterations, precision, embeddings, vector_gain)
        self.quintics = best_quintics(iterations, least)

    def directions(self, group: Weights, ahead: list[Tensor]) -> list[Tensor]:
        chosen = [i for i, (name, weight) in enumerate(group) if self.flattens(name, weight)]
        if chosen:
            for i, flat in zip(chosen, flattened(torch.stack([ahead[i] for i in chosen]), self.quintics, self.dtype)):
                ahead[i] = flat
        return ahead


def flattened(matrices: Tensor, quintics: tuple[Quintic, ...], dtype: torch.dtype) -> Tensor:
    """(n, rows, columns) -> the projection of each on its own form with a flat spectrum, as `flatten_spectrum` defines it."""
    norms, tiny = torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True), torch.finfo(torch.float32).tiny
    u = matrices.to(dtype, copy=True).div_(norms.clamp_min(tiny).to(dtype))
    u = evened(u[0], quintics)[None] if len(u) == 1 else evened(u, quintics)  # one is multiplied faster than a batch of one
    u = u.to(matrices.dtype, copy=True)
    return u.mul_(inner(matrices, u) / inner(u, u).clamp_min(tiny))


def evened(u: Tensor, quintics: tuple[Quintic, ...]) -> Tensor:
    """(..., rows, columns), norms <= 1: singular values taken through one quintic after another."""
    tall = u.shape[-2] > u.shape[-1]
    gram, total = u.mT @ u if tall else u @ u.mT, None
    for at, (a, b, c) in enumerate(quintics):
        step = (gram @ gram).mul_(c).add_(gram, alpha=b)
        step.diagonal(dim1=-2, dim2=-1).add_(a)
        total = step if total is None else step @ total
        if at < len(quintics) - 1:
            gram = step @ gram @ step
    return u if total is None else u @ total if tall else total @ u


@cache
def best_quintics(iterations: int, least: float) -> tuple[Quintic, ...]:
    """The composition of odd quintics nearest to one on [least, 1]: each the best on the interval that the one before leaves
    (Amsel et al. 2025, "The Polar Express", theorem 3.1). Raises `ValueError` unless 0 < least < 1."""
    if not 0 < least < 1:
        raise ValueError(f"least {least} is no share of a norm between 0 and 1")
    low, high, found = least, 1.0, []
    for _ in range(iterations):
        quintic, error = best_quintic(low, high)
        found.append(quintic)
        low, high = 1 - error, 1 + error
        if error < 1e-6:  # flat to rounding: another iteration's best is the one that keeps it so
            low, high = 1 - 1e-6, 1 + 1e-6
    return tuple(found)


def best_quintic(low: float, high: float) -> tuple[Quintic, float]:
    """The odd quintic with the least largest distance to one on [low, high], and that distance, by Remez exchange: the
    distance is met with changing sign at the ends and at the two extrema between them."""
    inside = np.array([(3 * low + high) / 4, (low + 3 * high) / 4])
    for _ in range(100):
        at = np.array([low, *inside, high])
        a, b, c, error = np.linalg.solve(np.stack([at, at**3, at**5, [1, -1, 1, -1]], axis=1), np.ones(4))
        root = np.sqrt(max(9 * b * b - 20 * a * c, 0.0))
        before, inside = inside, np.sqrt((-3 * b + np.array([-root, root])) / (10 * c))
        if np.allclose(before, inside, rtol=1e-12, atol=0):
            break
    return (float(a), float(b), float(c)), float(abs(error))
