"""Which weights a run is judged by: those that it trains, or an average of them that costs no gradient."""

from contextlib import contextmanager
from typing import Any, Iterator

import torch
from torch import Tensor

from hybridlib.method.predictors.base import Weights
from hybridlib.method.wrapping import wrapped


class WeightAverage:
    """The mean of the weights over the last computed steps, at most `steps` of them and none from before a jump.

    A running mean, in float32 or finer, so that it takes one copy of the weights; past `steps` it forgets exponentially.
    With `steps` 1 it keeps nothing. Schedule-free's own average is read out in any case.

    Args:
        steps: how many computed steps the mean goes over, at least 1.
    """

    def __init__(self, steps: int = 1) -> None:
        self.steps, self.taken = steps, 0
        self.mean: dict[str, Tensor] = {}

    @torch.no_grad()
    def observe(self, weights: Weights) -> None:
        """Take in the weights after a computed step."""
        if self.steps == 1:
            return
        self.taken += 1
        for name, weight in weights:
            value = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
            if self.taken == 1:
                self.mean[name] = value.clone()
            else:
                self.mean[name] = self.mean[name].to(value.device).lerp_(value, 1 / min(self.taken, self.steps))

    def forget(self) -> None:
        """Begin anew: the weights jumped or were rolled back."""
        self.taken = 0
        self.mean.clear()

    @contextmanager
    def applied(self, weights: Weights, optimizer: Any) -> Iterator[None]:
        """Put the weights to be judged into the model for the time of the block, however it ends."""
        averaging = [part for part in wrapped(optimizer) if hasattr(part, "eval") and hasattr(part, "train")]
        trained = {name: weight.detach().clone() for name, weight in weights if name in self.mean}
        for part in averaging:
            part.eval()
        self._put(weights, self.mean)
        try:
            yield
        finally:
            self._put(weights, trained)
            for part in averaging:
                part.train()

    def state_dict(self) -> dict[str, Any]:
        return dict(mean=dict(self.mean), taken=self.taken)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean, self.taken = dict(state["mean"]), state["taken"]

    @staticmethod
    @torch.no_grad()
    def _put(weights: Weights, values: dict[str, Tensor]) -> None:
        for name, weight in weights:
            if name in values:
                weight.copy_(values[name])
