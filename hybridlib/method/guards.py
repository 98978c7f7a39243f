"""What keeps a wrong prediction or a broken step from spoiling a run: pure functions of losses, no torch."""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any, Literal

Verdict = Literal["sound", "loss_spike", "skip", "roll_back"]
LOSSES_KEPT = 50  # of computed steps, for the mean that a loss after a jump is held against
MIN_LOSSES = 20  # a mean and a spread of fewer say nothing, least of all those of the first steps
COUNTS, WINDOWS = ("grace_left", "landed_at", "in_a_row"), ("losses", "grad_norms")


class DivergenceMonitor:
    """Judge a computed step by its loss and the norm of its gradient, before it moves a weight.

    A loss or gradient that is not finite, or a gradient out of proportion, must not move a weight: `skip`, and
    `roll_back` where the computed step before it was out of the ordinary too, in whatever way. A loss that is too high
    is a `loss_spike`, and the step is taken: in sound training it is a batch unlike the others, or one step of Adam too
    far, which the next gradient takes back. Several in a row are the weights' fault, and weights do not recover by
    themselves: `roll_back`.

    Args:
        window_steps: computed steps over which losses and gradient norms are averaged, at least `MIN_LOSSES`.
        sigmas: how many standard deviations about their trend a loss may lie above that mean, above 0.
        floor_nats: how far it may lie above the mean in any case, above 0.
        gradient_factor: how many times larger or smaller than its mean a gradient norm may be, above 1.
        grace_steps: computed steps after a jump whose losses are held to the first loss after it, where that is above
            the mean, and which the means leave out; at least 0.
        patience_steps: steps in a row with a loss too high that roll back, at least 2.
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
        """Return the verdict on a computed step with this `loss`, in nats, and `grad_norm`.

        Where it is not `armed`, as in Warmup, only what is not finite is out of the ordinary.
        """
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
        return "skip" if broken else "loss_spike"

    def _too_high(self, loss: float, level: float) -> bool:
        return loss > level + max(self.sigmas * deviation(self.losses), self.floor_nats)

    def _too_far(self, grad_norm: float) -> bool:
        typical = fmean(self.grad_norms)
        return not typical / self.gradient_factor <= grad_norm <= typical * self.gradient_factor

    def rejected(self) -> None:
        """Count a step whose loss undid a jump: where the next are too high too, it was the weights, not the jump."""
        self.in_a_row += 1

    def jumped(self, loss: float) -> None:
        """Begin the grace after an accepted jump; `loss`, in nats, is the first after it, and yet to be judged."""
        self.grace_left, self.landed_at = self.grace_steps, loss

    def reset(self) -> None:
        """Begin new means: after a rollback the weights are older."""
        self.losses.clear()
        self.grad_norms.clear()
        self.grace_left = self.in_a_row = 0

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next verdicts depend on."""
        return {name: getattr(self, name) for name in COUNTS} | {name: list(getattr(self, name)) for name in WINDOWS}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`, which `state_dict` returned."""
        for name in COUNTS:
            setattr(self, name, state[name])
        for name in WINDOWS:
            setattr(self, name, deque(state[name], maxlen=self.losses.maxlen))


def deviation(losses: Sequence[float]) -> float:
    """Return the standard deviation of `losses` about their trend, from neighbours' differences (von Neumann 1941)."""
    return math.sqrt(fmean((b - a) ** 2 for a, b in pairwise(losses)) / 2)


class JumpGate:
    """Judge a jump by a loss after it: it may lie at most `margin_nats` above the losses before.

    The margin is wide, for catastrophes only: a good jump raises the loss at first, and Correct brings it below.

    Args:
        margin_nats: above 0.
        losses: of the computed steps before; the last `LOSSES_KEPT` are kept.
    """

    def __init__(self, margin_nats: float, losses: Iterable[float] = ()) -> None:
        self.margin_nats = margin_nats
        self.losses = deque(losses, maxlen=LOSSES_KEPT)

    def observe(self, loss: float) -> None:
        """Take in the `loss`, in nats, of a computed step before the jump."""
        if math.isfinite(loss):
            self.losses.append(loss)

    def accepts(self, loss: float) -> bool:
        """Return whether the jump may stand whose first `loss`, in nats, this is."""
        before = fmean(self.losses) if len(self.losses) >= MIN_LOSSES else self.losses[-1] if self.losses else None
        return math.isfinite(loss) and (before is None or loss <= before + self.margin_nats)
