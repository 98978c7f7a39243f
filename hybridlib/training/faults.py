"""Faults injected on purpose, to test that they are detected and recovered from. Only an arm that asks gets one.

A fault wraps what it spoils: the objective, the predictor or the learning rate. It strikes at one nominal step, in a
resumed run too; at all others what it wraps behaves as before.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hybridlib.method.predictors.base import Predictor, Weights
from hybridlib.study.arm import Fault
from hybridlib.study.records import StepRecord
from hybridlib.training.objective import Objective, mapped, size_of, tensors_of
from hybridlib.training.trainer import HybridTrainer


class SpoiltObjective(Objective):
    """The `objective`, with gradients, batch or memory spoilt while `strikes()` is true.

    Gradients are multiplied by `gradient`, `batch` returns what is trained on instead of a batch, and `memory` is the
    share of a batch that memory suffices for.
    """

    def __init__(
        self,
        objective: Objective,
        strikes: Callable[[], bool],
        gradient: float = 1.0,
        batch: Callable[[Any], Any] = lambda batch: batch,
        memory: float = 1.0,
    ) -> None:
        super().__init__(objective.model, objective.loss_fn, objective.accumulation, objective.precision)
        self.strikes, self.gradient, self.batch, self.memory = strikes, gradient, batch, memory

    def backward(self, batch: Any) -> float:
        if not self.strikes():
            return super().backward(batch)
        if math.ceil(size_of(batch) / self.accumulation) > self.memory * size_of(batch):
            raise torch.OutOfMemoryError("simulated: no memory for more than half of the batch")
        loss = super().backward(self.batch(batch))
        if self.gradient != 1.0:
            for weight in self.model.parameters():
                if weight.grad is not None:
                    weight.grad.mul_(self.gradient)
        return loss


class WildPredictor(Predictor, by_name=False):
    """The `predictor`, jumping `factor` times as far while `strikes()` is true; `factor` is above 1."""

    def __init__(self, predictor: Predictor, strikes: Callable[[], bool], factor: float) -> None:
        self.predictor, self.strikes, self.factor = predictor, strikes, factor
        self.store, self.copies = predictor.store, predictor.copies
        self.start, self.observe = predictor.start, predictor.observe

    @torch.no_grad()
    def predict(self, weights: Weights, horizon: int, progress: float) -> None:
        before = [weight.detach().clone() for _, weight in weights] if self.strikes() else []
        self.predictor.predict(weights, horizon, progress)
        for (_, weight), start in zip(weights, before):
            weight.copy_(start + self.factor * (weight - start))


def noise(batch: Any) -> Any:
    """Return a batch of the form of `batch` whose tokens are noise, as from a broken file."""
    generator, last = torch.Generator().manual_seed(0), int(max(part.max() for part in tensors_of(batch)))

    def random_like(part: Tensor) -> Tensor:
        return torch.randint(last + 1, part.shape, generator=generator).to(part.device)

    return mapped(batch, random_like)


def struck(fault: Fault, record: StepRecord) -> bool:
    """Return whether `fault` spoilt the step of `record`: a jump, or any other a computed step."""
    return "jump" in record.event if fault.kind == "wild_jump" else bool(record.real)


def install(fault: Fault, trainer: HybridTrainer) -> None:
    """Put `fault` into `trainer`, to strike at the step that it names."""

    def strikes() -> bool:
        return trainer.state.step == fault.step

    def spike(optimizer: Any, *_: Any) -> None:
        for group in optimizer.param_groups if strikes() else ():
            group["lr"] *= fault.factor

    def settle(optimizer: Any, *_: Any) -> None:
        for group in optimizer.param_groups if strikes() else ():
            group["lr"] /= fault.factor

    gradients = dict(
        exploding_gradient=fault.factor,
        vanishing_gradient=1 / fault.factor,
        nan_gradient=math.nan,
        inf_gradient=math.inf,
    )
    match fault.kind:
        case "lr_spike":
            trainer.optimizer.optimizer.register_step_pre_hook(spike)
            trainer.optimizer.optimizer.register_step_post_hook(settle)
        case "corrupt_batch":
            trainer.objective = SpoiltObjective(trainer.objective, strikes, batch=noise)
        case "wild_jump":
            trainer.optimizer.predictor = WildPredictor(trainer.optimizer.predictor, strikes, fault.factor)
        case "out_of_memory":
            trainer.objective = SpoiltObjective(trainer.objective, strikes, memory=0.5)
        case kind:
            trainer.objective = SpoiltObjective(trainer.objective, strikes, gradient=gradients[kind])
