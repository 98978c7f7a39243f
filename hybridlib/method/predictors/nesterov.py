"""Outer Nesterov momentum: the last displacement, and those before it, go on."""

from collections.abc import Iterator
from itertools import groupby

import torch
from torch import Tensor

from hybridlib.method.predictors.base import Predictor, Weights
from hybridlib.method.settings import Momentum, Share

# Small matrices share a call. A large one fills a CPU, and the memory of a jump, alone; a GPU takes as long to launch a
# call for several.
BATCH_ELEMENTS = dict(cpu=1 << 19, cuda=1 << 24)


class Nesterov(Predictor):
    """Replace the displacement since the last landing point by `gain` times its Nesterov look-ahead.

    This is the outer optimizer of DiLoCo (Douillard et al. 2023, algorithm 1) with one worker.

    Args:
        gain: how many times the look-ahead the weights move from the last landing.
        momentum: of the look-ahead, 0 to below 1, per cycle.
        fade: the share of the gain that is gone at the end of the run, 0 to 1; it goes linearly.
        fade_from: the share of the run from which it goes, 0 to below 1.
    """

    copies = 2  # the last landing point, the momentum

    def __init__(
        self, gain: float = 0.7, momentum: Momentum = 0.7, fade: Share = 0.0, fade_from: Momentum = 0.6
    ) -> None:
        super().__init__()
        self.gain, self.momentum, self.fade, self.fade_from = gain, momentum, fade, fade_from

    def start(self, weights: Weights) -> None:
        """Take `weights` for the first landing point, where training began; later ones are the predictor's own."""
        if not self.store.names():
            for name, weight in weights:
                self.store.put(f"anchor.{name}", weight)
                self.store.put(f"momentum.{name}", torch.zeros_like(weight))

    @torch.no_grad()
    def predict(self, weights: Weights, horizon: int, progress: float) -> None:
        faded = self.fade * min(max((progress - self.fade_from) / (1 - self.fade_from), 0.0), 1.0)
        for group in of_equal_shape(weights):
            self.move(group, 1 - faded)

    def move(self, group: Weights, share: float) -> None:
        """Move a `group` of parameters of equal shape by the `share` of the gain that has not faded."""
        ahead = [self.look_ahead(name, weight.detach()) for name, weight in group]
        for (name, weight), (direction, gain) in zip(group, self.directions(group, ahead)):
            self.land(name, weight.detach(), direction, gain * share)

    def look_ahead(self, name: str, weight: Tensor, rows: slice | None = None) -> Tensor:
        """Bring the momentum of the parameter `name` up to date; return where it points from the last landing.

        `weight` is the parameter, or its `rows` along the first axis. Two copies of it are held in memory.
        """
        anchor, momentum = (self.store.get(f"{what}.{name}", weight.device, rows) for what in ("anchor", "momentum"))
        displacement = torch.sub(weight, anchor, out=anchor)
        torch.add(displacement, momentum, alpha=self.momentum, out=momentum)
        self.store.put(f"momentum.{name}", momentum, rows)
        return displacement.add_(momentum, alpha=self.momentum)

    def land(self, name: str, weight: Tensor, direction: Tensor, gain: float, rows: slice | None = None) -> None:
        """Move `weight`, the parameter `name` or its `rows`, from the last landing `gain` times along `direction`.

        The direction may lie in `weight` itself.
        """
        anchor = self.store.get(f"anchor.{name}", weight.device, rows)
        torch.add(anchor, direction, alpha=gain, out=weight)
        self.store.put(f"anchor.{name}", weight, rows)

    def directions(self, group: Weights, ahead: list[Tensor]) -> list[tuple[Tensor, float]]:
        """Return the direction of each jump, and how many times it is taken before the gain fades.

        `ahead` are the look-aheads of a `group` of parameters of equal shape; they may be changed in place.
        """
        return [(each, self.gain) for each in ahead]


def of_equal_shape(weights: Weights) -> Iterator[Weights]:
    """Yield `weights` in groups of equal shape on one device, of at most `BATCH_ELEMENTS` elements or one parameter."""
    kind = lambda named: (tuple(named[1].shape), str(named[1].device))  # noqa: E731
    for _, group in groupby(sorted(weights, key=kind), key=kind):
        together = list(group)
        weight = together[0][1]
        size = max(BATCH_ELEMENTS.get(weight.device.type, BATCH_ELEMENTS["cpu"]) // weight.numel(), 1)
        yield from (together[at : at + size] for at in range(0, len(together), size))
