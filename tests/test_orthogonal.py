"""Closed forms of a matrix's orthogonal form, with and without leading directions set apart, and the best quintics."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hybridlib.method.predictors import spectral
from hybridlib.method.predictors.orthogonal import (
    STANDS_OUT,
    Quintic,
    best_quintic,
    best_quintics,
    flattening,
    leading_directions,
    orthogonalize,
    symmetric_product,
)  # fmt: skip

POWERS = np.array([1, 3, 5])
MUON: Quintic = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024, "Muon", algorithm 2
SIZES = st.integers(1, 12)


def made_flat(
    matrix: Tensor,
    quintics: tuple[Quintic, ...] = best_quintics(3, 0.01),
    dtype: torch.dtype = torch.float32,
    leading: int = 16,
    knee: float = 1e-3,
) -> Tensor:
    """Return the flattened copy of one matrix or of a batch, tall or wide."""
    flat = matrix.clone()
    length = orthogonalize([flat if flat.shape[-2] >= flat.shape[-1] else flat.mT], quintics, dtype, leading, knee)
    return flat * length[..., None, None]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def spread(rows: int, columns: int, decay: float) -> Tensor:
    """A matrix whose singular values fall like a power of their rank, as those of a look-ahead do."""
    u, v = (torch.linalg.qr(random(n, rows, seed=n)).Q for n in (rows, columns))
    return (u * torch.arange(1, rows + 1) ** -decay @ v.T).float()


def polar(matrix: Tensor) -> Tensor:
    """The nearest orthogonal form, of a matrix of full rank."""
    left, _, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    return left @ right


def projected(matrix: Tensor, form: Tensor) -> Tensor:
    return form * (matrix * form).sum() / (form * form).sum()


def near(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0))


def through(quintics: tuple[Quintic, ...], s: np.ndarray) -> np.ndarray:
    for a, b, c in quintics:
        s = a * s + b * s**3 + c * s**5
    return s


def scale(rest: Tensor, matrix: Tensor, quintics: tuple[Quintic, ...], knee: float) -> Tensor:
    """What singular values of a matrix's `rest` are divided by, so that none is above one and the knee is in place."""
    steepest = np.prod([a for a, _, _ in quintics])
    return torch.maximum((torch.linalg.svdvals(rest) ** 4).sum() ** 0.25, steepest * knee * matrix.norm())


@settings(max_examples=20, deadline=None)
@given(SIZES, st.integers(0, 12), st.integers(1, 6), st.sampled_from([1e-4, 0.002, 0.1]), st.integers(0, 99))
def test_with_none_set_apart_it_is_newton_schulz_on_the_matrix_itself(
    rows: int, more: int, iterations: int, knee: float, seed: int
) -> None:
    d, quintics = random(rows, rows + more, seed=seed), best_quintics(iterations, 0.01)
    u = d / scale(d, d, quintics, knee)
    for a, b, c in quintics:
        gram = u @ u.mT
        u = a * u + b * gram @ u + c * gram @ gram @ u
    for matrix, plain in ((d, projected(d, u)), (d.mT, projected(d, u).mT)):
        torch.testing.assert_close(made_flat(matrix, quintics, leading=0, knee=knee), plain, rtol=1e-6, atol=1e-8)


