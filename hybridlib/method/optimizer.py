"""The method as an optimizer: it wraps another one, takes its steps, and predicts the steps that the schedule gives to Predict."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from hybridlib.method.guards import MIN_LOSSES, accepts_jump
from hybridlib.method.offload import TensorStore
from hybridlib.method.predictors.base import Predictor, Weights
from hybridlib.method.schedule import Phase, PhaseSchedule, PhaseState
from hybridlib.method.wrapping import (
    ChosenByGroup,
    Moments,
    WrappingOptimizer,
    first_names,
    forget_moments,
    mean_over_ranks,
    predictable,
    replayed,
    unscaled,
)

LOSSES_KEPT = 50  # of computed steps, for the mean that a jump's loss is held against


class HybridOptimizer(WrappingOptimizer):
    """Wraps an optimizer, and moves the weights over the steps of Predict in one jump, without a gradient.

    A training loop need not change. `step()` takes the wrapped optimizer's step; where it was the last of Full, it jumps
    over the whole of Predict as well, and the next step is Correct's. So one call may take several nominal steps: go on
    while `optimizer.nominal_steps < total`. A learning rate that is to follow the whole run follows `nominal_steps`.

    Parameter groups, state and defaults are the wrapped optimizer's own. A jump is a function of weights and predictor
    alone, so ranks that train one model together need no communication for it.

    Args:
        optimizer: the one to wrap, over all the parameters that are trained.
        named_parameters: names for its parameters, as `model.named_parameters()` gives them. Those that it lacks are
            numbered; those that the optimizer does not hold are left alone, and so are parameters that require no
            gradient, have no elements, or are no floating-point numbers.
        schedule: the phases, in nominal steps.
        predictor: what moves the weights.
        moments: what a jump does to the wrapped optimizer's first moments: "keep" them, "decay" them by half, or
            "reset" its whole state.
        jump_margin_nats: how far the first loss after a jump may lie above the mean loss before it, above 0. Beyond it
            the jump is undone. It takes part only where `step` is given a loss.
        is_matrix: says of a parameter, by name and tensor, whether the predictor moves it as a linear map. By default a
            parameter group's `orthogonalize`, where it has that key, else the predictor's own judgement of axes and name.
        named_buffers: what a forward pass changes besides weights, as `model.named_buffers()` gives it; put back with
            the weights when a jump is undone.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        named_parameters: Iterable[tuple[str, Tensor]],
        schedule: PhaseSchedule,
        predictor: Predictor,
        *,
        moments: Moments = "keep",
        jump_margin_nats: float = 4.0,
        is_matrix: Callable[[str, Tensor], bool] | None = None,
        named_buffers: Iterable[tuple[str, Tensor]] = (),
    ) -> None:
        super().__init__(optimizer)
        self.schedule, self.predictor = schedule, predictor
        self.moments, self.jump_margin_nats = moments, jump_margin_nats
        self.position: PhaseState = schedule.start()
        self.computed_steps = 0  # gradients computed so far, those of withheld steps included
        self._names = first_names(named_parameters)
        self.parameters: Weights = predictable(self, self._names)  # those that can be predicted, frozen ones among them
        self._buffers = list(named_buffers)
        self._before_jump = TensorStore()
        self._takeoff: PhaseState | None = None  # where the last jump began, while it may still be undone
        self._losses: deque[float] = deque(maxlen=LOSSES_KEPT)
        self._path: list[str] | None = None  # the parameters that the predictor follows
        if is_matrix is not None:
            predictor.orthogonalizes = is_matrix
        self._let_groups_choose()

    @property
    def nominal_steps(self) -> int:
        """Nominal steps taken so far, predicted ones included."""
        return self.position.step - 1

    @property
    def phase(self) -> Phase:
        """The phase of the step that is about to be taken."""
        return self.position.phase

    @property
    def weights(self) -> Weights:
        """The named parameters that are predicted: those that require gradients now."""
        return [(name, weight) for name, weight in self.parameters if weight.requires_grad]

    def step(self, closure: Callable[[], Any] | None = None, *, loss: Tensor | float | None = None) -> Any:
        """Take a computed step, and jump over the steps of Predict where it was the last of Full.

        Args:
            closure: computes the loss and its gradients, and returns the loss, as for any optimizer.
            loss: the loss, in nats, that the gradients were computed from. With it, or with a closure, a jump is judged
                by the first loss after it, averaged over ranks: one that went wrong is undone, and this step's gradient,
                taken at weights that are gone, moves nothing. Such a jump counts as one nominal step.

        Returns:
            The closure's loss, None without one.
        """
        found = None
        if closure is not None:
            with torch.enable_grad():
                found = closure()
            loss, closure = found if loss is None else loss, replayed(closure, found)
        if loss is not None and not self._accepts(loss):
            self.undo_jump()
            self.computed_steps += 1
            return found
        if unscaled(self):
            self.update(closure)
            if self.phase is Phase.PREDICT:
                self.jump()
        return found

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether a GradScaler calls `step` although gradients overflow: after a jump, for that may have been why."""
        return self._takeoff is not None

    def update(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take the wrapped optimizer's step, whose own hooks run, and nothing else.

        `jump` is due when `phase` is Predict after it.

        Raises:
            RuntimeError: where it is due now.
        """
        weights = self._begin()
        found = self.optimizer.step() if closure is None else self.optimizer.step(closure)
        self.predictor.observe(weights)
        self._computed("step")
        return found

    def skip(self) -> None:
        """Count a computed step whose gradient must not move the weights."""
        self._begin()
        self._computed("step")

    def restart(self, state_dict: dict[str, Any] | None = None) -> None:
        """Begin a new Full phase, after a computed step: the weights were put back to where they were earlier.

        Args:
            state_dict: of that time; the wrapped optimizer's state is taken from it, but for what schedulers set.
        """
        if state_dict is not None:
            self.load_wrapped(state_dict)
        self._takeoff = None
        self.predictor.forget()
        self._losses.clear()
        self._computed("rollback")

    @torch.no_grad()
    def jump(self) -> int:
        """Move the weights over the whole of Predict, and return how many nominal steps that was.

        Raises:
            RuntimeError: where `phase` is not Predict.
        """
        takeoff = self.position
        if takeoff.phase is not Phase.PREDICT:
            raise RuntimeError(f"a jump is for the start of Predict; this is step {takeoff.step}, in {takeoff.phase}")
        self._before_jump.keep(self._undoable(self.weights))
        self.predictor.predict(self._followed(), takeoff.length, (takeoff.step - 1) / self.schedule.total)
        for _ in range(takeoff.length):
            self.position = self.schedule.advance(self.position)
        self._takeoff = takeoff
        return takeoff.length

    @torch.no_grad()
    def undo_jump(self) -> None:
        """Put the weights back to where the last jump found them; it counts as one nominal step, and Full begins.

        Raises:
            RuntimeError: where no jump was made, or a step was taken since.
        """
        if self._takeoff is None:
            raise RuntimeError("there is no jump to undo: none was made since the last computed step")
        for name, tensor in self._undoable(self.parameters):
            if name in self._before_jump:
                self._before_jump.read(name, tensor.detach())
        self.predictor.forget()
        self.position = self.schedule.advance(self._takeoff, "rejected")
        self._takeoff = None

    def _undoable(self, weights: Weights) -> Iterator[tuple[str, Tensor]]:
        yield from ((f"weight.{name}", weight) for name, weight in weights)
        yield from ((f"buffer.{name}", buffer) for name, buffer in self._buffers)

    def _accepts(self, loss: Tensor | float) -> bool:
        """Take in a loss, and return whether the jump before it, if there was one, may stand."""
        loss = mean_over_ranks(loss)
        if self._takeoff is None:
            if self.phase in (Phase.WARMUP, Phase.FULL) and math.isfinite(loss):
                self._losses.append(loss)
            return True
        before = fmean(self._losses) if len(self._losses) >= MIN_LOSSES else self._losses[-1] if self._losses else None
        return accepts_jump(before, loss, self.jump_margin_nats)

    def _settle(self) -> None:
        """The last jump stands: what it does to the moments is done now, when it can no longer be undone."""
        if self._takeoff is not None:
            self._takeoff = None
            forget_moments(self.optimizer, self.moments)

    def _begin(self) -> Weights:
        """A computed step begins: return the weights that it moves."""
        if self.phase is Phase.PREDICT:
            raise RuntimeError(f"step {self.position.step} begins Predict: jump() comes before the next gradient")
        self._settle()
        weights = self._followed()
        if self.phase is Phase.FULL and self.position.index == 0:
            self.predictor.start(weights)
        return weights

    def _followed(self) -> Weights:
        """Return the weights. Where others require gradients than before, the predictor's path is not theirs: it starts anew."""
        weights = self.weights
        before, self._path = self._path, [name for name, _ in weights]
        if before is not None and self._path != before:
            self.predictor.forget()
            if self.phase in (Phase.FULL, Phase.PREDICT):
                self.predictor.start(weights)
        return weights

    def _computed(self, event: Literal["step", "rollback"]) -> None:
        self.computed_steps += 1
        self.position = self.schedule.advance(self.position, event)
        self._opt_called = True  # what a scheduler looks for, to warn where no step came before its own

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to the wrapped optimizer; those without a name are numbered."""
        super().add_param_group(param_group)
        self.parameters = predictable(self, self._names)
        self._let_groups_choose()

    def _let_groups_choose(self) -> None:
        chosen, set_before = ChosenByGroup(self.optimizer), self.predictor.orthogonalizes
        if chosen.said and (set_before is None or isinstance(set_before, ChosenByGroup)):
            self.predictor.orthogonalizes = chosen

    def extra_state(self, materialize: bool) -> dict[str, Any]:
        stored = dict(predictor=self.predictor.state_dict())
        if self._takeoff is not None:
            stored["before_jump"] = self._before_jump.entries()
        if materialize:
            stored = {key: {name: tensor.read() for name, tensor in kept.items()} for key, kept in stored.items()}
        return dict(
            position=self.position.packed(),
            takeoff=self._takeoff and self._takeoff.packed(),
            computed_steps=self.computed_steps,
            losses=list(self._losses),
            path=self._path and list(self._path),
            **stored,
        )

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        self.position, self.computed_steps = PhaseState.unpacked(extra["position"]), extra["computed_steps"]
        self._takeoff = extra["takeoff"] and PhaseState.unpacked(extra["takeoff"])
        self._losses = deque(extra["losses"], maxlen=LOSSES_KEPT)
        self._path = extra["path"]
        self.predictor.load_state_dict(extra["predictor"])
        self._before_jump.keep(extra.get("before_jump", {}).items())
