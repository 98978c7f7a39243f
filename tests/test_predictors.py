"""Laws that hold for every predictor, and the closed forms of those that forecast a path."""

import math

import pytest
import torch
from conftest import same, some_weights, values, walk
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hybridlib.method.predictors import make_predictor, orthogonal
from hybridlib.method.predictors.base import Predictor, Weights
from hybridlib.method.settings import predictor_settings

EVERY = sorted(predictor_settings())


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
    copy.load_state_dict({name: kept.read() for name, kept in predictor.state_dict().items()})
    for one, its_weights in ((predictor, weights), (copy, twins)):
        walk(one, its_weights, 3, seed=2)
        one.predict(its_weights, horizon=4, progress=0.5)
    assert same(values(weights), values(twins))


@pytest.mark.parametrize("name", EVERY)
def test_state_is_what_the_predictor_declares(name: str) -> None:
    weights, predictor, kept = some_weights(), make_predictor(name), []
    walk(predictor, weights, 40)
    for _ in range(2):
        kept.append(sum(math.prod(kept.shape) for kept in predictor.state_dict().values() if kept.shape))
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


@pytest.mark.parametrize(
    "name, rates", [("ridge", [0.9]), ("ridge", [0.95, 0.6]), ("dmd", [0.9]), ("dmd", [0.97, 0.7, -0.5])]
)
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", EVERY)
def test_a_gpus_prediction_is_the_cpus(name: str) -> None:
    host, device = some_weights(), [(n, w.cuda()) for n, w in some_weights()]
    for weights in (host, device):
        predictor = make_predictor(name)
        walk(predictor, weights, 6)
        before = values(weights)
        predictor.predict(weights, horizon=4, progress=0.5)
        assert same(values(weights), before) == (name in ("hold", "ema_nesterov"))
    for (_, one), (_, other) in zip(host, device):
        torch.testing.assert_close(one, other.cpu(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", EVERY)
def test_a_prediction_does_not_depend_on_the_default_device(name: str) -> None:
    orthogonal.start.cache_clear()
    landed = []
    for device in ("meta", "cpu"):
        weights, predictor = some_weights(), make_predictor(name)
        weights.append(("large", torch.linspace(-1, 1, 300 * 256).sin().view(300, 256)))  # has leading directions
        walk(predictor, weights, 6)
        with torch.device(device):
            predictor.predict(weights, horizon=4, progress=0.5)
            predictor.store.get(predictor.store.names()[0]) if predictor.store.names() else None
        landed.append(values(weights))
    assert same(*landed)


def test_displacements_that_are_alike_need_no_penalty() -> None:
    weights, predictor = some_weights(), make_predictor("ridge", penalty=0.0)
    points = modes(weights, [1.0], 6 + 10)
    path(weights, predictor, points[:7])
    predictor.predict(weights, horizon=10, progress=0.5)
    for (_, weight), point in zip(weights, points[-1]):
        torch.testing.assert_close(weight, point, rtol=1e-3, atol=1e-3)
