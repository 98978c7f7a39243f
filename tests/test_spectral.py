"""Closed forms of outer Nesterov, which tensors have a flat spectrum, the control that jumps as far elsewhere."""

import pytest
import torch
from conftest import some_weights, values, walk

from hybridlib.method.predictors import make_predictor, nesterov, spectral
from hybridlib.method.predictors.base import is_matrix
from hybridlib.method.predictors.orthogonal import best_quintics
from hybridlib.method.predictors.spectral import DTYPES


def test_the_predictor_iterates_as_is_tested_here() -> None:
    for precision in ("fp32", "bf16"):
        made = make_predictor("spectral", precision=precision)
        assert (made.dtype, made.quintics, made.leading) == (DTYPES[precision], best_quintics(3, 0.01), 16)


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
    for elements in (1, nesterov.BATCH_ELEMENTS["cpu"], nesterov.BATCH_ELEMENTS["cuda"]):
        monkeypatch.setitem(nesterov.BATCH_ELEMENTS, "cpu", elements)
        weights, predictor = some_weights(), make_predictor("spectral")
        walk(predictor, weights, 3)
        predictor.predict(weights, horizon=4, progress=0.5)
        results.append(values(weights))
    for alone, *together in zip(*results):
        for each in together:
            torch.testing.assert_close(alone, each)


def test_weights_share_a_call_with_those_of_their_shape_on_their_device() -> None:
    places = ["cpu", "meta", "cpu", "meta", "cpu"]
    weights = [(str(i), torch.empty(4, 3 if i < 4 else 2, device=place)) for i, place in enumerate(places)]
    groups = [[name for name, _ in group] for group in nesterov.of_equal_shape(weights)]
    assert sorted(groups) == [["0", "2"], ["1", "3"], ["4"]]


@pytest.mark.parametrize("elements", [5 << 20, 64])
def test_a_jump_does_not_depend_on_the_layout_in_memory(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    monkeypatch.setattr(spectral, "BLOCK_ELEMENTS", elements)
    before, step = (torch.randn(40, 3, 2, 2, generator=torch.Generator().manual_seed(n)) for n in (0, 1))
    landed = []
    for layout in (torch.contiguous_format, torch.channels_last):
        weights = [("conv.weight", before.clone(memory_format=layout))]
        predictor = make_predictor("spectral")
        predictor.start(weights)
        weights[0][1].add_(step)
        predictor.predict(weights, horizon=4, progress=0.5)
        landed.append(weights[0][1])
    torch.testing.assert_close(landed[0], landed[1], rtol=1e-5, atol=2e-5)
    assert not torch.allclose(landed[0], before + step, atol=0.1)


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


def test_large_matrices_of_one_shape_all_move_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU takes several of them in one call."""
    landed = []
    for elements in (5 << 20, 32):
        monkeypatch.setattr(spectral, "BLOCK_ELEMENTS", elements)
        generator = torch.Generator().manual_seed(0)
        weights = [(f"h.{at}.w", torch.randn(9, 6, generator=generator)) for at in range(3)]
        weights.append(("h.3.w", torch.randn(6, 9, generator=generator).mT))  # of their shape, not of their layout
        predictor = make_predictor("spectral")
        walk(predictor, weights, 3)
        there = values(weights)
        predictor.predict(weights, horizon=4, progress=0.5)
        assert not any(torch.equal(w, was) for w, was in zip(values(weights), there))
        landed.append(values(weights))
    for whole, by_rows in zip(*landed):
        torch.testing.assert_close(by_rows, whole, rtol=1e-4, atol=1e-5)


def test_more_iterations_than_bfloat16_bears_are_refused() -> None:
    with pytest.raises(ValueError, match="iterations = 4: bf16 bears at most 3"):
        make_predictor("spectral", precision="bf16", iterations=4)


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
