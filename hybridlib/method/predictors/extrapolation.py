"""Straight lines: the displacement of a Full phase, or of the last iterates, goes on."""

import torch

from hybridlib.method.predictors.base import History, Predictor, Weights
from hybridlib.method.settings import Window


class Linear(Predictor):
    """Goes on along the last Full phase's mean displacement a step, `gain` times as far as the horizon asks.

    Exact on a straight line walked at constant speed.

    Args:
        gain: how many times as far as the horizon asks.
    """

    copies = 1

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain

    def start(self, weights: Weights) -> None:
        for name, weight in weights:
            self.store.put(f"start.{name}", weight)
        self.store.put("steps", torch.zeros((), dtype=torch.int64))

    def observe(self, weights: Weights) -> None:
        if "steps" in self.store:
            self.store.put("steps", self.store.get("steps") + 1)

    @torch.no_grad()
    def predict(self, weights: Weights, horizon: int, progress: float) -> None:
        steps = int(self.store.get("steps"))
        if steps == 0:
            return
        for name, weight in weights:
            start = self.store.get(f"start.{name}", weight.device)
            weight.add_(weight - start, alpha=self.gain * horizon / steps)


class Drift(History):
    """Goes on along the least-squares line through the last `window` iterates: the drift between their averages.

    Noise that one step puts in and the next takes out is averaged away. Exact on a straight line.

    Args:
        window: iterates kept, at least 3.
        gain: how many times as far as the horizon asks.
    """

    def __init__(self, window: Window = 16, gain: float = 1.0) -> None:
        super().__init__(window)
        self.gain = gain

    def forecast(self, weights: Weights, horizon: int) -> None:
        for name, weight in weights:
            points = self.iterates(name, weight)
            times = torch.arange(len(points), dtype=torch.float32, device=points.device)
            centred = times - times.mean()
            slope = centred @ points / (centred @ centred)
            ahead = points.mean(0) + slope * (self.gain * horizon + times[-1] - times.mean())
            weight.copy_(ahead.view_as(weight))
