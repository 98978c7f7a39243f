"""HybridTrainer: the only place where phases meet tensors."""

import math
from typing import Any, Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hybridlib.records import StepRecord
from hybridlib.training.checkpoint import Snapshots, Tensors, load_optimizer, optimizer_counters, optimizer_tensors, under
from hybridlib.training.faults import NO_FAULT, NoFault
from hybridlib.training.guards import DivergenceMonitor, accepts_jump
from hybridlib.training.memory import KeepOnDevice, PredictAware, give_back, ran_out_of_memory
from hybridlib.training.meter import Meter
from hybridlib.training.models import Batch
from hybridlib.training.optimizers import Moments, after_jump
from hybridlib.training.phases import Event, Phase, PhaseSchedule, PhaseState
from hybridlib.training.predictors.base import Predictor, Weights
from hybridlib.training.read_out import ReadOut
from hybridlib.training.store import Store


PROBE_PARTS = 4  # a jump's probe looks for a catastrophe, for which a quarter of the batch is enough


class HybridTrainer:
    """Trains any module with any optimizer, predicting the steps that the schedule gives to Predict.

    With no Predict steps it is bitwise the plain loop. `loss_fn(module, batch)` returns a mean over the batch, a batch
    being a tuple of tensors with the batch on their first axis; `accumulation` micro-batches make up a step.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss_fn: Callable[[nn.Module, Batch], Tensor],
        schedule: PhaseSchedule,
        predictor: Predictor,
        *,
        accumulation: int = 1,
        precision: str = "fp32",
        memory: KeepOnDevice | PredictAware | None = None,
        monitor: DivergenceMonitor | None = None,
        jump_margin_nats: float = 4.0,
        meter: Meter | None = None,
        snapshots: Snapshots | None = None,
        snapshot_every: int = 80,
        moments: Moments = "keep",
        read_out: ReadOut | None = None,
    ) -> None:
        self.model, self.optimizer, self.loss_fn = model, optimizer, loss_fn
        self.schedule, self.predictor = schedule, predictor
        self.accumulation, self.precision = accumulation, precision
        self.memory, self.monitor = memory or KeepOnDevice(), monitor or DivergenceMonitor()
        self.jump_margin_nats, self.moments = jump_margin_nats, moments
        self.read_out = read_out or ReadOut()
        self.snapshots, self.snapshot_every = snapshots or Snapshots(), snapshot_every
        self.weights: Weights = list(model.named_parameters())
        self.device = self.weights[0][1].device
        self.meter = meter or Meter(self.device)
        self.state: PhaseState = schedule.start()
        self.real_steps = 0  # taken so far, which is the index of the next batch
        self.tokens_trained = 0
        self.last_snapshot_step = -snapshot_every
        self.before_jump = Store()
        self.last_loss: float | None = None

    def rehearse(self, batch: Batch) -> None:
        """Computes a step's and a probe's loss and forgets them: what is compiled at first use is compiled now."""
        self._loss(batch, backward=True)
        self._loss(probe(batch))
        self.optimizer.zero_grad(set_to_none=True)

    def step(self, batch: Batch, fault: NoFault = NO_FAULT) -> StepRecord:
        """Takes one nominal step. The first of Predict jumps, and probes the batch without gradients; the others cost nothing.

        Raises `OutOfMemoryError` where memory does not suffice for a micro-batch of one. `fault` is for tests.
        """
        self.meter.start()
        state, events, grad_norm, jump_s = self.state, [] if fault is NO_FAULT else ["fault"], None, None
        if state.index == 0:
            self._enter(state)
        if state.real:
            loss, grad_norm, event = self._real_step(fault.batch(batch), fault, events)
        elif state.index == 0:
            loss, jump_s, event = self._jump(batch, fault, events)
        else:
            loss, event = None, "step"
        self.state = self.schedule.advance(state, event)
        return StepRecord(
            step=state.step,
            phase=str(state.phase),
            real=int(state.real),
            loss=loss,
            perplexity=None if loss is None else _exp(loss),
            grad_norm=grad_norm,
            tokens_trained=self.tokens_trained,
            step_s=self.meter.stop(),
            jump_s=jump_s,
            peak_mb=round(self.meter.peak_mb(), 3),
            event="+".join(events),
        )

    def _enter(self, state: PhaseState) -> None:
        """The first step of a phase: what leaves the device or comes back, and from where its peak memory counts."""
        if state.phase is Phase.PREDICT:
            self.memory.leave()
            self.meter.enter_phase()
        else:
            self.meter.enter_phase()
            self.memory.come_back()
        if state.phase is Phase.FULL:
            self.predictor.start(self.weights)

    def _real_step(self, batch: Batch, fault: NoFault, events: list[str]) -> tuple[float, float, Event]:
        calm = self.state.phase in (Phase.WARMUP, Phase.FULL) and not self.monitor.grace_left
        due = calm and self.state.step - self.last_snapshot_step >= self.snapshot_every
        facts = self._facts() if due else {}
        loss = self._gradients(batch, fault, events)
        fault.gradients(self.weights)
        grad_norm = float(torch.nn.utils.get_total_norm([w.grad for _, w in self.weights if w.grad is not None]))
        self.real_steps += 1
        self.tokens_trained += batch[0].numel()
        verdict = self.monitor.judge(loss, grad_norm, armed=self.state.phase is not Phase.WARMUP)
        if verdict == "skip":
            self.optimizer.zero_grad(set_to_none=True)
            events.append("skipped")
            return loss, grad_norm, "step"
        if verdict == "roll_back":
            self.optimizer.zero_grad(set_to_none=True)
            self._roll_back()
            events.append("rollback")
            return loss, grad_norm, "rollback"
        if verdict == "high":
            events.append("high")
        elif due:  # only now: weights whose loss has been seen to be sound, as they were before this step
            self.snapshots.save(self._tensors(), facts)
            self.last_snapshot_step = self.state.step
            events.append("checkpoint")
        fault.before_update(self.optimizer)
        self.optimizer.step()
        fault.after_update(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        self.predictor.observe(self.weights)
        self.read_out.observe(self.weights)
        self.last_loss = loss
        return loss, grad_norm, "step"

    def _jump(self, batch: Batch, fault: NoFault, events: list[str]) -> tuple[float, float, Event]:
        """Predicts, and undoes it where the probe says so. Returns the probe's loss, and what the predictor took in seconds."""
        for name, weight in self.weights:
            self.before_jump.put(name, weight)
        started_s = self.meter.stop()
        self.predictor.predict(self.weights, self.state.length, (self.state.step - 1) / self.schedule.total)
        jump_s = self.meter.stop() - started_s
        if fault is not NO_FAULT:
            for name, weight in self.weights:
                fault.jumped(name, weight, self.before_jump.get(name, self.device))
        after = self._loss(probe(batch))
        before = self.last_loss if self.monitor.mean is None else self.monitor.mean
        if accepts_jump(before, after, self.jump_margin_nats):
            self.monitor.jumped(after)
            after_jump(self.optimizer, self.moments)
            self.read_out.forget()
            events.append("jump")
            return after, jump_s, "step"
        for name, weight in self.weights:
            self.before_jump.read(name, weight.detach())
        self.predictor.forget()
        events.append("rejected")
        return after, jump_s, "rejected"

    def _gradients(self, batch: Batch, fault: NoFault, events: list[str]) -> float:
        """The step's loss, its gradients in place. Where memory runs out, again in micro-batches of half the size."""
        while True:
            try:
                return self._loss(batch, backward=True, fault=fault)
            except RuntimeError as error:  # torch.OutOfMemoryError is one
                if not ran_out_of_memory(error):
                    raise
                if self.accumulation >= len(batch[0]):
                    raise torch.OutOfMemoryError(f"no memory for a micro-batch of one sequence: {error}") from None
            self.optimizer.zero_grad(set_to_none=True)  # not above: there the traceback still holds the activations
            give_back()
            self.accumulation *= 2
            events.append("halved")

    def _loss(self, batch: Batch, backward: bool = False, fault: NoFault = NO_FAULT) -> float:
        """Mean loss over the batch in nats, micro-batch by micro-batch, their gradients accumulated if `backward`."""
        total = torch.zeros((), device=self.device)
        for micro in zip(*(part.chunk(self.accumulation) for part in batch)):  # fewer where the batch is smaller
            fault.forward(micro, batch)
            with torch.set_grad_enabled(backward):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    loss = self.loss_fn(self.model, micro) * (len(micro[0]) / len(batch[0]))
            if backward:
                loss.backward()
            total += loss.detach()
        return float(total)

    def _roll_back(self) -> None:
        """Weights and optimizer as at the last snapshot; steps, clock and batches go on, so nothing is got for free."""
        if (snapshot := self.snapshots.load()) is None:
            raise RuntimeError("diverged before the first snapshot: there is nothing to roll back to")
        self._load(snapshot[0], snapshot[1]["optimizer"])
        self.predictor.forget()
        self.read_out.forget()
        self.monitor.reset()

    def snapshot(self) -> None:
        """Saves the state as it is between two steps. Not to be called in Predict."""
        self.snapshots.save(*self.state_dict())

    def state_dict(self) -> tuple[Tensors, dict[str, Any]]:
        """All that the next steps depend on, as tensors and as JSON values. Not to be called in Predict."""
        return self._tensors(), self._facts()

    def _tensors(self) -> Tensors:
        tensors: Tensors = {f"model.{name}": weight.detach() for name, weight in self.weights}
        tensors |= optimizer_tensors(self.optimizer, self.weights)
        tensors |= {f"average.{name}": tensor for name, tensor in self.read_out.mean.items()}
        return tensors | {f"predictor.{name}": kept for name, kept in self.predictor.state_dict().items()}

    def _facts(self) -> dict[str, Any]:
        state = self.state
        return dict(
            phase_state=[state.step, str(state.phase), state.index, state.length, state.cycle],
            real_steps=self.real_steps,
            tokens_trained=self.tokens_trained,
            last_snapshot_step=self.last_snapshot_step,
            last_loss=self.last_loss,
            monitor=self.monitor.state_dict(),
            optimizer=optimizer_counters(self.optimizer),
            averaged=self.read_out.taken,
            accumulation=self.accumulation,
        )

    def load_state_dict(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        self._load(tensors, facts["optimizer"])
        self.predictor.load_state_dict(under("predictor.", tensors))
        self.read_out.mean, self.read_out.taken = under("average.", tensors), facts["averaged"]
        step, phase, index, length, cycle = facts["phase_state"]
        self.state = PhaseState(step, Phase(phase), index, length, cycle)
        self.monitor.load_state_dict(facts["monitor"])
        for name in ("real_steps", "tokens_trained", "last_snapshot_step", "last_loss", "accumulation"):
            setattr(self, name, facts[name])

    def _load(self, tensors: dict[str, Tensor], counters: list[dict[str, Any]]) -> None:
        with torch.no_grad():
            for name, weight in self.weights:
                weight.copy_(tensors[f"model.{name}"])
        load_optimizer(self.optimizer, self.weights, tensors, counters)


def probe(batch: Batch) -> Batch:
    """The part of a batch that a jump is judged by."""
    return tuple(part[: -(-len(part) // PROBE_PARTS)] for part in batch)


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
