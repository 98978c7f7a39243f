import torch

from hybridlib.method.predictors.base import Predictor, Weights


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
