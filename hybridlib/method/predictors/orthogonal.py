"""The damped orthogonal form of a matrix, by a few products: a jump equally long along all that training moved."""

from collections.abc import Sequence
from functools import cache
from math import prod

import numpy as np
import torch
from torch import Tensor

Quintic = tuple[float, float, float]  # a, b, c of a s + b s^3 + c s^5
PANEL = 256  # rows of a symmetric product that are computed at once
SUBSPACE_ITERATIONS = 1
STANDS_OUT = 3.0  # times the smallest of the leading singular values


def orthogonalize(
    blocks: Sequence[Tensor], quintics: Sequence[Quintic], dtype: torch.dtype, leading: int, knee: float
) -> Tensor:
    """Replace each matrix D, in place, by a multiple of its damped orthogonal form U; return <D, U> / <U, U>, (...).

    Times that, what is left in place of D is D's projection on U. With D = sum s u v^T, U is sum f(s) u v^T, f(s) near
    one above k = `knee` times D's Frobenius norm and near s / k below: there is mostly noise, and rounding. Where f is
    one for all, the projection's length is D's nuclear norm over its rank, that of the steepest descent in the spectral
    norm (Bernstein and Newhouse 2024, "Old optimizer, new norm", proposition 5). A matrix of zeros stays one.

    A few directions hold most of D: of a table's look-ahead, one has up to 0.99 of the norm at GPT-2 Small. Scaled to
    at most one, the others would be too small for so few iterations, and lost in bf16. So the `leading` directions are
    found first, by subspace iteration. Those that stand out have f(s) = s / sqrt(s^2 + k^2); the others are not found
    well, and would leave a rest that is not orthogonal to them. The rest is scaled by its Schatten 4-norm, which its
    Gram matrix gives, or so that its knee is at k if that scales it further, and goes through `quintics`.

    Args:
        blocks: of rows, one after the other, each (..., rows, columns); in all no fewer rows than columns.
        quintics: one an iteration, at least one; each takes every singular value s, at most 1, to a s + b s^3 + c s^5.
        dtype: of the products.
        leading: how many directions are found first, and set apart if they stand out; at least 0.
        knee: as a share of the Frobenius norm, in (0, 1); in float32 rounding is as large as 0.001 of it, once flat.
    """
    finer = torch.promote_types(blocks[0].dtype, torch.float32)
    coarser = dtype_of_products(finer, dtype)
    columns = blocks[0].shape[-1]
    basis = leading_directions(blocks, leading, finer)
    ends = [block.to(finer) @ basis for block in blocks]
    room = torch.empty_like(blocks[0], dtype=finer)  # new memory costs as much as what is done with it
    beside = wider(room, basis.shape[-1], coarser)
    add_product = torch.addmm if room.ndim == 2 else torch.baddbmm

    # The square of the first direction would hide those of the others in float32.
    along = sum(end.double().mT @ end.double() for end in ends)
    squares, axes = (found.to(finer) for found in torch.linalg.eigh(along))  # rising
    apart = (squares > STANDS_OUT**2 * squares[..., :1]).to(finer)

    def of_axes(shares: Tensor) -> Tensor:  # the map from the ends to D's columns, each axis with its share
        return (axes * (apart * shares)[..., None, :]) @ axes.mT @ basis.mT

    less = of_axes(torch.ones_like(squares))

    def parted(block: Tensor, end: Tensor) -> Tensor:  # the rest of the block, and beside it its ends
        rows = block.shape[-2]
        if not leading:
            return block.to(coarser)
        parts = beside[..., :rows, :]
        parts[..., :columns] = add_product(block.to(finer), end, less, alpha=-1, out=room[..., :rows, :])
        parts[..., columns:] = end
        return parts

    only = [parted(blocks[0], ends[0])] if len(blocks) == 1 else []  # of many blocks the parts would be a copy of D
    rests = (parts[..., :columns] for parts in only or map(parted, blocks, ends))
    gram = sum(symmetric_product(rest.mT, rest).to(finer) for rest in rests)
    damping = (knee**2 * ((apart * squares).sum(-1)[..., None, None] + trace(gram))).clamp_min(torch.finfo(finer).tiny)
    steepest = prod(a for a, _, _ in quintics)
    bound = torch.maximum(torch.linalg.matrix_norm(gram, keepdim=True), steepest**2 * damping).sqrt()
    turn = flattening((gram / bound**2).to(coarser), quintics)
    lead = bound * of_axes((squares.clamp_min(0) + damping[..., 0]).rsqrt())
    turns = torch.cat([turn, lead.to(coarser)], dim=-2)
    forward = square = 0.0
    for block, parts in zip(blocks, only or map(parted, blocks, ends)):
        flat = torch.matmul(parts, turns, out=torch.empty_like(parts[..., :columns]))
        flat = room[..., : block.shape[-2], :].copy_(flat)
        forward, square = forward + inner(block.to(finer), flat), square + inner(flat, flat)
        block.copy_(flat)
    return forward / square.clamp_min(torch.finfo(finer).tiny)


