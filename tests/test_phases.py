"""The state machine: order, lengths, shares, and what a rejected jump or a rollback does to it."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridlib.method.schedule import Phase, PhaseSchedule, PhaseState
from hybridlib.study.parameters import load_study
from hybridlib.training.assemble import schedule_of

schedules = st.builds(
    PhaseSchedule,
    warmup=st.integers(0, 20),
    full=st.integers(1, 20),
    predict=st.integers(0, 30),
    correct=st.integers(1, 12),
    total=st.integers(1, 300),
)


@given(schedules)
def test_every_nominal_step_is_taken_once_and_in_order(schedule: PhaseSchedule) -> None:
    states = list(schedule.unroll())
    assert [state.step for state in states] == list(range(1, schedule.total + 1))
    assert all(0 <= state.index < state.length for state in states)


@given(schedules)
def test_phases_follow_each_other_as_the_method_says(schedule: PhaseSchedule) -> None:
    after = {Phase.WARMUP: {Phase.FULL}, Phase.FULL: {Phase.PREDICT, Phase.FULL},
             Phase.PREDICT: {Phase.CORRECT}, Phase.CORRECT: {Phase.FULL}}  # fmt: skip
    states = list(schedule.unroll())
    for this, following in itertools.pairwise(states):
        if following.index == 0:
            assert this.index == this.length - 1 and following.phase in after[this.phase]
        else:
            assert following.phase is this.phase


@given(schedules)
def test_a_run_never_ends_on_weights_that_nothing_has_corrected(schedule: PhaseSchedule) -> None:
    assert list(schedule.unroll())[-1].real


def test_the_benchmarks_schedule_is_within_the_briefs_bands() -> None:
    schedule = schedule_of(load_study("cpu").run("hybrid", "text", 42))
    shares = schedule.shares()
    assert schedule.warmup == 10
    assert 0.20 <= shares[Phase.FULL] <= 0.30
    assert 0.50 <= shares[Phase.PREDICT] <= 0.60
    assert 0.10 <= shares[Phase.CORRECT] <= 0.20


def test_past_its_end_the_schedule_goes_on_at_full_length() -> None:
    schedule = PhaseSchedule(warmup=0, full=2, predict=4, correct=1, total=7)
    horizons = [s.length for s in schedule.unroll(28) if s.phase is Phase.PREDICT and s.index == 0]
    assert horizons == [4, 4, 4, 4]


def test_full_begins_anew_at_the_same_step() -> None:
    schedule = PhaseSchedule(warmup=1, full=2, predict=5, correct=2, total=50)
    state = list(schedule.unroll(9))[-1]
    assert state.phase is Phase.CORRECT
    assert schedule.begin_full(state) == PhaseState(state.step, Phase.FULL, 0, 2, state.cycle + 1)


def test_plain_training_is_all_real() -> None:
    assert all(s.real for s in PhaseSchedule(warmup=3, full=5, predict=0, correct=0, total=99).unroll())


def test_impossible_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="full >= 1"):
        PhaseSchedule(warmup=0, full=0, predict=1, correct=1, total=5)
