"""The divergence rule and the jump's gate, against their definitions."""

import math
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridlib.training.guards import MIN_LOSSES, DivergenceMonitor, accepts_jump

steady = [4.0 + 0.3 * math.sin(2 * i) for i in range(60)]


def filled(losses: list[float], **settings: float) -> DivergenceMonitor:
    monitor = DivergenceMonitor(**settings)
    assert not any(monitor.out_of_range(loss, 1.0) for loss in losses)
    return monitor


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_has_diverged(bad: float) -> None:
    assert filled(steady).out_of_range(bad, 1.0)
    assert filled(steady).out_of_range(4.0, bad)
    assert DivergenceMonitor().out_of_range(bad, 1.0, armed=False), "in Warmup too"


def test_the_threshold_is_six_deviations_or_half_a_nat() -> None:
    window = steady[-50:]
    noise = math.sqrt(fmean((b - a) ** 2 for a, b in zip(window, window[1:])) / 2)
    threshold = fmean(window) + max(6 * noise, 0.5)
    assert not filled(steady).out_of_range(threshold - 1e-9, 1.0)
    assert filled(steady).out_of_range(threshold + 1e-9, 1.0)


def test_warmup_and_too_few_losses_raise_no_alarm() -> None:
    assert not filled(steady).out_of_range(100.0, 1.0, armed=False)
    assert not filled(steady[: MIN_LOSSES - 1]).out_of_range(100.0, 1.0)


def test_the_first_steps_after_a_jump_are_held_to_its_probe_and_left_out_of_the_mean() -> None:
    monitor = filled(steady, grace_steps=3)
    mean = monitor.mean
    monitor.jumped(mean + 3.0)
    assert not any(monitor.out_of_range(mean + 3.4, 50.0) for _ in range(3))
    assert monitor.mean == mean
    assert monitor.out_of_range(mean + 3.4, 1.0)
    monitor.jumped(mean + 3.0)
    assert monitor.out_of_range(mean + 100.0, 1.0)
    assert monitor.out_of_range(mean, 1e9)
    monitor.jumped(mean - 1.0)
    assert not monitor.out_of_range(mean + 0.4, 1.0), "a good jump raises no alarm on a batch that is harder than its probe"


@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_a_gradient_far_from_the_others_has_diverged(factor: float) -> None:
    assert filled(steady).out_of_range(fmean(steady[-50:]), factor)
    assert not filled(steady).out_of_range(fmean(steady[-50:]), 1.0)


@given(st.lists(st.floats(2.0, 9.0), min_size=MIN_LOSSES, max_size=120), st.floats(2.0, 9.0))
def test_a_saved_monitor_goes_on_as_if_it_had_not_been(losses: list[float], last: float) -> None:
    monitor, copy = DivergenceMonitor(), DivergenceMonitor()
    for loss in losses:
        monitor.out_of_range(loss, 1.0)
    copy.load_state_dict(monitor.state_dict())
    assert monitor.mean == copy.mean and monitor.out_of_range(last, 1.0) == copy.out_of_range(last, 1.0)


def test_the_gate_undoes_catastrophes_only() -> None:
    assert accepts_jump(4.0, 5.5, margin_nats=2.0)
    assert not accepts_jump(4.0, 6.5, margin_nats=2.0)
    assert not accepts_jump(None, math.nan, margin_nats=2.0)
    assert accepts_jump(None, 9.0, margin_nats=2.0)
