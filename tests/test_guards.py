"""The divergence rule and the jump's gate, against their definitions."""

import itertools
import math
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hybridlib.method.guards import MIN_LOSSES, DivergenceMonitor, JumpGate
from hybridlib.study.arm import Guards

steady = [4.0 + 0.3 * math.sin(2 * i) for i in range(60)]


def filled(losses: list[float], **settings: float) -> DivergenceMonitor:
    monitor = DivergenceMonitor(**settings)
    assert all(monitor.judge(loss, 1.0) == "sound" for loss in losses)
    return monitor


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_skipped_and_a_second_in_a_row_rolls_back(bad: float) -> None:
    assert filled(steady).judge(bad, 1.0) == "skip"
    assert filled(steady).judge(4.0, bad) == "skip"
    monitor = DivergenceMonitor()
    assert monitor.judge(bad, 1.0, armed=False) == "skip", "in Warmup too"
    assert monitor.judge(bad, 1.0) == "roll_back"


def test_the_threshold_is_six_deviations_or_half_a_nat() -> None:
    window = steady[-50:]
    noise = math.sqrt(fmean((b - a) ** 2 for a, b in itertools.pairwise(window)) / 2)
    threshold = fmean(window) + max(6 * noise, 0.5)
    assert filled(steady).judge(threshold - 1e-9, 1.0) == "sound"
    assert filled(steady).judge(threshold + 1e-9, 1.0) == "loss_spike"


@given(st.integers(2, 6), st.lists(st.booleans(), max_size=40))
def test_high_losses_are_taken_until_there_are_too_many_in_a_row(patience: int, high: list[bool]) -> None:
    monitor, in_a_row = filled(steady, patience_steps=patience), 0
    for is_high in high:
        in_a_row = in_a_row + 1 if is_high else 0
        verdict = monitor.judge(100.0 if is_high else monitor.mean, 1.0)
        assert verdict == ("roll_back" if in_a_row >= patience else "loss_spike" if is_high else "sound")
        if verdict == "roll_back":
            break


def test_a_rejected_jump_is_one_step_of_those_in_a_row() -> None:
    monitor = filled(steady, patience_steps=3)
    monitor.rejected()
    assert [monitor.judge(100.0, 1.0) for _ in range(2)] == ["loss_spike", "roll_back"]
    monitor = filled(steady, patience_steps=3)
    monitor.rejected()
    assert [monitor.judge(loss, 1.0) for loss in (4.0, 100.0, 100.0)] == ["sound", "loss_spike", "loss_spike"]


def test_a_high_loss_leaves_the_mean_as_it_was() -> None:
    monitor = filled(steady)
    mean = monitor.mean
    assert monitor.judge(100.0, 30.0) == "loss_spike" and monitor.mean == mean


def test_warmup_and_too_few_losses_raise_no_alarm() -> None:
    assert filled(steady).judge(100.0, 1.0, armed=False) == "sound"
    assert filled(steady[: MIN_LOSSES - 1]).judge(100.0, 1.0) == "sound"


def test_the_first_steps_after_a_jump_are_held_to_its_first_loss_and_left_out_of_the_mean() -> None:
    monitor = filled(steady, grace_steps=3)
    mean = monitor.mean
    monitor.jumped(mean + 3.0)
    assert all(monitor.judge(mean + 3.4, 50.0) == "sound" for _ in range(3))
    assert monitor.mean == mean
    assert monitor.judge(mean + 3.4, 1.0) == "loss_spike"
    monitor.jumped(mean + 3.0)
    assert monitor.judge(mean + 100.0, 1.0) == "loss_spike"
    monitor = filled(steady)
    monitor.jumped(mean + 3.0)
    assert monitor.judge(mean, 1e9) == "skip"
    monitor.jumped(mean - 1.0)
    assert monitor.judge(mean + 0.4, 1.0) == "sound", (
        "a good jump raises no alarm on a batch that is harder than the first one after it"
    )


@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_a_gradient_far_from_the_others_is_skipped(factor: float) -> None:
    assert filled(steady).judge(fmean(steady[-50:]), factor) == "skip"
    assert filled(steady).judge(fmean(steady[-50:]), 1.0) == "sound"


@given(st.lists(st.floats(2.0, 9.0), min_size=MIN_LOSSES, max_size=120), st.floats(2.0, 9.0))
def test_a_saved_monitor_goes_on_as_if_it_had_not_been(losses: list[float], last: float) -> None:
    monitor, copy = DivergenceMonitor(), DivergenceMonitor()
    for loss in losses:
        monitor.judge(loss, 1.0)
    copy.load_state_dict(monitor.state_dict())
    assert monitor.mean == copy.mean and monitor.judge(last, 1.0) == copy.judge(last, 1.0)


def test_the_gate_undoes_catastrophes_only() -> None:
    assert JumpGate(2.0, [4.0]).accepts(5.5)
    assert not JumpGate(2.0, [4.0]).accepts(6.5)
    assert not JumpGate(2.0).accepts(math.nan)
    assert JumpGate(2.0).accepts(9.0)


def test_a_window_too_short_for_a_mean_is_refused() -> None:
    assert Guards(window_steps=MIN_LOSSES)
    with pytest.raises(ValidationError):
        Guards(window_steps=MIN_LOSSES - 1)
