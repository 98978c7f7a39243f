"""The four phases as a state machine without a tensor: it can be drawn, unrolled and tested."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from numbers import Integral
from typing import Any


class Phase(StrEnum):
    WARMUP = "warmup"
    FULL = "full"
    PREDICT = "predict"
    CORRECT = "correct"


@dataclass(frozen=True)
class PhaseState:
    """The nominal step about to be taken.

    Attributes:
        step: its number, from 1.
        phase: its phase.
        index: its place in the phase, from 0.
        length: of the phase, in nominal steps; in Predict this is the horizon.
        cycle: 0 in Warmup, then from 1.
    """

    step: int
    phase: Phase
    index: int
    length: int
    cycle: int

    @property
    def real(self) -> bool:
        """Whether the step is computed."""
        return self.phase is not Phase.PREDICT

    def packed(self) -> list[int | str]:
        """Return the state as plain values, for a checkpoint."""
        return [self.step, str(self.phase), self.index, self.length, self.cycle]

    @classmethod
    def unpacked(cls, values: list[Any]) -> "PhaseState":
        """Return the state whose `values` `packed` returned."""
        step, phase, index, length, cycle = values
        return cls(step, Phase(phase), index, length, cycle)


@dataclass(frozen=True)
class PhaseSchedule:
    """Lengths in nominal steps: Warmup once, then cycles of Full, Predict, Correct; `total` is the nominal end.

    The last Predict before `total` is shortened so that its Correct ends there: a run must not end on weights that
    nothing has corrected. After `total` cycles go on at full length. `predict=0` is plain training.

    Args:
        warmup: steps before the first cycle, at least 0.
        full: computed steps that the predictor watches, at least 1.
        predict: predicted steps, at least 0.
        correct: computed steps after a jump, at least 0; with 0 a run may end on a jump that no loss has judged.
        total: of the run, at least 1.
        until: the share of `total` after which no Predict begins before `total`, in (0, 1].

    Raises:
        ValueError: for a length out of its range, or that is no whole number.
    """

    warmup: int
    full: int
    predict: int
    correct: int
    total: int
    until: float = 1.0

    def __post_init__(self) -> None:
        if not all(isinstance(n, Integral) for n in (self.warmup, self.full, self.predict, self.correct, self.total)):
            raise ValueError(f"a schedule's lengths are whole numbers: {self}")
        if self.full < 1 or min(self.warmup, self.predict, self.correct) < 0 or self.total < 1:
            raise ValueError(f"a schedule needs full >= 1, total >= 1 and no negative length: {self}")
        if not 0 < self.until <= 1:
            raise ValueError(f"until is a share of the run, above 0 and at most 1: {self}")

    def start(self) -> PhaseState:
        """Return the state before the first step."""
        if self.warmup:
            return PhaseState(1, Phase.WARMUP, 0, self.warmup, 0)
        return PhaseState(1, Phase.FULL, 0, self.full, 1)

    def begin_full(self, state: PhaseState) -> PhaseState:
        """Return `state` with a new Full begun at its step: a jump was undone, or weights were put back."""
        return self._enter(Phase.FULL, state, self.full, state.cycle + 1)

    def advance(self, state: PhaseState) -> PhaseState:
        """Return the state one nominal step after `state`."""
        after = replace(state, step=state.step + 1, index=state.index + 1)
        if after.index < state.length:
            return after
        if state.phase is Phase.FULL and (horizon := self._horizon(after.step)):
            return self._enter(Phase.PREDICT, after, horizon, state.cycle)
        if state.phase is Phase.PREDICT and self.correct:
            return self._enter(Phase.CORRECT, after, self.correct, state.cycle)
        return self._enter(Phase.FULL, after, self.full, state.cycle + 1)

    def unroll(self, steps: int | None = None) -> Iterator[PhaseState]:
        """Yield the states of the first `steps` steps, by default `total`, where every jump is accepted."""
        state = self.start()
        for _ in range(self.total if steps is None else steps):
            yield state
            state = self.advance(state)

    @property
    def computed(self) -> int:
        """Computed steps among the `total`, where every jump is accepted: how many batches a loop will use."""
        return sum(state.real for state in self.unroll())

    def shares(self) -> dict[Phase, float]:
        """Return each phase's share of the nominal steps that follow Warmup."""
        after = [state.phase for state in self.unroll() if state.phase is not Phase.WARMUP]
        return {phase: after.count(phase) / max(len(after), 1) for phase in Phase if phase is not Phase.WARMUP}

    def _horizon(self, step: int) -> int:
        left = self.total - step + 1
        if left > 0 and step > self.until * self.total:
            return 0
        return self.predict if left <= 0 else max(0, min(self.predict, left - self.correct))

    @staticmethod
    def _enter(phase: Phase, at: PhaseState, length: int, cycle: int) -> PhaseState:
        return PhaseState(at.step, phase, 0, length, cycle)