@settings(max_examples=20, deadline=None)
@given(SIZES, st.integers(0, 12), st.integers(1, 12), st.sampled_from([1e-4, 0.002, 0.1]), st.integers(0, 99))
def test_what_stands_out_and_the_rest_are_orthogonalized_each(
    rows: int, more: int, leading: int, knee: float, seed: int
) -> None:
    d, quintics = random(rows + more, rows, seed=seed), best_quintics(3, 0.01)
    d = d + 30 * torch.outer(d[:, 0], d[0])
    basis = leading_directions([d], leading, d.dtype)
    left, s, right = torch.linalg.svd(d @ basis, full_matrices=False)
    apart = s > STANDS_OUT * s.min()
    left, s, right = left[:, apart], s[apart], right[apart]
    both = left * (s / (s**2 + (knee * d.norm()) ** 2).sqrt()) @ right @ basis.mT
    rest = d - d @ (right @ basis.mT).mT @ right @ basis.mT
    left, s, right = torch.linalg.svd(rest, full_matrices=False)
    both = both + left * torch.from_numpy(through(quintics, (s / scale(rest, d, quintics, knee)).numpy())) @ right
    flat = made_flat(d, leading=leading, knee=knee)
    assert near(flat, both) > 1 - 1e-6
    torch.testing.assert_close((d * flat).sum(), (flat * flat).sum())  # a projection: what is left is orthogonal


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_directions_far_below_the_knee_keep_their_proportions(dtype: torch.dtype) -> None:
    """As in a table most of whose rows no token ever names: one direction, some that matter, many that do not."""
    s = torch.cat([torch.tensor([1.0]), torch.logspace(-1, -4, 63)])
    u, v = (torch.linalg.qr(random(n, 64, seed=n)).Q.float() for n in (500, 64))
    found = torch.diagonal(u.mT @ made_flat(u * s @ v.mT, dtype=dtype, leading=8, knee=0.01) @ v)
    high, low = s > 0.05, s < 0.001
    assert found[high].max() / found[high].min() < 1.8, "those above are about equally long"
    assert (found / s)[low].std() / (found / s)[low].mean() < (0.05 if dtype is torch.float32 else 0.3)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 99))
