"""Closed forms of outer Nesterov and its flat spectrum, the best quintics, the control that jumps as far elsewhere."""

import itertools

import numpy as np
import pytest
import torch
from conftest import some_weights, values, walk
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hybridlib.method.predictors import make_predictor, nesterov, spectral
from hybridlib.method.predictors.base import is_matrix
from hybridlib.method.predictors.spectral import (
    DTYPES,
    Quintic,
    best_quintic,
    best_quintics,
    flattening,
    orthogonalize,
    symmetric_product,
)  # fmt: skip

POWERS = np.array([1, 3, 5])
MUON: Quintic = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024, "Muon", algorithm 2


def by_best(matrices: Tensor, iterations: int = 3, least: float = 0.01, dtype: torch.dtype = torch.float32) -> Tensor:
    """Flattened as `Spectral` does it."""
    return orthogonalize(matrices, best_quintics(iterations, least), dtype)


def spread(rows: int, columns: int, decay: float) -> Tensor:
    """A matrix whose singular values fall like a power of their rank, as those of a look-ahead do."""
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, rows, generator=generator)).Q for n in (rows, columns))
    return (u * torch.arange(1, rows + 1) ** -decay @ v.T)[None]


def through(quintics: tuple, s: np.ndarray) -> np.ndarray:
    for a, b, c in quintics:
        s = a * s + b * s**3 + c * s**5
    return s


def test_the_predictor_iterates_as_is_tested_here() -> None:
    for precision in ("fp32", "bf16"):
        made = make_predictor("spectral", precision=precision)
        assert made.dtype == DTYPES[precision] and made.quintics == best_quintics(3, 0.01)


def test_nesterov_is_the_published_recursion() -> None:
    """anchor + gain (d + m buf), buf = m buf + d, with d the displacement since the last landing."""
    gain, m = 0.7, 0.6
    weights, predictor = some_weights(), make_predictor("nesterov", gain=gain, momentum=m)
    anchor, buffer = values(weights), [torch.zeros_like(w) for _, w in weights]
    for cycle in range(3):
        walk(predictor, weights, 3, seed=cycle)
        displacement = [w - a for w, a in zip(values(weights), anchor)]
        buffer = [m * b + d for b, d in zip(buffer, displacement)]
        anchor = [a + gain * (d + m * b) for a, d, b in zip(anchor, displacement, buffer)]
        predictor.predict(weights, horizon=4, progress=0.5)
        for (_, weight), landing in zip(weights, anchor):
            torch.testing.assert_close(weight, landing)


@pytest.mark.parametrize("embeddings", [True, False])
def test_spectral_moves_vectors_as_nesterov_does_with_a_gain_of_their_own_and_embeddings_if_asked(
    embeddings: bool,
) -> None:
    results = []
    own = dict(gain=2.0, vector_gain=0.9, embeddings=embeddings)
    for name, options in (("nesterov", dict(gain=0.9)), ("spectral", own)):
        weights, predictor = some_weights(), make_predictor(name, momentum=0.5, **options)
        walk(predictor, weights, 3)
        predictor.predict(weights, horizon=4, progress=0.5)
        results.append(dict(weights))
    for name, weight in results[0].items():
        flattened = is_matrix(name, weight) or (embeddings and name == "wte.weight")
        assert torch.equal(weight, results[1][name]) is not flattened


def test_a_jump_does_not_depend_on_how_many_matrices_share_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for elements in (1, nesterov.BATCH_ELEMENTS):
        monkeypatch.setattr(nesterov, "BATCH_ELEMENTS", elements)
        weights, predictor = some_weights(), make_predictor("spectral")
        walk(predictor, weights, 3)
        predictor.predict(weights, horizon=4, progress=0.5)
        results.append(values(weights))
    for alone, together in zip(*results):
        torch.testing.assert_close(alone, together)


def test_rows_of_the_embedding_that_did_not_move_stay() -> None:
    weights, predictor = some_weights(), make_predictor("spectral", precision="fp32")
    predictor.start(weights)
    table = dict(weights)["wte.weight"]
    before = table.clone()
    table[:3].add_(torch.randn(3, 6, generator=torch.Generator().manual_seed(1)))
    predictor.predict(weights, horizon=4, progress=0.5)
    assert torch.equal(table[3:], before[3:]) and not torch.equal(table[:3], before[:3])


def test_the_gain_fades_towards_the_end() -> None:
    moved = []
    for progress in (0.5, 0.8, 1.0, 1.5):
        weights, predictor = some_weights(), make_predictor("nesterov", gain=0.8, fade=0.5, fade_from=0.6)
        start = values(weights)
        walk(predictor, weights, 3)
        predictor.predict(weights, horizon=4, progress=progress)
        moved.append(sum(float((w - s).norm()) for w, s in zip(values(weights), start)))
    assert [m / moved[0] for m in moved] == pytest.approx([1, 0.75, 0.5, 0.5], rel=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 99))
