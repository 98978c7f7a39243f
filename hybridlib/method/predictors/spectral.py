"""Outer Nesterov momentum on orthogonalized displacements: the study's predictor, and its cheaper form."""

import zlib
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from hybridlib.method.predictors.base import Weights, is_embedding, is_matrix
from hybridlib.method.predictors.nesterov import Nesterov
from hybridlib.method.settings import Momentum, Natural, Precision, Share, Small

Quintic = tuple[float, float, float]  # a, b, c of a s + b s^3 + c s^5
MUON: Quintic = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024, "Muon", algorithm 2
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOGETHER = {"fp32": 10, "bf16": 3}  # iterations of Muon's quintic on the small side that each precision bears


class Spectral(Nesterov):
    """Outer Nesterov whose look-ahead is orthogonalized on every weight matrix.

    A matrix moves along all singular directions of its look-ahead equally far, by the mean of what training moved them:
    the jump is the look-ahead's projection on its own orthogonal form, so it sizes itself. A look-ahead along few
    directions gives a short jump, where keeping the Frobenius norm would blow up all others. The table of token
    embeddings moves so too, if `embeddings`; a row that did not move stays. Vectors and positions follow plain outer
    Nesterov with the gain `vector_gain`: what is not orthogonalized keeps its length, and the gain that suits matrices
    would overshoot.

    Args:
        gain: how many times its look-ahead's orthogonal form a matrix moves.
        momentum: of the look-ahead, 0 to below 1, per cycle.
        fade: the share of the gain that is gone at the end of the run, 0 to 1.
        fade_from: the share of the run from which it goes, 0 to below 1.
        iterations: of Newton-Schulz, at least 0 (nothing is orthogonalized then); with Muon's quintic.
        precision: of the products, "fp32" or "bf16"; with "fp32" those of float64 weights are in float64.
        embeddings: whether tables of token embeddings are orthogonalized.
        vector_gain: the gain of what is not orthogonalized.
    """

    def __init__(
        self,
        gain: float = 1.0,
        momentum: Momentum = 0.7,
        fade: Share = 0.0,
        fade_from: Momentum = 0.6,
        iterations: Natural = 5,
        precision: Precision = "fp32",
        embeddings: bool = True,
        vector_gain: float = 0.7,
    ) -> None:
        super().__init__(gain, momentum, fade, fade_from)
        self.vector_gain, self.embeddings = vector_gain, embeddings
        self.dtype, self.quintics, self.together = DTYPES[precision], (MUON,) * iterations, TOGETHER[precision]

    def directions(self, group: Weights, ahead: list[Tensor]) -> list[Tensor]:
        chosen = [i for i, (name, weight) in enumerate(group) if self.is_linear(name, weight)]
        if chosen:
            matrices = torch.stack([ahead[i] for i in chosen]) if len(chosen) > 1 else ahead[chosen[0]][None]
            dtype = torch.float64 if (matrices.dtype, self.dtype) == (torch.float64, torch.float32) else self.dtype
            flat = orthogonalize(matrices.flatten(2), self.quintics, self.together, dtype).view_as(matrices)
            for i, direction in zip(chosen, flat):
                ahead[i] = direction
        return ahead

    def gain_of(self, name: str, weight: Tensor) -> float:
        return self.gain if self.is_linear(name, weight) else self.vector_gain

    def is_linear(self, name: str, weight: Tensor) -> bool:
        """Return whether the parameter `name`, `weight`, is orthogonalized: as the user says, else by axes and name."""
        if (said := self.orthogonalizes and self.orthogonalizes(name, weight)) is not None:
            return weight.ndim > 1 and said
        return is_matrix(name, weight) or (self.embeddings and is_embedding(name, weight))


class Polar(Spectral):
    """Spectral with fewer products: each iteration's quintic is the best for where the singular values lie by then.

    All iterations run on a matrix's smaller side, so its larger side is multiplied twice, however many there are.

    Args:
        gain, momentum, fade, fade_from, precision, embeddings, vector_gain: as for `Spectral`.
        iterations: at least 0.
        least: the smallest singular value, as a share of the Frobenius norm, that is to end near one; in (0, 1).
    """

    def __init__(
        self,
        gain: float = 1.0,
        momentum: Momentum = 0.7,
        fade: Share = 0.0,
        fade_from: Momentum = 0.6,
        iterations: Natural = 3,
        least: Small = 0.01,
        precision: Precision = "fp32",
        embeddings: bool = True,
        vector_gain: float = 0.7,
    ) -> None:
        super().__init__(gain, momentum, fade, fade_from, iterations, precision, embeddings, vector_gain)
        self.quintics = best_quintics(iterations, least)
        self.together = max(iterations, 1)


