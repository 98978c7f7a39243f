"""A look-ahead at every step instead of a jump: the gradient is taken where the weights are heading."""

import torch

from hybridlib.method.predictors.base import Hold, Weights
from hybridlib.method.settings import Momentum, NotNegative, Share


class EmaNesterov(Hold):
    """Compute each gradient `reach` average increments ahead of the weights; steps of Predict are held.

    After EMA-Nesterov (Yau et al. 2026, arXiv 2605.25395), whose look-ahead points along the exponential moving average
    of the weights' increments, and is left out at the beginning and at the end of the run. Here the optimizer's step
    is taken from the weights, and only its gradient ahead of them.

    Args:
        reach: how many average increments ahead, at least 0.
        decay: of the average, 0 to below 1, per computed step.
        begin: the share of the run before which nothing is looked ahead, 0 to 1.
        until: the share of the run after which nothing is looked ahead, 0 to 1.
    """

    copies = 2  # the last weights, the average increment

    def __init__(self, reach: NotNegative = 3.0, decay: Momentum = 0.9, begin: Share = 0.1, until: Share = 0.8) -> None:
        super().__init__()
        self.reach, self.decay, self.begin, self.until = reach, decay, begin, until

    @torch.no_grad()
    def before_gradient(self, weights: Weights, progress: float) -> None:
        if self.begin <= progress < self.until:
            for name, weight in weights:
                if f"average.{name}" in self.store:
                    weight.add_(self.store.get(f"average.{name}", weight.device), alpha=self.reach)

    @torch.no_grad()
    def observe(self, weights: Weights) -> None:
        for name, weight in weights:
            if f"last.{name}" in self.store:
                moved = weight - self.store.get(f"last.{name}", weight.device)
                average = self.store.get(f"average.{name}", weight.device)
                self.store.put(f"average.{name}", average.lerp_(moved, 1 - self.decay))
            else:
                self.store.put(f"average.{name}", torch.zeros_like(weight))
            self.store.put(f"last.{name}", weight)
