"""The method as an optimizer: it wraps another one, takes its steps, and predicts those that the schedule says."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hybridlib.method.guards import JumpGate
from hybridlib.method.parameters import NamedBuffers, PredictedParameters
from hybridlib.method.predictors.base import Predictor, Weights
from hybridlib.method.schedule import Phase, PhaseSchedule, PhaseState
from hybridlib.method.settings import Positive, checked
from hybridlib.method.wrapping import Moments, WrappingOptimizer, forget_moments, mean_over_ranks, replayed, unscaled


class HybridOptimizer(WrappingOptimizer):
    """Wrap an optimizer, and move the weights over the steps of Predict in one jump, without a gradient.

    `step()` takes the wrapped optimizer's step, and after the last of Full jumps over the whole of Predict. So one call
    may take several nominal steps: a training loop goes on while `optimizer.nominal_steps < total`, gives `step` the
    loss, and lets a learning rate follow `nominal_steps`. Parameter groups, state and defaults are the wrapped one's.

    Args:
        optimizer: the one to wrap, over all the parameters that are trained.
        named_parameters: names for its parameters, as `model.named_parameters()` gives them. Those without a name have
            that of a group's `param_names`, or a number. Parameters that the optimizer does not hold, that require no
            gradient, have no elements, or are no floating-point numbers are never predicted.
        schedule: the phases, in nominal steps.
        predictor: what moves the weights of this optimizer alone; what it remembers of another is forgotten.
        moments: what a jump does to first moments: "keep" them, "decay" them by half, or "reset" the whole state.
        jump_margin_nats: how far the first loss after a jump may lie above the mean loss before it, above 0. Beyond it
            the jump is undone. It takes part only where `step` is given a loss.
        is_matrix: tells of a parameter, by name and tensor, whether the predictor moves it as a linear map. By default
            a parameter group's `orthogonalize`, where it has that key, else the predictor's own judgement.
        named_buffers: `model.named_buffers`, asked at every jump: put back with the weights when one is undone.

    Attributes:
        position: the nominal step about to be taken.
        computed_steps: gradients computed so far, those of withheld steps included.
        undone_jumps: how many jumps have been undone.
        gate: judges a jump by the first loss after it.
        may_undo: whether a jump was made and no step taken since.
    """

    @checked
    def __init__(
        self,
        optimizer: Optimizer,
        named_parameters: Iterable[tuple[str, Tensor]],
        schedule: PhaseSchedule,
        predictor: Predictor,
        *,
        moments: Moments = "keep",
        jump_margin_nats: Positive = 4.0,
        is_matrix: Callable[[str, Tensor], bool] | None = None,
        named_buffers: NamedBuffers = (),
    ) -> None:
        super().__init__(optimizer)
        self.schedule, self.predictor, self.moments = schedule, predictor, moments
        self.gate, self.position = JumpGate(jump_margin_nats), schedule.start()
        self.computed_steps, self.undone_jumps, self.may_undo = 0, 0, False
        predictor.orthogonalizes = is_matrix
        self._predicted = PredictedParameters(self, named_parameters, named_buffers)

    @property
    def nominal_steps(self) -> int:
        """Nominal steps taken so far, predicted ones included."""
        return self.position.step - 1

    @property
    def phase(self) -> Phase:
        """The phase of the step that is about to be taken."""
        return self.position.phase

    @property
    def stored_bytes(self) -> int:
        """What is kept off the device: the predictor's memory, and what undoes the last jump while it may be undone."""
        return self.predictor.store.nbytes + (self._predicted.before_jump.nbytes if self.may_undo else 0)

    @property
    def parameters(self) -> Weights:
        """The named parameters that can be predicted, frozen ones among them."""
        return self._predicted.all

    @property
    def weights(self) -> Weights:
        """The named parameters that are predicted: those that require gradients now."""
        return self._predicted.weights

    def step(self, closure: Callable[[], Any] | None = None, *, loss: Tensor | float | None = None) -> Any:
        """Take a computed step, and jump where it was the last of Full; return the closure's loss.

        Args:
            closure: computes the loss and its gradients, and returns the loss, as for any optimizer.
            loss: the loss, in nats, that the gradients were computed from. With it, or with a closure, a jump is judged
                by the first loss after it, averaged over ranks: one that went wrong is undone, and this step's
                gradient, taken at weights that are gone, moves nothing. In the closure's place it is a `TypeError`.
        """
        if closure is not None and not callable(closure):
            raise TypeError(f"step takes a closure, not {type(closure).__name__}; a loss has its name: step(loss=loss)")
        found = None
        if closure is not None:
            with self.looking_ahead(), torch.enable_grad():
                found = closure()
            loss, closure = found if loss is None else loss, replayed(closure, found, self)
        if loss is not None and not self.accepts(loss):
            self.undo_jump()
            self.skip()
        elif unscaled(self):
            self.update(closure)
        if self.phase is Phase.PREDICT:
            self.jump()
        return found

    def looking_ahead(self) -> AbstractContextManager[None]:
        """Return a block to compute gradients in, for a predictor that looks ahead at every step; else it does nothing.

        In the block the weights are where the predictor wants the gradient; after it they are back, bit for bit.
        """
        return self._predicted.ahead_of(self.phase, (self.position.step - 1) / self.schedule.total)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether a GradScaler calls `step` although gradients overflow: after a jump, which may be why they do."""
        return self.may_undo

    def update(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take the wrapped optimizer's step with `closure`; return what it returns. In Predict a `RuntimeError`."""
        weights = self._begin()
        found = self.optimizer.step() if closure is None else self.optimizer.step(closure)
        self.predictor.observe(weights)
        self._computed()
        return found

    def skip(self) -> None:
        """Count a computed step whose gradient must not move the weights."""
        self._begin()
        self._computed()

    def restart(self, state_dict: dict[str, Any] | None = None) -> None:
        """Begin a new Full phase where the weights were put back; the wrapped optimizer goes on from `state_dict`."""
        if state_dict is not None:
            self.load_wrapped(state_dict)
        self.gate.losses.clear()
        self._begin_full()

    @torch.no_grad()
    def jump(self) -> int:
        """Move the weights over all of Predict; return its nominal steps. Raises `RuntimeError` in another phase."""
        begin = self.position
        if begin.phase is not Phase.PREDICT:
            raise RuntimeError(f"a jump is for the start of Predict; this is step {begin.step}, in {begin.phase}")
        self._predicted.keep()
        if weights := self._predicted.followed(begin.phase):
            self.predictor.predict(weights, begin.length, (begin.step - 1) / self.schedule.total)
        for _ in range(begin.length):
            self.position = self.schedule.advance(self.position)
        self.may_undo = True
        return begin.length

    def undo_jump(self) -> None:
        """Put the weights back to where the last jump found them, and begin Full; the jump's nominal steps are spent.

        Raises `RuntimeError` where no jump was made, or a step was taken since.
        """
        if not self.may_undo:
            raise RuntimeError("there is no jump to undo: none was made since the last computed step")
        self._predicted.put_back()
        self.undone_jumps += 1
        self._begin_full()

    def accepts(self, loss: Tensor | float) -> bool:
        """Take in a computed step's `loss`, in nats; return whether the jump before it, if any, may stand."""
        loss = mean_over_ranks(loss)
        if self.may_undo:
            return self.gate.accepts(loss)
        if self.phase in (Phase.WARMUP, Phase.FULL):
            self.gate.observe(loss)
        return True

    def _begin(self) -> Weights:
        """Begin a computed step: the last jump stands. Return the weights."""
        if self.phase is Phase.PREDICT:
            raise RuntimeError(f"step {self.position.step} begins Predict: jump() comes before the next gradient")
        if self.may_undo:
            self.may_undo = False
            forget_moments(self.optimizer, self.moments)  # not before: an undone jump must not cost the moments
        weights = self._predicted.followed(self.phase)
        if self.phase is Phase.FULL and self.position.index == 0:
            self.predictor.start(weights)
        return weights

    def _begin_full(self) -> None:
        self.may_undo = False
        self.predictor.forget()
        self.position = self.schedule.begin_full(self.position)

    def _computed(self) -> None:
        self.computed_steps += 1
        self.position = self.schedule.advance(self.position)
        self._opt_called = True  # what a scheduler looks for, to warn where no step came before its own

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self._predicted.renew()

    def extra_state(self, materialize: bool) -> dict[str, Any]:
        counts = dict(computed_steps=self.computed_steps, undone_jumps=self.undone_jumps, may_undo=self.may_undo)
        found = dict(position=self.position.packed(), losses=list(self.gate.losses)) | counts
        return found | self._predicted.state(self.may_undo, materialize)

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        self.position, self.computed_steps = PhaseState.unpacked(extra["position"]), extra["computed_steps"]
        self.undone_jumps, self.may_undo = extra.get("undone_jumps", 0), extra["may_undo"]
        self.gate = JumpGate(self.gate.margin_nats, extra["losses"])
        self._predicted.load(extra)
