"""What keeps a wrong prediction or a broken step from spoiling a run: pure functions of losses, no torch."""

import math
from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any, Literal

Verdict = Literal["sound", "high", "skip", "roll_back"]
MIN_LOSSES = 20  # a mean and a spread of fewer say nothing, least of all those of the first steps
COUNTS, WINDOWS = ("grace_left", "landed_at", "in_a_row"), ("losses", "grad_norms")


class DivergenceMonitor:
    """Says of a real step, before it moves a weight, whether it may, from its loss and the norm of its gradient.

    What is not finite, and a gradient norm more than `gradient_factor` times above or below its running mean, must not move
    a weight: `skip`, and at the second such step in a row `roll_back`.

    A loss above the running mean of the last `window_steps` by more than max(`sigmas` standard deviations about their trend,
    `floor_nats`) is `high`, and the step is taken: in sound training it is a batch unlike the others, or one step of Adam
    too far, which the next gradient takes back (a skip would keep the weights where they are bad). `patience_steps` such
    steps in a row are the weights', which do not recover by themselves: `roll_back`.

    The losses of the first `grace_steps` real steps after a jump are held to the jump's probe where that is above the mean,
    and are left out of it, as are their gradients.
    """

    def __init__(
        self,
        window_steps: int = 50,
        sigmas: float = 6.0,
        floor_nats: float = 0.5,
        gradient_factor: float = 1000.0,
        grace_steps: int = 3,
        patience_steps: int = 3,
    ) -> None:
        self.sigmas, self.floor_nats, self.gradient_factor = sigmas, floor_nats, gradient_factor
        self.grace_steps, self.grace_left, self.landed_at = grace_steps, 0, -math.inf
        self.patience_steps, self.in_a_row = patience_steps, 0  # steps out of the ordinary, up to the last one
        self.losses: deque[float] = deque(maxlen=window_steps)
        self.grad_norms: deque[float] = deque(maxlen=window_steps)

    @property
    def mean(self) -> float | None:
        """Running mean of the losses in nats, None while there are too few."""
        return fmean(self.losses) if len(self.losses) >= MIN_LOSSES else None

    def judge(self, loss: float, grad_norm: float, armed: bool = True) -> Verdict:
        """Takes in one real step's loss and gradient norm; `armed=False` (in Warmup) checks finiteness only."""
        graced, self.grace_left = self.grace_left > 0, max(self.grace_left - 1, 0)
        broken = not (math.isfinite(loss) and math.isfinite(grad_norm))
        high = False
        if armed and not broken and self.mean is not None:
            broken = self._too_far(grad_norm)
            high = self._too_high(loss, max(self.mean, self.landed_at) if graced else self.mean)
        if not (broken or high):
            self.in_a_row = 0
            if not graced:
                self.losses.append(loss)
                self.grad_norms.append(grad_norm)
            return "sound"
        self.in_a_row += 1
        if self.in_a_row >= (2 if broken else self.patience_steps):
            return "roll_back"
        return "skip" if broken else "high"

    def _too_high(self, loss: float, level: float) -> bool:
        return loss > level + max(self.sigmas * noise(self.losses), self.floor_nats)

    def _too_far(self, grad_norm: float) -> bool:
        typical = fmean(self.grad_norms)
        return not typical / self.gradient_factor <= grad_norm <= typical * self.gradient_factor

    def jumped(self, probe_loss: float) -> None:
        """A jump was accepted, after which the loss is this."""
        self.grace_left, self.landed_at = self.grace_steps, probe_loss

    def reset(self) -> None:
        """After a rollback the weights are older: their losses start a new mean."""
        self.losses.clear()
        self.grad_norms.clear()
        self.grace_left = self.in_a_row = 0

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in COUNTS} | {name: list(getattr(self, name)) for name in WINDOWS}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in COUNTS:
            setattr(self, name, state[name])
        for name in WINDOWS:
            setattr(self, name, deque(state[name], maxlen=self.losses.maxlen))


def noise(losses: Sequence[float]) -> float:
    """Standard deviation of losses about their trend, from the differences of neighbours (von Neumann et al. 1941)."""
    return math.sqrt(fmean((b - a) ** 2 for a, b in pairwise(losses)) / 2)


def accepts_jump(before: float | None, after: float, margin_nats: float) -> bool:
    """The jump's gate: the probe is finite and at most `margin_nats` above the training loss before the jump.

    A wide margin, for catastrophes only: a good jump raises the loss at first, and Correct brings it below.
    """
    return math.isfinite(after) and (before is None or after <= before + margin_nats)
