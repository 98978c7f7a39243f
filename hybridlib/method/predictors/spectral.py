"""Outer Nesterov momentum on orthogonalized displacements: the study's predictor, and its control."""

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
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MOST_BF16 = 3  # iterations
PANEL = 256  # rows of a symmetric product that are computed at once
BLOCK_ELEMENTS = 5 << 20  # of a table that is moved some rows at a time


class Spectral(Nesterov):
    """Outer Nesterov whose look-ahead is orthogonalized on every weight matrix.

    A matrix moves along all singular directions of its look-ahead equally far, by the mean of what training moved them:
    the jump is the look-ahead's projection on its own orthogonal form, so it sizes itself. A look-ahead along few
    directions gives a short jump, where keeping the Frobenius norm would blow up all others. The table of token
    embeddings moves so too, if `embeddings`; a row that did not move stays. Vectors and positions follow plain outer
    Nesterov with the gain `vector_gain`: they keep their length, and the gain that suits matrices would overshoot.

    Args:
        gain: how many times its look-ahead's orthogonal form a matrix moves.
        momentum: of the look-ahead, 0 to below 1, per cycle.
        fade: the share of the gain that is gone at the end of the run, 0 to 1.
        fade_from: the share of the run from which it goes, 0 to below 1.
        iterations: of Newton-Schulz, each with its best quintic; with 0 nothing is orthogonalized, "bf16" bears 3.
        least: the smallest singular value, as a share of the Frobenius norm, that is to end near one; in (0, 1).
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
        iterations: Natural = 3,
        least: Small = 0.01,
        precision: Precision = "fp32",
        embeddings: bool = True,
        vector_gain: float = 0.7,
    ) -> None:
        super().__init__(gain, momentum, fade, fade_from)
        if precision == "bf16" and iterations > MOST_BF16:
            raise ValueError(f"spectral: iterations = {iterations}: bf16 bears at most {MOST_BF16}")
        self.vector_gain, self.embeddings = vector_gain, embeddings
        self.dtype, self.quintics = DTYPES[precision], best_quintics(iterations, least)

    def move(self, group: Weights, share: float) -> None:
        name, weight = group[0]
        tall = weight.ndim > 1 and len(weight) > weight[0].numel()
        if tall and weight.numel() > BLOCK_ELEMENTS and self.quintics and self.is_linear(name, weight):
            self._move_by_rows(name, weight.detach(), share)  # so large a weight is a group of its own
        else:
            super().move(group, share)

    def _move_by_rows(self, name: str, weight: Tensor, share: float) -> None:
        """Move a tall matrix some rows at a time: `weight` itself takes look-ahead and direction, with no copy."""
        dtype, size = dtype_of_products(weight.dtype, self.dtype), max(BLOCK_ELEMENTS // weight[0].numel(), 1)
        blocks = [slice(at, at + size) for at in range(0, len(weight), size)]
        gram = forward = square = 0.0
        for rows in blocks:
            weight[rows] = ahead = self.look_ahead(name, weight[rows], rows)
            gram = gram + symmetric_product((u := ahead.flatten(1).to(dtype)).mT, u).double()
        turn = flattening(gram, self.quintics, dtype)
        for rows in blocks:
            ahead = weight[rows].flatten(1)
            direction = (ahead.to(dtype) @ turn).to(ahead.dtype)
            forward, square = forward + inner(ahead, direction), square + inner(direction, direction)
            weight[rows] = direction.view_as(weight[rows])
        for rows in blocks:
            direction = weight[rows] * (forward / square.clamp_min(torch.finfo(square.dtype).tiny))
            self.land(name, weight[rows], direction, self.gain * share, rows)

    def directions(self, group: Weights, ahead: list[Tensor]) -> list[Tensor]:
        chosen = [i for i, (name, weight) in enumerate(group) if self.is_linear(name, weight)]
        if chosen and self.quintics:
            matrices = torch.stack([ahead[i] for i in chosen]) if len(chosen) > 1 else ahead[chosen[0]][None]
            flat = orthogonalize(matrices.flatten(2), self.quintics, self.dtype).view_as(matrices)
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


class Sham(Spectral):
    """A control: jump in a random direction, each tensor as far as Spectral would: what distance alone does."""

    def start(self, weights: Weights) -> None:
        super().start(weights)
        if "jumps" not in self.store:
            self.store.put("jumps", torch.zeros((), dtype=torch.int64))

    def predict(self, weights: Weights, horizon: int, progress: float) -> None:
        super().predict(weights, horizon, progress)
        self.store.put("jumps", self.store.get("jumps") + 1)

    def move(self, group: Weights, share: float) -> None:
        Nesterov.move(self, group, share)  # a direction is drawn whole

    def directions(self, group: Weights, ahead: list[Tensor]) -> list[Tensor]:
        true = super().directions(group, ahead)
        return [self._random_like(name, jump) for (name, _), jump in zip(group, true)]

    def _random_like(self, name: str, jump: Tensor) -> Tensor:
        seed = zlib.crc32(f"{name} {int(self.store.get('jumps'))}".encode())
        noise = torch.randn(jump.shape, generator=torch.Generator().manual_seed(seed)).to(jump.device, jump.dtype)
        return noise * (jump.norm() / noise.norm())


def dtype_of_products(given: torch.dtype, chosen: torch.dtype) -> torch.dtype:
    """Return the type of products of tensors of the type `given`: the `chosen` one, but not coarser than float64's."""
    return torch.float64 if (given, chosen) == (torch.float64, torch.float32) else chosen


