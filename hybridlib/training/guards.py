"""What keeps a wrong prediction or a broken step from spoiling a run: pure functions of losses, no torch."""

import math
from collections import deque
from statistics import fmean, stdev
from typing import Any

MIN_LOSSES = 10  # a mean and a spread of fewer say nothing


class DivergenceMonitor:
    """Says whether a real step has diverged, before it moves a weight.

    Diverged is a loss or gradient norm that is not finite; a loss above the running mean of the last `window_steps` by more
    than max(`sigmas` standard deviations, `floor_nats`); a gradient norm more than `gradient_factor` times above or below
    its running mean. The first `grace_steps` real steps after a jump answer to the jump's gate instead, and are left out of
    the means.
    """

    def __init__(
        self,
        window_steps: int = 50,
        sigmas: float = 6.0,
        floor_nats: float = 0.5,
        gradient_factor: float = 100.0,
        grace_steps: int = 3,
    ) -> None:
        self.sigmas, self.floor_nats, self.gradient_factor = sigmas, floor_nats, gradient_factor
        self.grace_steps, self.grace_left = grace_steps, 0
        self.losses: deque[float] = deque(maxlen=window_steps)
        self.grad_norms: deque[float] = deque(maxlen=window_steps)

    @property
    def mean(self) -> float | None:
        """Running mean of the losses in nats, None while there are too few."""
        return fmean(self.losses) if len(self.losses) >= MIN_LOSSES else None

    def diverged(self, loss: float, grad_norm: float, armed: bool = True) -> bool:
        """Takes in one real step's loss and gradient norm; `armed=False` (in Warmup) checks finiteness only."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return True
        if self.grace_left:
            self.grace_left -= 1
            return False
        if armed and self.mean is not None and (self._too_high(loss) or self._out_of_range(grad_norm)):
            return True
        self.losses.append(loss)
        self.grad_norms.append(grad_norm)
        return False

    def _too_high(self, loss: float) -> bool:
        return loss > fmean(self.losses) + max(self.sigmas * stdev(self.losses), self.floor_nats)

    def _out_of_range(self, grad_norm: float) -> bool:
        typical = fmean(self.grad_norms)
        return not typical / self.gradient_factor <= grad_norm <= typical * self.gradient_factor

    def jumped(self) -> None:
        self.grace_left = self.grace_steps

    def reset(self) -> None:
        """After a rollback the weights are older: their losses start a new mean."""
        self.losses.clear()
        self.grad_norms.clear()
        self.grace_left = 0

    def state_dict(self) -> dict[str, Any]:
        return dict(losses=list(self.losses), grad_norms=list(self.grad_norms), grace_left=self.grace_left)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses = deque(state["losses"], maxlen=self.losses.maxlen)
        self.grad_norms = deque(state["grad_norms"], maxlen=self.grad_norms.maxlen)
        self.grace_left = state["grace_left"]


def accepts_jump(before: float | None, after: float, margin_nats: float) -> bool:
    """The jump's gate: the probe is finite and at most `margin_nats` above the training loss before the jump.

    A wide margin, for catastrophes only: a good jump raises the loss at first, and Correct brings it below.
    """
    return math.isfinite(after) and (before is None or after <= before + margin_nats)