class Sham(Spectral):
    """A control: jump in a random direction, each tensor as far as Spectral would: what distance alone does.

    Args: those of `Spectral`.
    """

    def start(self, weights: Weights) -> None:
        super().start(weights)
        if "jumps" not in self.store:
            self.store.put("jumps", torch.zeros((), dtype=torch.int64))

    def predict(self, weights: Weights, horizon: int, progress: float) -> None:
        super().predict(weights, horizon, progress)
        self.store.put("jumps", self.store.get("jumps") + 1)

    def directions(self, group: Weights, ahead: list[Tensor]) -> list[Tensor]:
        true = super().directions(group, ahead)
        return [self._random_like(name, jump) for (name, _), jump in zip(group, true)]

    def _random_like(self, name: str, jump: Tensor) -> Tensor:
        seed = zlib.crc32(f"{name} {int(self.store.get('jumps'))}".encode())
        noise = torch.randn(jump.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
        noise = noise.to(jump.device, jump.dtype)
        return noise * (jump.norm() / noise.norm())


def orthogonalize(matrices: Tensor, quintics: Sequence[Quintic], together: int, dtype: torch.dtype) -> Tensor:
    """Return each matrix D with all of its singular values pushed to about their mean.

    The orthogonal form U of D is scaled by <D, U> / <U, U>: where U's singular values are equal that is D's nuclear
    norm over its rank, the length of the steepest descent in the spectral norm (Bernstein and Newhouse 2024, "Old
    optimizer, new norm", proposition 5). A matrix of zeros stays one.

    Args:
        matrices: (n, rows, columns), of any floating-point type.
        quintics: one an iteration; each takes every singular value s, at most 1, to a s + b s^3 + c s^5.
        together: iterations on the smaller side before the matrix itself is multiplied again, at least 1. Rounding of
            the smaller side grows with every iteration that the matrix does not correct.
        dtype: of the products.
    """
    given, matrices = matrices, matrices.to(torch.promote_types(matrices.dtype, torch.float32))
    norms, tiny = torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True), torch.finfo(torch.float32).tiny
    u = matrices.to(dtype, copy=True).div_(norms.clamp_min(tiny).to(dtype))
    one = len(u) == 1  # one matrix is multiplied faster than a batch of one
    u = u[0] if one else u
    for done in range(0, len(quintics), together):
        u = iterate(u, quintics[done : done + together])
    u = (u[None] if one else u).to(matrices.dtype)
    return u.mul_(inner(matrices, u) / inner(u, u).clamp_min(tiny)).to(given.dtype)


def iterate(u: Tensor, quintics: Sequence[Quintic]) -> Tensor:
    """Return `u`, (..., rows, columns), after one of `quintics` after another, on the smaller side's Gram matrix."""
    tall = u.shape[-2] > u.shape[-1]
    gram, total = u.mT @ u if tall else u @ u.mT, None
    for left, (a, b, c) in zip(reversed(range(len(quintics))), quintics):
        step = (gram @ gram).mul_(c).add_(gram, alpha=b)
        step.diagonal(dim1=-2, dim2=-1).add_(a)
        total = step if total is None else step @ total
        gram = step @ gram @ step if left else gram
    return u @ total if tall else total @ u


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner products, (n, 1, 1), of `a` and `b`, (n, rows, columns), without their product in memory."""
    return torch.stack([torch.dot(x, y) for x, y in zip(a.flatten(1), b.flatten(1))]).view(-1, 1, 1)


@cache
def best_quintics(iterations: int, least: float) -> tuple[Quintic, ...]:
    """Return the odd quintics, one for each of `iterations`, whose composition is nearest to one on [least, 1].

    Each is the best on the interval that the one before leaves (Amsel et al. 2025, "The Polar Express", theorem 3.1).
    Raises `ValueError` unless 0 < least < 1.
    """
    if not 0 < least < 1:
        raise ValueError(f"least {least} is no share of a norm between 0 and 1")
    low, high, found = least, 1.0, []
    for _ in range(iterations):
        quintic, error = best_quintic(low, high)
        found.append(quintic)
        error = max(error, 1e-6)  # flat to rounding: another iteration's best is the one that keeps it so
        low, high = 1 - error, 1 + error
    return tuple(found)


def best_quintic(low: float, high: float) -> tuple[Quintic, float]:
    """Return the odd quintic with the least largest distance to one on [`low`, `high`], and that distance.

    Found by Remez exchange: the distance is met with changing sign at the ends and at the two extrema between them.
    """
    inside = np.array([(3 * low + high) / 4, (low + 3 * high) / 4])
    for _ in range(100):
        at = np.array([low, *inside, high])
        a, b, c, error = np.linalg.solve(np.stack([at, at**3, at**5, [1, -1, 1, -1]], axis=1), np.ones(4))
        root = np.sqrt(max(9 * b * b - 20 * a * c, 0.0))
        before, inside = inside, np.sqrt((-3 * b + np.array([-root, root])) / (10 * c))
        if np.allclose(before, inside, rtol=1e-12, atol=0):
            break
    return (float(a), float(b), float(c)), float(abs(error))