def wider(matrix: Tensor, more: int, dtype: torch.dtype) -> Tensor:
    """Return room of the type `dtype` for a matrix of so many `more` columns than `matrix`, laid out as it is."""
    *batch, rows, columns = matrix.shape
    if matrix.stride(-2) < matrix.stride(-1):  # columns lie one after the other
        return matrix.new_empty(*batch, columns + more, rows, dtype=dtype).mT
    return matrix.new_empty(*batch, rows, columns + more, dtype=dtype)


def leading_directions(blocks: Sequence[Tensor], count: int, dtype: torch.dtype) -> Tensor:
    """Return about the `count` leading right singular directions of D: (..., columns, count), of the type `dtype`.

    Found by subspace iteration from a fixed start (Halko et al. 2011, "Finding structure with randomness",
    algorithm 4.4). They are orthonormal. The rows of D lie in `blocks`.
    """
    columns = blocks[0].shape[-1]
    basis = start(columns, min(count, columns)).to(blocks[0].device, dtype)
    for _ in range(SUBSPACE_ITERATIONS):
        basis = torch.linalg.qr(sum(block.to(dtype).mT @ (block.to(dtype) @ basis) for block in blocks))[0]
    return basis


@cache
def start(rows: int, columns: int) -> Tensor:
    """Return a matrix of `rows` and `columns`, from a normal distribution and always the same."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0), device="cpu")


def dtype_of_products(given: torch.dtype, chosen: torch.dtype) -> torch.dtype:
    """Return the type of products of tensors of the type `given`: the `chosen` one, but not coarser than float64's."""
    return torch.float64 if (given, chosen) == (torch.float64, torch.float32) else chosen


def symmetric_product(a: Tensor, b: Tensor) -> Tensor:
    """Return `a @ b`, (..., n, n), which is known to be symmetric: on a CPU a large one is computed by about a half."""
    if a.ndim > 2 or len(a) < 2 * PANEL or a.is_cuda:
        return a @ b
    product = a.new_empty(len(a), len(a))
    for at in range(0, len(a), PANEL):
        torch.mm(a[at : at + PANEL], b[:, at:], out=product[at : at + PANEL, at:])
        product[at + PANEL :, at : at + PANEL] = product[at : at + PANEL, at + PANEL :].mT
    return product


def flattening(gram: Tensor, quintics: Sequence[Quintic]) -> Tensor:
    """Return the small matrix that turns D into its orthogonal form, D^T D being `gram`, with `quintics` in turn.

    No eigenvalue of `gram`, (..., n, n), may be above 1. All factors are polynomials in it, so they commute.
    """
    turn = None
    for left, (a, b, c) in zip(reversed(range(len(quintics))), quintics):
        step = symmetric_product(gram, gram).mul_(c).add_(gram, alpha=b)
        step.diagonal(dim1=-2, dim2=-1).add_(a)
        turn = step if turn is None else symmetric_product(step, turn)
        gram = symmetric_product(symmetric_product(step, gram), step) if left else gram
    return turn


def trace(square: Tensor) -> Tensor:
    """Return the trace of each matrix of `square`, (..., n, n): (..., 1, 1)."""
    return square.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each matrix of `a` with its like in `b`, without their product in memory."""
    if a.stride(-2) < a.stride(-1):  # columns lie one after the other
        a, b = a.mT, b.mT
    return torch.linalg.vecdot(a.flatten(-2), b.flatten(-2))


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