def test_an_iteration_takes_each_singular_value_through_its_quintic(rows: int, more: int, seed: int) -> None:
    d = random(rows, rows + more, seed=seed)
    d = d / d.norm()
    after = torch.linalg.svdvals(flattening(d @ d.mT, best_quintics(2, 0.01)) @ d)
    expected = through(best_quintics(2, 0.01), torch.linalg.svdvals(d).numpy())
    torch.testing.assert_close(after, torch.from_numpy(expected).abs().sort(descending=True)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_direction_may_hold_nearly_all_of_a_matrix(dtype: torch.dtype) -> None:
    matrix = random(900, 256, dtype=torch.float32) + 50 * torch.outer(torch.ones(900), random(256, seed=1).float())
    hidden, found = (near(made_flat(matrix, dtype=dtype, leading=n, knee=1e-5), polar(matrix)) for n in (0, 16))
    assert hidden < 0.85 and found > 0.97, "without, the others are too small for so few iterations"


@pytest.mark.parametrize("decay", [0.5, 1.0])
@pytest.mark.parametrize("turned", [False, True])
def test_three_are_about_as_near_the_polar_factor_as_five_of_muons(decay: float, turned: bool) -> None:
    matrix = spread(256, 700, decay)
    matrix = matrix.mT if turned else matrix
    u = matrix / matrix.norm()
    for a, b, c in (MUON,) * 5:
        u = a * u + (b * u @ u.mT + c * u @ u.mT @ u @ u.mT) @ u
    assert near(made_flat(matrix, dtype=torch.bfloat16), polar(matrix)) > 0.975
    assert near(made_flat(matrix), polar(matrix)) > near(u, polar(matrix)) - 0.02


@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_bfloat16_keeps_the_direction_over_as_many_iterations_as_it_bears(decay: float) -> None:
    matrix, quintics = spread(256, 700, decay), best_quintics(spectral.MOST_BF16, 0.01)
    exact, rounded = (made_flat(matrix, quintics, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert near(exact, rounded) > 0.995


@pytest.mark.parametrize("rank", [1, 3, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_not_made_as_long_as_what_training_moved(rank: int, dtype: torch.dtype) -> None:
    matrix = 1e-3 * (random(300, rank) @ random(rank, 128, seed=1)).float()
    right = torch.linalg.svd(matrix.double(), full_matrices=False).Vh[:rank]
    flat = made_flat(matrix, dtype=dtype).double()
    outside = float((flat - flat @ right.mT @ right).norm() / flat.norm())
    hides = rank == 16 and dtype is torch.bfloat16  # sixteen equal directions do not stand out, so bf16 rounds them
    assert outside < (0.3 if hides else 0.05)


def test_a_flat_matrix_is_its_own_flattened_form_and_a_thin_one_shrinks() -> None:
    q = torch.linalg.qr(random(64, 64, seed=3)).Q
    torch.testing.assert_close(made_flat(3.0 * q, leading=0), 3.0 * q, rtol=1e-4, atol=1e-4)
    spike = torch.outer(q[0], q[1]) + 1e-2 * q
    assert made_flat(spike).norm() < 0.4 * spike.norm(), "its nuclear norm over its rank, not its Frobenius norm"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("subnormals_as_zero", [False, True])
def test_what_did_not_move_stays(dtype: torch.dtype, subnormals_as_zero: bool) -> None:
    torch.set_flush_denormal(subnormals_as_zero)
    try:
        assert not made_flat(torch.zeros(50, 30), dtype=dtype, knee=1e-4).any()
        several = torch.stack([torch.zeros(50, 30), random(50, 30).float()])
        assert made_flat(several, dtype=dtype).isfinite().all()
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("columns", [5, 40])
def test_a_batch_is_flattened_matrix_by_matrix_and_a_matrix_some_rows_at_a_time(columns: int) -> None:
    several = random(3, 60, columns, seed=2)
    flat = made_flat(several)
    torch.testing.assert_close(flat, torch.stack([made_flat(one) for one in several]))
    by_rows = several[0].clone()
    length = orthogonalize(by_rows.split(7), best_quintics(3, 0.01), torch.float32, 16, 1e-3)
    torch.testing.assert_close(by_rows * length, flat[0])


def test_the_leading_directions_are_those_of_the_largest_singular_values() -> None:
    matrix = spread(60, 200, 2.0).mT.contiguous()
    basis = leading_directions([matrix], 8, matrix.dtype)
    torch.testing.assert_close(basis.mT @ basis, torch.eye(8), rtol=0, atol=1e-5)
    right = torch.linalg.svd(matrix).Vh[:4]
    assert torch.linalg.matrix_norm(right @ basis, ord=-2) > 0.99, "the first four lie in the span of eight"


def test_a_large_gram_matrix_is_right_where_it_was_mirrored_too() -> None:
    u = random(900, 700)
    torch.testing.assert_close(symmetric_product(u.mT, u), u.mT @ u)


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-3, 0.6), st.integers(0, 2), st.floats(-1e-2, 1e-2))
def test_no_quintic_near_the_best_is_better(low: float, which: int, change: float) -> None:
    s = np.linspace(low, 1.0, 5000)[:, None] ** POWERS
    quintic, error = best_quintic(low, 1.0)
    assert np.abs(s @ quintic - 1).max() == pytest.approx(error, rel=1e-4, abs=1e-9)
    other = np.array(quintic)
    other[which] += change
    assert np.abs(s @ other - 1).max() >= error * (1 - 1e-4)


def test_more_iterations_come_nearer_and_what_is_flat_stays_flat() -> None:
    s = np.linspace(0.01, 1.0, 5000)
    errors = [np.abs(through(best_quintics(n, 0.01), s) - 1).max() for n in range(1, 10)]
    assert all(later <= earlier for earlier, later in itertools.pairwise(errors) if earlier > 1e-9)
    assert errors[2] < 0.28 and errors[-1] < 1e-9


@pytest.mark.parametrize("least", [0.0, 1.0, -1.0])
def test_a_least_value_that_is_no_share_is_refused(least: float) -> None:
    with pytest.raises(ValueError, match="least"):
        best_quintics(3, least)
