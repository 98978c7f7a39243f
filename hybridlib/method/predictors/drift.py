import torch

from hybridlib.method.predictors.base import History, Weights
from hybridlib.method.settings import Window


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