def orthogonalize(matrices: Tensor, quintics: Sequence[Quintic], dtype: torch.dtype) -> Tensor:
    """Return each matrix D with all of its singular values pushed to about their mean.

    The orthogonal form U of D is scaled by <D, U> / <U, U>: where U's singular values are equal that is D's nuclear
    norm over its rank, the length of the steepest descent in the spectral norm (Bernstein and Newhouse 2024, "Old
    optimizer, new norm", proposition 5). A matrix of zeros stays one. All iterations run on the smaller side.

    Args:
        matrices: (n, rows, columns), of any floating-point type.
        quintics: one an iteration, at least one; each takes every singular value s, at most 1, to a s + b s^3 + c s^5.
        dtype: of the products.
    """
    u = matrices[0] if len(matrices) == 1 else matrices  # one is multiplied faster than a batch of one
    u = u.to(dtype_of_products(u.dtype, dtype))
    tall = u.shape[-2] > u.shape[-1]
    gram = symmetric_product(u.mT, u) if tall else symmetric_product(u, u.mT)
    turn = flattening(gram, quintics, u.dtype)
    flat = (u @ turn if tall else turn @ u).to(matrices.dtype).view_as(matrices)
    lengths = [inner(d, f) / inner(f, f).clamp_min(torch.finfo(f.dtype).tiny) for d, f in zip(matrices, flat)]
    return flat.mul_(torch.stack(lengths).view(-1, 1, 1))


def symmetric_product(a: Tensor, b: Tensor) -> Tensor:
    """Return `a @ b`, (..., n, n), which is known to be symmetric: on a CPU a large one is computed by about a half."""
    if a.ndim > 2 or len(a) < 2 * PANEL or a.is_cuda:
        return a @ b
    product = a.new_empty(len(a), len(a))
    for at in range(0, len(a), PANEL):
        torch.mm(a[at : at + PANEL], b[:, at:], out=product[at : at + PANEL, at:])
        product[at + PANEL :, at : at + PANEL] = product[at : at + PANEL, at + PANEL :].mT
    return product


def flattening(gram: Tensor, quintics: Sequence[Quintic], dtype: torch.dtype) -> Tensor:
    """Return the small matrix that turns D, given by its `gram` matrix, into a multiple of its orthogonal form.

    `quintics` and `dtype` are as for `orthogonalize`. All factors are polynomials in `gram`, so they commute.
    """
    finer = torch.promote_types(gram.dtype, torch.float32)
    square = gram.diagonal(dim1=-2, dim2=-1).sum(-1, dtype=finer)[..., None, None]  # of D's Frobenius norm
    gram, turn = (gram / square.clamp_min(torch.finfo(finer).tiny)).to(dtype), None
    for left, (a, b, c) in zip(reversed(range(len(quintics))), quintics):
        step = symmetric_product(gram, gram).mul_(c).add_(gram, alpha=b)
        step.diagonal(dim1=-2, dim2=-1).add_(a)
        turn = step if turn is None else symmetric_product(step, turn)
        gram = symmetric_product(symmetric_product(step, gram), step) if left else gram
    return turn


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of `a` and `b`, of one shape, without their product in memory."""
    return torch.dot(a.flatten(), b.flatten())


@cache
def best_quintics(iterations: int, least: float) -> tuple[Quintic, ...]:
    """Return the `iterations` odd quintics whose composition is nearest to one on [least, 1], with 0 < least < 1.

    Each is the best on the interval that the one before leaves (Amsel et al. 2025, "The Polar Express", theorem 3.1).
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
