"""HybridTrainer: the steps of a HybridOptimizer, each recorded and guarded."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hybridlib.method.guards import DivergenceMonitor
from hybridlib.method.offload import OptimizerOffload
from hybridlib.method.optimizer import HybridOptimizer
from hybridlib.method.schedule import Phase, PhaseState
from hybridlib.method.wrapping import mean_over_ranks
from hybridlib.study.records import StepRecord
from hybridlib.training.checkpoint import CheckpointFile, Snapshots
from hybridlib.training.meter import MB, Meter, give_back
from hybridlib.training.objective import Objective, first_tensor, norm_of_gradients, random_state, set_random_state
from hybridlib.training.optimizers import WeightAverage
from hybridlib.training.states import State


class HybridTrainer:
    """Train any module with any optimizer, one nominal step at a time.

    Without Predict steps it is bitwise the plain loop. The trainer computes gradients, records each step, and keeps
    broken steps and wrong predictions from spoiling the run.

    Args:
        optimizer: the wrapped optimizer with its schedule and predictor.
        objective: the model with its loss, micro-batches and precision.
        monitor: judges which computed steps may move the weights.
        snapshots: keeps the state that a divergence rolls back to, in memory or on disk.
        snapshot_every: nominal steps between two snapshots, at least 1.
        offload: moves the optimizer's state off the device in Predict; None leaves it there.
        meter: measures the time and the peak memory of steps.
        average: follows the weights after computed steps; by default it keeps nothing.
        clip_norm: above 0; gradients with a larger norm are scaled down to it before they move the weights.
    """

    def __init__(
        self,
        optimizer: HybridOptimizer,
        objective: Objective,
        *,
        monitor: DivergenceMonitor | None = None,
        snapshots: Snapshots | CheckpointFile | None = None,
        snapshot_every: int = 80,
        offload: OptimizerOffload | None = None,
        meter: Meter | None = None,
        average: WeightAverage | None = None,
        clip_norm: float | None = None,
    ) -> None:
        self.optimizer, self.objective, self.offload = optimizer, objective, offload
        self.monitor, self.snapshots = monitor or DivergenceMonitor(), snapshots or Snapshots()
        self.meter, self.snapshot_every = meter or Meter(objective.device), snapshot_every
        self.average, self.clip_norm = average or WeightAverage(), clip_norm
        self.tokens_trained = 0
        self.last_snapshot_step = -snapshot_every
        self._coasting: list[PhaseState] = []  # the steps of Predict that its jump has taken already

    @property
    def state(self) -> PhaseState:
        """Return the position in the schedule of the next nominal step."""
        return self._coasting[0] if self._coasting else self.optimizer.position

    @property
    def real_steps(self) -> int:
        """Return the number of computed steps so far, which is the index of the next batch."""
        return self.optimizer.computed_steps

    @property
    def stored_bytes(self) -> int:
        """Return the bytes that are kept off the device."""
        return self.optimizer.stored_bytes + (self.offload.stored_bytes if self.offload else 0)

    def step(self, batch: Any) -> StepRecord:
        """Take one nominal step and return its record; `batch` is as for `Objective`.

        The first step of Predict jumps, and the others do nothing. The first computed step after them judges the jump:
        where its loss rejects it, the jump is undone, and the gradient moves nothing.
        Raises `torch.OutOfMemoryError` if memory does not suffice for a micro-batch of one, `RuntimeError` for a
        divergence before the first snapshot.
        """
        self.meter.start()
        state, events, loss, grad_norm, jump_s = self.state, [], None, None, None
        if state.index == 0:
            self._enter(state.phase)
        if self._coasting:
            self._coasting.pop(0)
        elif state.real:
            loss, grad_norm = self._computed_step(batch, events)
        else:
            jump_s = self._jump(events)
        perplexity = None if loss is None else math.exp(loss) if loss < 700 else math.inf
        what = state.step, str(state.phase), int(state.real), loss, perplexity, grad_norm, self.tokens_trained
        memory_mb = round(self.meter.peak_mb(), 3), self.stored_bytes / MB
        record = StepRecord(*what, self.meter.stop(), jump_s, *memory_mb, "+".join(events))
        if {"jump", "rejected", "rollback"} & {*events}:  # off the clock, as all that a run is only judged by
            self.average.forget()
        elif state.real and "skipped" not in events:
            self.average.observe(self.optimizer.weights)
        return record

    def _enter(self, phase: Phase) -> None:
        """Begin a phase: offload or restore the optimizer's state, and count peak memory anew."""
        if phase is Phase.PREDICT and self.offload:
            self.offload.offload()
        if self.offload and self.offload.away:
            give_back()  # what is freed, or what the jump has left
        self.meter.enter_phase()
        if phase is not Phase.PREDICT and self.offload:
            self.offload.restore()

    def _computed_step(self, batch: Any, events: list[str]) -> tuple[float, float]:
        """Take a computed step as far as the monitor lets it. Return the loss and the norm of its gradient."""
        calm = self.state.phase in (Phase.WARMUP, Phase.FULL) and not self.monitor.grace_left
        due = calm and self.state.step - self.last_snapshot_step >= self.snapshot_every
        before = self.state_dict() if due else None
        buffers = [buffer.clone() for _, buffer in self.objective.buffers]
        with self.optimizer.looking_ahead():
            loss, halved = self.objective.backward_within_memory(batch, self.optimizer.zero_grad)
        loss, grad_norm = mean_over_ranks(loss), norm_of_gradients(self.optimizer.parameters)
        events += ["halved"] * halved
        self.tokens_trained += first_tensor(batch).numel()
        landed = self.optimizer.may_undo
        if not self.optimizer.accepts(loss):
            events.append("rejected")
            self.optimizer.undo_jump()
            self.monitor.rejected()
            self._skip(buffers)
            return loss, grad_norm
        if landed:
            self.monitor.jumped(loss)
        verdict = self.monitor.judge(loss, grad_norm, armed=self.state.phase is not Phase.WARMUP)
        if verdict in ("skip", "roll_back"):
            events.append("skipped" if verdict == "skip" else "rollback")
            if verdict == "roll_back":
                buffers = self._roll_back()
            self._skip(buffers)
            return loss, grad_norm
        if verdict == "loss_spike":
            events.append("loss_spike")
        elif before:  # saved only now: this step's loss has shown that the weights before it were sound
            self.last_snapshot_step = self.state.step
            self.snapshots.save(before)
            events.append("checkpoint")
        if self.clip_norm is not None:
            weights = [weight for _, weight in self.optimizer.parameters]
            torch.nn.utils.clip_grads_with_norm_(weights, self.clip_norm, torch.tensor(grad_norm))
        self.optimizer.update()
        self.optimizer.zero_grad(set_to_none=True)
        return loss, grad_norm

    def _skip(self, buffers: list[Tensor]) -> None:
        """Count a computed step that moves nothing: its gradients go, and `buffers` are as before it."""
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.set_buffers(buffers)
        self.optimizer.skip()

    def _jump(self, events: list[str]) -> float:
        """Jump, and return the seconds that it took."""
        begun, started_s = self.state, self.meter.stop()
        horizon = self.optimizer.jump()
        self._coasting = [replace(begun, step=begun.step + i, index=i) for i in range(1, horizon)]
        events.append("jump")
        return self.meter.stop() - started_s

    def _roll_back(self) -> list[Tensor]:
        """Restore weights and optimizer from the last snapshot; steps, clock, batches and learning rate go on.

        Return the buffers of the snapshot.
        """
        if (snapshot := self.snapshots.load()) is None:
            raise RuntimeError("diverged before the first snapshot: there is nothing to roll back to")
        self.objective.put(snapshot, self.optimizer.parameters)
        self.optimizer.restart(snapshot["optimizer"])
        self.monitor.reset()
        return list(snapshot["buffers"].values())

    def snapshot(self) -> None:
        """Save the state between two steps. Raises `RuntimeError` in Predict."""
        self.snapshots.save(self.state_dict())

    def state_dict(self) -> State:
        """Return all that the next steps depend on. Raises `RuntimeError` in Predict, after its jump."""
        if self._coasting:
            raise RuntimeError("in Predict there is no state to save: a snapshot is taken before it or after it")
        if self.offload:
            self.offload.restore()  # after Predict's last step the state is still offloaded
        return dict(
            weights={name: weight.detach() for name, weight in self.objective.weights(self.optimizer.parameters)},
            buffers={name: buffer.clone() for name, buffer in self.objective.buffers},
            optimizer=self.optimizer.state_dict(materialize=False),
            monitor=self.monitor.state_dict(),
            average=self.average.state_dict(),
            random=random_state(self.objective.device),
            counts={name: getattr(self, name) for name in ("tokens_trained", "last_snapshot_step")},
            accumulation=self.objective.accumulation,
        )

    def load_state_dict(self, state: State) -> None:
        """Continue from `state`, as `state_dict` returned it."""
        if self.offload:
            self.offload.restore()
        self._coasting = []
        self.objective.put(state, self.optimizer.parameters)
        self.optimizer.load_state_dict(state["optimizer"])
        self.monitor.load_state_dict(state["monitor"])
        self.average.load_state_dict(state["average"])
        set_random_state(state["random"], self.objective.device)
        for name, value in state["counts"].items():
            setattr(self, name, value)
        self.objective.accumulation = state["accumulation"]
