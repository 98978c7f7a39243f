"""Laws that hold for every predictor, and the closed forms of each."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hybridlib.config import predictor_settings
from hybridlib.training.predictors import make_predictor, nesterov
from hybridlib.training.predictors.base import Predictor, Weights, is_matrix
from hybridlib.training.predictors.spectral import flatten_spectrum, newton_schulz, newton_schulz_by_gram

EVERY = sorted(predictor_settings())


def some_weights(seed: int = 0, dtype: torch.dtype = torch.float32) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"h.0.attn.weight": (6, 9), "h.1.attn.weight": (6, 9), "h.0.out.weight": (9, 4), "h.0.bias": (9,), "wte.weight": (12, 6)}
    return [(name, torch.randn(shape, generator=generator).to(dtype)) for name, shape in shapes.items()]


def walk(predictor: Predictor, weights: Weights, steps: int, seed: int = 1) -> None:
    """A Full phase: small random moves, observed."""
    generator = torch.Generator().manual_seed(seed)
    predictor.start(weights)
    for _ in range(steps):
        for _, weight in weights:
            weight.add_(0.01 * torch.randn(weight.shape, generator=generator).to(weight.dtype))
        predictor.observe(weights)


def values(weights: Weights) -> list[Tensor]:
    return [weight.clone() for _, weight in weights]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_predictions_are_finite_and_keep_shape_and_dtype(name: str, dtype: torch.dtype) -> None:
    weights, predictor = some_weights(dtype=dtype), make_predictor(name)
    before = values(weights)
    for cycle in range(3):
        walk(predictor, weights, 4, seed=cycle)
        predictor.predict(weights, horizon=5, progress=0.5)
    for (_, weight), old in zip(weights, before):
        assert weight.isfinite().all() and weight.shape == old.shape and weight.dtype == dtype


@pytest.mark.parametrize("name", EVERY)
def test_predictions_are_bitwise_deterministic(name: str) -> None:
    results = []
    for _ in range(2):
        weights, predictor = some_weights(), make_predictor(name)
        for cycle in range(3):
            walk(predictor, weights, 3, seed=cycle)
            predictor.predict(weights, horizon=4, progress=0.5)
        results.append(values(weights))
    assert same(*results)


@pytest.mark.parametrize("name", EVERY)
def test_a_saved_predictor_goes_on_as_if_it_had_not_been(name: str) -> None:
    weights, predictor, copy = some_weights(), make_predictor(name), make_predictor(name)
    walk(predictor, weights, 3)
    predictor.predict(weights, horizon=4, progress=0.5)
    twins = [(n, w.clone()) for n, w in weights]
    copy.load_state_dict(predictor.state_dict())
    for one, its_weights in ((predictor, weights), (copy, twins)):
        walk(one, its_weights, 3, seed=2)
        one.predict(its_weights, horizon=4, progress=0.5)
    assert same(values(weights), values(twins))


@pytest.mark.parametrize("name", EVERY)
def test_state_is_what_the_predictor_declares(name: str) -> None:
    weights, predictor, kept = some_weights(), make_predictor(name), []
    walk(predictor, weights, 40)
    for _ in range(2):
        kept.append(sum(tensor.numel() for tensor in predictor.state_dict().values() if tensor.ndim))
        predictor.predict(weights, horizon=4, progress=0.5)
    assert max(kept) == predictor.copies * sum(weight.numel() for _, weight in weights)


@pytest.mark.parametrize("name", EVERY)
def test_after_forgetting_a_predictor_starts_anew(name: str) -> None:
    weights, predictor = some_weights(), make_predictor(name)
    walk(predictor, weights, 3)
    predictor.predict(weights, horizon=4, progress=0.5)
    predictor.forget()
    fresh, twins = make_predictor(name), [(n, w.clone()) for n, w in weights]
    for one, its_weights in ((predictor, weights), (fresh, twins)):
        walk(one, its_weights, 3, seed=2)
        one.predict(its_weights, horizon=4, progress=0.5)
    assert same(values(weights), values(twins))


def test_hold_changes_nothing() -> None:
    weights, predictor = some_weights(), make_predictor("hold")
    before = values(weights)
    predictor.predict(weights, horizon=9, progress=0.5)
    assert same(before, values(weights))


def path(weights: Weights, predictor: Predictor, points: list[list[Tensor]]) -> None:
    """Puts the weights on one point after the other, the first at Full's start, the others as real steps."""
    for at, point in enumerate(points):
        for (_, weight), value in zip(weights, point):
            weight.copy_(value)
        predictor.observe(weights) if at else predictor.start(weights)


