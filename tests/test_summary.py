"""What a run's records amount to: its pace, by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridlib.study.progress import TENTHS, pace


def test_a_run_that_doubles_its_step_half_way() -> None:
    step_s = np.repeat([1.0, 2.0], 50)
    assert pace(step_s) == (2.0, 50.0)
    assert pace(step_s[::-1]) == (2.0, 50.0), "slow at the start counts as slow at the end does"


def test_single_slow_steps_are_not_the_pace() -> None:
    step_s = np.ones(100)
    step_s[::10] = 30.0  # a checkpoint every tenth step
    assert pace(step_s) == (1.0, 0.0)


@given(st.lists(st.floats(0.01, 10.0), min_size=1, max_size=200))
def test_the_drift_is_no_more_than_the_time_and_a_short_run_has_one_too(step_s: list[float]) -> None:
    slowdown, drift_s = pace(np.array(step_s))
    assert slowdown >= 1 and drift_s >= 0
    if len(step_s) <= TENTHS:
        assert drift_s == pytest.approx(sum(step_s) - len(step_s) * min(step_s))
