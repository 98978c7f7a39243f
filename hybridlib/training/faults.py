"""Faults put in on purpose, to see them detected and recovered from. Off unless an arm asks for one.

A trainer passes its critical points to a `NoFault`, which leaves all as it is; each fault overrides one of them. A fault
strikes at one nominal step, whether the run was resumed or not.
"""

import math
from typing import Any

import torch
from torch import Tensor

from hybridlib.config import Fault
from hybridlib.training.models import Batch
from hybridlib.training.predictors.base import Weights


class NoFault:
    """The critical points of a step, and what happens there in a run in which nothing is wrong: nothing."""

    def batch(self, batch: Batch) -> Batch:
        """What is trained on."""
        return batch

    def forward(self, micro: Batch, whole: Batch) -> None:
        """Before a micro-batch's forward pass. May raise what an allocator raises."""

    def gradients(self, weights: Weights) -> None:
        """After the backward pass, before anything is judged."""

    def before_update(self, optimizer: Any) -> None: ...

    def after_update(self, optimizer: Any) -> None: ...

    def jumped(self, name: str, weight: Tensor, before: Tensor) -> None:
        """After a jump, a parameter at a time, given with its values from before."""


NO_FAULT = NoFault()


class LearningRateSpike(NoFault):
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def before_update(self, optimizer: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] *= self.factor

    def after_update(self, optimizer: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] /= self.factor


class ScaledGradient(NoFault):
    """Every gradient times `factor`: exploding, vanishing, infinite or not a number."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def gradients(self, weights: Weights) -> None:
        for _, weight in weights:
            weight.grad.mul_(self.factor)


class CorruptBatch(NoFault):
    """Tokens and targets that are noise, as from a broken file."""

    def batch(self, batch: Batch) -> Batch:
        generator, last = torch.Generator().manual_seed(0), int(max(part.max() for part in batch))
        return tuple(torch.randint(last + 1, part.shape, generator=generator).to(part.device) for part in batch)


class WildJump(NoFault):
    """A jump `factor` times as far."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    @torch.no_grad()
    def jumped(self, name: str, weight: Tensor, before: Tensor) -> None:
        weight.copy_(before + self.factor * (weight - before))


class OutOfMemory(NoFault):
    """Memory for half of the batch, and no more."""

    def forward(self, micro: Batch, whole: Batch) -> None:
        if 2 * len(micro[0]) > len(whole[0]):
            raise torch.OutOfMemoryError("simulated: no memory for more than half of the batch")


def make_fault(fault: Fault) -> NoFault:
    """What an arm's `fault` does at its step."""
    match fault.kind:
        case "lr_spike":
            return LearningRateSpike(fault.factor)
        case "exploding_gradient":
            return ScaledGradient(fault.factor)
        case "vanishing_gradient":
            return ScaledGradient(1 / fault.factor)
        case "nan_gradient":
            return ScaledGradient(math.nan)
        case "inf_gradient":
            return ScaledGradient(math.inf)
        case "corrupt_batch":
            return CorruptBatch()
        case "wild_jump":
            return WildJump(fault.factor)
    return OutOfMemory()
