"""Closed forms of outer Nesterov and of its flat spectrum, and the control that jumps as far elsewhere."""

import pytest
import torch
from conftest import some_weights, values, walk
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlib.method.predictors import make_predictor, nesterov
from hybridlib.method.predictors.base import is_matrix
from hybridlib.method.predictors.spectral import flatten_spectrum, newton_schulz


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
def test_spectral_moves_vectors_as_nesterov_does_with_a_gain_of_their_own_and_embeddings_if_asked(embeddings: bool) -> None:
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
def test_flattening_keeps_singular_vectors_and_evens_the_values_at_their_mean(rows: int, columns: int, seed: int) -> None:
    matrix = torch.randn(1, rows, columns, generator=torch.Generator().manual_seed(seed))
    flat = flatten_spectrum(matrix, iterations=5)
    u, before, vh = torch.linalg.svd(matrix[0], full_matrices=False)
    inside = u.T @ flat[0] @ vh.T
    torch.testing.assert_close(inside, torch.diag(inside.diagonal()), atol=1e-3 * float(matrix.norm()), rtol=0)
    large = before > 0.05 * before.max()
    after = inside.diagonal()[large]
    assert after.max() / after.min() < 2.0, "all but the smallest singular values are within a factor of two"
    residual = matrix - flat
    assert abs(float((residual * flat).sum())) < 1e-4 * float(matrix.square().sum()), "a projection: what is left is orthogonal"


def test_a_flat_matrix_is_its_own_flattened_form_and_a_thin_one_shrinks() -> None:
    q = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(3))).Q
    torch.testing.assert_close(flatten_spectrum(3.0 * q[None], 5)[0], 3.0 * q, rtol=1e-4, atol=1e-4)
    spike = torch.outer(q[0], q[1])[None] + 1e-2 * q
    assert flatten_spectrum(spike, 9).norm() < 0.4 * spike.norm(), "its nuclear norm over its rank, not its Frobenius norm"


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 7), st.integers(1, 9), st.integers(0, 99))
def test_newton_schulz_is_the_same_however_many_iterations_go_together(rows, more, iterations, together, seed) -> None:
    u = torch.randn(2, rows, rows + more, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    u = u / u.norm(dim=(-2, -1), keepdim=True)
    one_by_one = newton_schulz(u, iterations, 1)
    torch.testing.assert_close(newton_schulz(u, iterations, together), one_by_one)
    torch.testing.assert_close(newton_schulz(u.mT, iterations, together), one_by_one.mT)


@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_bfloat16_bears_as_many_iterations_together_as_it_is_given(decay: float) -> None:
    """Singular values fall like a power of their rank, as those of a look-ahead do."""
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, 256, generator=generator)).Q for n in (256, 700))
    spread = (u * torch.arange(1, 257) ** -decay @ v.T)[None]
    exact, rounded = (flatten_spectrum(spread, 5, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert torch.cosine_similarity(exact.flatten(), rounded.flatten(), dim=0) > 0.999


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
