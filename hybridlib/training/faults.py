"""Faults injected on purpose, to test that they are detected and recovered from. Only an arm that asks gets one.

A fault wraps what it spoils: the objective, the predictor or the learning rate. It strikes at one nominal step, in a
resumed run too; at all others what it wraps behaves as before.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hybridlib.method.predictors.base import Weights
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


@torch.no_grad()
def wild(
    predict: Callable[..., None], strikes: Callable[[], bool], factor: float, weights: Weights, *given: Any
) -> None:
    """Have `predict` move the `weights`, with what else it is `given`, `factor` times as far while `strikes()`."""
    before = [weight.detach().clone() for _, weight in weights] if strikes() else []
    predict(weights, *given)
    for (_, weight), start in zip(weights, before):
        weight.copy_(start + factor * (weight - start))


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
            predictor = trainer.optimizer.predictor
            predictor.predict = partial(wild, predictor.predict, strikes, fault.factor)
        case "out_of_memory":
            trainer.objective = SpoiltObjective(trainer.objective, strikes, memory=0.5)
        case kind:
            trainer.objective = SpoiltObjective(trainer.objective, strikes, gradient=gradients[kind])
