"""Which weights a run is judged by: those that it trains, or an average of them that costs no gradient."""

from contextlib import contextmanager
from typing import Any, Iterator

import torch
from schedulefree import AdamWScheduleFree
from torch import Tensor

from hybridlib.training.predictors.base import Weights


class ReadOut:
    """The mean of the weights over the last real steps, at most `steps` of them and none from before a jump.

    A running mean, so that it takes one copy of the weights; past `steps` it forgets exponentially. With `steps` 1 it
    keeps nothing. Schedule-free's own average is read out in any case.
    """

    def __init__(self, steps: int = 1) -> None:
        self.steps, self.taken = steps, 0
        self.mean: dict[str, Tensor] = {}

    @torch.no_grad()
    def observe(self, weights: Weights) -> None:
        """After every real step."""
        if self.steps == 1:
            return
        self.taken += 1
        for name, weight in weights:
            if self.taken == 1:
                self.mean[name] = weight.detach().clone()
            else:
                self.mean[name].lerp_(weight, 1 / min(self.taken, self.steps))

    def forget(self) -> None:
        """The weights jumped or were rolled back."""
        self.taken = 0
        self.mean.clear()

    @contextmanager
    def applied(self, weights: Weights, optimizer: Any) -> Iterator[None]:
        """The weights to be judged are in the model, for the time of the evaluation."""
        if isinstance(optimizer, AdamWScheduleFree):
            optimizer.eval()
            yield
            optimizer.train()
            return
        trained = {name: weight.detach().clone() for name, weight in weights if name in self.mean}
        self._put(weights, self.mean)
        yield
        self._put(weights, trained)

    @staticmethod
    @torch.no_grad()
    def _put(weights: Weights, values: dict[str, Tensor]) -> None:
        for name, weight in weights:
            if name in values:
                weight.copy_(values[name])
