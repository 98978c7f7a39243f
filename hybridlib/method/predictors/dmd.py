import torch

from hybridlib.method.predictors.base import History, Weights
from hybridlib.method.predictors.ridge import sum_of_powers
from hybridlib.method.settings import Small, Window


class Dmd(History):
    """Dynamic mode decomposition (Schmid 2010, "Dynamic mode decomposition of numerical and experimental data", section 2.1).

    The displacements of a few steps span a space; the linear map that takes each to the next, in that space and over all
    parameters at once, is rolled out to the horizon. Singular directions below `cutoff` of the largest are noise, and
    left out. Exact on a sum of fewer geometric modes than there are displacements.

    Args:
        window: iterates kept, at least 3.
        cutoff: the smallest singular value kept, as a share of the largest, in (0, 1).
        gain: how many times the forecast displacement the weights move.
    """

    def __init__(self, window: Window = 8, cutoff: Small = 1e-3, gain: float = 1.0) -> None:
        super().__init__(window)
        self.cutoff, self.gain = cutoff, gain

    def forecast(self, weights: Weights, horizon: int) -> None:
        products = sum(self._products(name, weight) for name, weight in weights)  # (steps, steps)
        before, across = products[:-1, :-1], products[:-1, 1:]
        step = torch.linalg.pinv(before, rtol=self.cutoff**2, hermitian=True) @ across  # coefficients of the next displacements
        share = sum_of_powers(step, horizon) @ step[:, -1]
        for name, weight in weights:
            moved = self.displacements(name, weight)
            total = share.to(moved) @ moved[:-1]
            weight.add_(total.view_as(weight).to(weight.dtype), alpha=self.gain)

    def _products(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        moved = self.displacements(name, weight).double()
        return (moved @ moved.T).cpu()