def modes(weights: Weights, rates: list[float], steps: int) -> list[list[Tensor]]:
    """Points of a path whose displacements are a sum of geometric modes, each along a direction of its own."""
    generator = torch.Generator().manual_seed(7)
    directions = [[torch.randn(w.shape, generator=generator) for _, w in weights] for _ in rates]
    points = [[w.clone() for _, w in weights]]
    for t in range(steps):
        moves = [sum(r**t * d[i] for r, d in zip(rates, directions)) for i in range(len(weights))]
        points.append([p + m for p, m in zip(points[-1], moves)])
    return points


@pytest.mark.parametrize("name", ["linear", "drift"])
@settings(max_examples=25, deadline=None)
@given(steps=st.integers(2, 20), horizon=st.integers(1, 30))
def test_linear_and_drift_are_exact_on_a_line(name: str, steps: int, horizon: int) -> None:
    weights, predictor = some_weights(), make_predictor(name)
    points = modes(weights, [1.0], steps + horizon)
    path(weights, predictor, points[: steps + 1])
    predictor.predict(weights, horizon, progress=0.5)
    for (_, weight), there in zip(weights, points[-1]):
        torch.testing.assert_close(weight, there, rtol=1e-3, atol=1e-2)


def test_drift_averages_away_what_alternates() -> None:
    """A line with noise that is put in at one step and taken out at the next: the drift is the line's."""
    weights, predictor = some_weights(), make_predictor("drift", window=15)
    start, points = [w.clone() for _, w in weights], []
    for t in range(15):
        points.append([s + 0.1 * t + (0.5 if t % 2 else -0.5) for s in start])
    path(weights, predictor, points)
    predictor.predict(weights, horizon=10, progress=0.5)
    for (_, weight), s in zip(weights, start):
        torch.testing.assert_close(weight, s + 2.4, rtol=0, atol=0.1)


@pytest.mark.parametrize("name, rates", [("ridge", [0.9]), ("ridge", [0.95, 0.6]), ("dmd", [0.9]), ("dmd", [0.97, 0.7, -0.5])])
def test_ridge_and_dmd_are_exact_on_geometric_modes(name: str, rates: list[float]) -> None:
    options = dict(penalty=1e-9) if name == "ridge" else dict(cutoff=1e-6)
    weights, predictor = some_weights(), make_predictor(name, **options)
    points = modes(weights, rates, 12 + 10)
    path(weights, predictor, points[:13])
    predictor.predict(weights, horizon=10, progress=0.5)
    for (_, weight), there in zip(weights, points[-1]):
        torch.testing.assert_close(weight, there, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", ["ridge", "dmd"])
def test_a_forecast_of_growing_steps_does_not_explode(name: str) -> None:
    weights, predictor = some_weights(), make_predictor(name)
    points = modes(weights, [1.5], 12)
    path(weights, predictor, points)
    last = [b - a for a, b in zip(points[-2], points[-1])]
    predictor.predict(weights, horizon=20, progress=0.5)
    for (_, weight), there, step in zip(weights, points[-1], last):
        assert (weight - there).norm() <= 21 * 1.5 * step.norm(), "no more than as many steps as the longest, on and on"


def test_wnn_learns_that_steps_halve() -> None:
    """The rule is the same for every weight, so a network fitted to a few of them forecasts all."""
    weights, predictor = some_weights(), make_predictor("wnn", window=8, inputs=2, samples=100_000)
    points = modes(weights, [0.5], 6 + 10)
    path(weights, predictor, points[:7])
    before = sum(float((p - w).square().sum()) for (_, w), p in zip(weights, points[-1]))
    predictor.predict(weights, horizon=10, progress=0.5)
    after = sum(float((p - w).square().sum()) for (_, w), p in zip(weights, points[-1]))
    assert after < 0.1 * before


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
@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 7), st.integers(0, 99))
def test_both_forms_of_newton_schulz_are_the_same(rows: int, more: int, iterations: int, seed: int) -> None:
    u = torch.randn(2, rows, rows + more, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    u = u / u.norm(dim=(-2, -1), keepdim=True)
    torch.testing.assert_close(newton_schulz(u, iterations), newton_schulz_by_gram(u, iterations))


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", EVERY)
def test_a_gpus_prediction_is_the_cpus(name: str) -> None:
    host, device = some_weights(), [(n, w.cuda()) for n, w in some_weights()]
    for weights in (host, device):
        predictor = make_predictor(name)
        predictor.start(weights)
        for _, weight in weights:
            weight.mul_(1.01)
        predictor.observe(weights)
        predictor.predict(weights, horizon=4, progress=0.5)
    for (_, one), (_, other) in zip(host, device):
        torch.testing.assert_close(one, other.cpu(), rtol=1e-3, atol=1e-4)
