"""Laws that hold for every predictor, and the closed forms of each."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hybridlib.config import predictor_settings
from hybridlib.training.predictors import make_predictor
from hybridlib.training.predictors.base import Predictor, Weights, is_matrix
from hybridlib.training.predictors.spectral import flatten_spectrum

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
        predictor.predict(weights, horizon=5)
    for (_, weight), old in zip(weights, before):
        assert weight.isfinite().all() and weight.shape == old.shape and weight.dtype == dtype


@pytest.mark.parametrize("name", EVERY)
def test_predictions_are_bitwise_deterministic(name: str) -> None:
    results = []
    for _ in range(2):
        weights, predictor = some_weights(), make_predictor(name)
        for cycle in range(3):
            walk(predictor, weights, 3, seed=cycle)
            predictor.predict(weights, horizon=4)
        results.append(values(weights))
    assert same(*results)


@pytest.mark.parametrize("name", EVERY)
def test_a_saved_predictor_goes_on_as_if_it_had_not_been(name: str) -> None:
    weights, predictor, copy = some_weights(), make_predictor(name), make_predictor(name)
    walk(predictor, weights, 3)
    predictor.predict(weights, horizon=4)
    twins = [(n, w.clone()) for n, w in weights]
    copy.load_state_dict(predictor.state_dict())
    for one, its_weights in ((predictor, weights), (copy, twins)):
        walk(one, its_weights, 3, seed=2)
        one.predict(its_weights, horizon=4)
    assert same(values(weights), values(twins))


@pytest.mark.parametrize("name", EVERY)
def test_state_is_what_the_predictor_declares(name: str) -> None:
    weights, predictor = some_weights(), make_predictor(name)
    walk(predictor, weights, 2)
    predictor.predict(weights, horizon=4)
    kept = sum(tensor.numel() for tensor in predictor.state_dict().values() if tensor.ndim)
    assert kept == predictor.copies * sum(weight.numel() for _, weight in weights)


@pytest.mark.parametrize("name", EVERY)
def test_after_forgetting_a_predictor_starts_anew(name: str) -> None:
    weights, predictor = some_weights(), make_predictor(name)
    walk(predictor, weights, 3)
    predictor.predict(weights, horizon=4)
    predictor.forget()
    fresh, twins = make_predictor(name), [(n, w.clone()) for n, w in weights]
    for one, its_weights in ((predictor, weights), (fresh, twins)):
        walk(one, its_weights, 3, seed=2)
        one.predict(its_weights, horizon=4)
    assert same(values(weights), values(twins))


def test_hold_changes_nothing() -> None:
    weights, predictor = some_weights(), make_predictor("hold")
    before = values(weights)
    predictor.predict(weights, horizon=9)
    assert same(before, values(weights))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 30))
def test_linear_is_exact_on_a_line(steps: int, horizon: int) -> None:
    weights, predictor = some_weights(), make_predictor("linear")
    velocity = [torch.full_like(w, 0.25) for _, w in weights]
    predictor.start(weights)
    for _ in range(steps):
        for (_, weight), v in zip(weights, velocity):
            weight.add_(v)
        predictor.observe(weights)
    expected = [w + horizon * v for (_, w), v in zip(weights, velocity)]
    predictor.predict(weights, horizon)
    for (_, weight), there in zip(weights, expected):
        torch.testing.assert_close(weight, there, rtol=1e-5, atol=1e-5)


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
        predictor.predict(weights, horizon=4)
        for (_, weight), landing in zip(weights, anchor):
            torch.testing.assert_close(weight, landing)


def test_spectral_moves_vectors_and_embeddings_as_nesterov_does() -> None:
    results = []
    for name in ("nesterov", "spectral"):
        weights, predictor = some_weights(), make_predictor(name, gain=0.9, momentum=0.5)
        walk(predictor, weights, 3)
        predictor.predict(weights, horizon=4)
        results.append(dict(weights))
    for name, weight in results[0].items():
        assert torch.equal(weight, results[1][name]) is not is_matrix(name, weight)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 99))
def test_flattening_keeps_norm_and_singular_vectors_and_evens_the_values(rows: int, columns: int, seed: int) -> None:
    matrix = torch.randn(1, rows, columns, generator=torch.Generator().manual_seed(seed))
    flat = flatten_spectrum(matrix, iterations=5)
    torch.testing.assert_close(flat.norm(), matrix.norm())
    u, before, vh = torch.linalg.svd(matrix[0], full_matrices=False)
    inside = u.T @ flat[0] @ vh.T
    torch.testing.assert_close(inside, torch.diag(inside.diagonal()), atol=1e-3 * float(matrix.norm()), rtol=0)
    large = before > 0.05 * before.max()
    after = inside.diagonal()[large]
    assert after.max() / after.min() < 2.0, "all but the smallest singular values are within a factor of two"


def test_sham_jumps_as_far_as_spectral_but_elsewhere() -> None:
    moved = []
    for name in ("spectral", "sham"):
        weights, predictor = some_weights(), make_predictor(name)
        start = values(weights)
        walk(predictor, weights, 3)
        predictor.predict(weights, horizon=4)
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
        predictor.predict(weights, horizon=4)
    for (_, one), (_, other) in zip(host, device):
        torch.testing.assert_close(one, other.cpu(), rtol=1e-3, atol=1e-4)