def test_flattening_keeps_singular_vectors_and_evens_the_values_at_their_mean(
    rows: int, columns: int, seed: int
) -> None:
    matrix = torch.randn(1, rows, columns, generator=torch.Generator().manual_seed(seed))
    flat = by_best(matrix)
    u, before, vh = torch.linalg.svd(matrix[0], full_matrices=False)
    inside = u.T @ flat[0] @ vh.T
    torch.testing.assert_close(inside, torch.diag(inside.diagonal()), atol=1e-3 * float(matrix.norm()), rtol=0)
    large = before > 0.01 * matrix.norm()
    after = inside.diagonal()[large]
    assert after.max() / after.min() < 2.0, "all but the smallest singular values are within a factor of two"
    residual = matrix - flat
    assert abs(float((residual * flat).sum())) < 1e-4 * float(matrix.square().sum()), (
        "a projection: what is left is orthogonal"
    )


def test_a_flat_matrix_is_its_own_flattened_form_and_a_thin_one_shrinks() -> None:
    q = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(3))).Q
    torch.testing.assert_close(by_best(3.0 * q[None])[0], 3.0 * q, rtol=1e-4, atol=1e-4)
    spike = torch.outer(q[0], q[1])[None] + 1e-2 * q
    assert by_best(spike, 9, 1e-3).norm() < 0.4 * spike.norm(), "its nuclear norm over its rank, not its Frobenius norm"
    assert not by_best(torch.zeros(1, 5, 3)).any()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(0, 12), st.integers(1, 6), st.integers(0, 99))
def test_it_is_newton_schulz_on_the_matrix_itself_projected(rows: int, more: int, iterations: int, seed: int) -> None:
    d = torch.randn(rows, rows + more, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    quintics = best_quintics(iterations, 0.01)
    u = d / d.norm()
    for a, b, c in quintics:
        gram = u @ u.mT
        u = a * u + b * gram @ u + c * gram @ gram @ u
    plain = u * (d * u).sum() / (u * u).sum()
    torch.testing.assert_close(orthogonalize(d[None], quintics, torch.float32)[0], plain, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(orthogonalize(d.mT[None], quintics, torch.float32)[0], plain.mT, rtol=1e-6, atol=1e-8)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 99))
def test_an_iteration_takes_each_singular_value_through_its_quintic(rows: int, more: int, seed: int) -> None:
    d = torch.randn(rows, rows + more, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    s = torch.linalg.svdvals(d)
    after = torch.linalg.svdvals(flattening(d @ d.mT, best_quintics(2, 0.01), d.dtype) @ d)
    expected = torch.from_numpy(through(best_quintics(2, 0.01), (s / s.norm()).numpy())).abs().sort(descending=True)[0]
    torch.testing.assert_close(after / after.norm(), expected / expected.norm())


def test_a_large_gram_matrix_is_right_where_it_was_mirrored_too() -> None:
    u = torch.randn(900, 700, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(symmetric_product(u.mT, u), u.mT @ u)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_a_table_moves_alike_whole_and_some_rows_at_a_time(
    monkeypatch: pytest.MonkeyPatch, precision: str, momentum: float
) -> None:
    landed = []
    for elements in (5 << 20, 64):
        monkeypatch.setattr(spectral, "BLOCK_ELEMENTS", elements)
        weights, predictor = some_weights(), make_predictor("spectral", precision=precision, momentum=momentum)
        for cycle in range(2):
            walk(predictor, weights, 3, seed=cycle)
            predictor.predict(weights, horizon=4, progress=0.5)
        landed.append(values(weights))
    tolerance = dict(rtol=1e-4, atol=1e-5) if precision == "fp32" else dict(rtol=0.05, atol=0.02)
    for whole, by_rows in zip(*landed):
        torch.testing.assert_close(by_rows, whole, **tolerance)


@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_bfloat16_keeps_the_direction_over_as_many_iterations_as_it_bears(decay: float) -> None:
    matrix = spread(256, 700, decay)
    exact, rounded = (by_best(matrix, spectral.MOST_BF16, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    with pytest.raises(ValueError, match="iterations = 4: bf16 bears at most 3"):
        make_predictor("spectral", precision="bf16", iterations=4)
    assert torch.cosine_similarity(exact.flatten(), rounded.flatten(), dim=0) > 0.995


def test_sham_jumps_as_far_as_spectral_but_elsewhere() -> None:
    moved = []
    for name in ("spectral", "sham"):
        weights, predictor = some_weights(), make_predictor(name)
        start = values(weights)
        walk(predictor, weights, 3)
        predictor.predict(weights, horizon=4, progress=0.5)
        moved.append([w - s for w, s in zip(values(weights), start)])
    for true, random in zip(*moved):
        torch.testing.assert_close(true.norm(), random.norm(), rtol=1e-4, atol=0)
        assert torch.cosine_similarity(true.flatten(), random.flatten(), dim=0).abs() < 0.9


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


@pytest.mark.parametrize("decay", [0.5, 1.0])
@pytest.mark.parametrize("turned", [False, True])
def test_four_are_as_near_the_polar_factor_as_five_of_muons(decay: float, turned: bool) -> None:
    matrix = spread(128, 300, decay)
    matrix = matrix.mT if turned else matrix
    left, _, right = torch.linalg.svd(matrix[0], full_matrices=False)
    four, five = by_best(matrix, 4, 0.003), orthogonalize(matrix, (MUON,) * 5, torch.float32)
    near = [float(torch.cosine_similarity(flat.flatten(), (left @ right).flatten(), dim=0)) for flat in (four, five)]
    assert near[0] > near[1] > 0.98


def test_a_batch_is_flattened_matrix_by_matrix() -> None:
    several = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(by_best(several), torch.cat([by_best(one[None]) for one in several]))
