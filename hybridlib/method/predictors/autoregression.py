"""Displacements as linear functions of those before them: a tensor at a time, or all parameters at once."""

import torch

from hybridlib.method.predictors.base import History, Weights
from hybridlib.method.settings import Count, NotNegative, Small, Window


class Ridge(History):
    """Autoregression on displacements: each step's is a linear combination of the `order` before it.

    One set of coefficients a tensor, by ridge regression over its elements and the steps seen, then rolled out to the
    horizon. Exact where the displacements follow such a recursion, up to the penalty.

    Args:
        window: iterates kept, at least 3.
        order: displacements that the next is a combination of, at least 1.
        penalty: of the regression, as a share of the displacements' mean square, at least 0.
        gain: how many times the forecast displacement the weights move.
    """

    def __init__(self, window: Window = 16, order: Count = 3, penalty: NotNegative = 1e-3, gain: float = 1.0) -> None:
        super().__init__(window)
        self.order, self.penalty, self.gain = order, penalty, gain

    def forecast(self, weights: Weights, horizon: int) -> None:
        for name, weight in weights:
            moved = self.displacements(name, weight)
            order = min(self.order, len(moved) - 1)
            products = (moved @ moved.T).double()  # (steps, steps): all that the regression needs
            steps = range(order, len(moved))
            gram = sum(products[t - order : t, t - order : t] for t in steps)
            target = sum(products[t - order : t, t] for t in steps)
            eye = torch.eye(order, dtype=gram.dtype, device=gram.device)
            scale = gram.trace() / order
            if scale == 0:
                continue
            coefficients = torch.linalg.solve(gram + self.penalty * scale * eye, target)
            total = rolled_out(coefficients, horizon).to(moved) @ moved[-order:]
            weight.add_(total.view_as(weight).to(weight.dtype), alpha=self.gain)


def rolled_out(coefficients: torch.Tensor, horizon: int) -> torch.Tensor:
    """(order,) weights of the last displacements in the sum of the next `horizon` ones; all oldest first.

    The recursion's roots are pulled into the unit circle: a forecast may not explode.
    """
    order = len(coefficients)
    companion = torch.zeros(order, order, dtype=coefficients.dtype, device=coefficients.device)
    companion[:-1, 1:] = torch.eye(order - 1)
    companion[-1] = coefficients
    return sum_of_powers(companion, horizon)[-1]


def sum_of_powers(matrix: torch.Tensor, horizon: int) -> torch.Tensor:
    """M + M^2 + … + M^horizon, for M with its eigenvalues pulled into the unit circle."""
    values, vectors = torch.linalg.eig(matrix)
    values = values / values.abs().clamp_min(1.0)
    powers = torch.stack([values**h for h in range(1, horizon + 1)]).sum(0)
    return (vectors @ powers.diag() @ torch.linalg.pinv(vectors)).real


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
        step = (
            torch.linalg.pinv(before, rtol=self.cutoff**2, hermitian=True) @ across
        )  # coefficients of the next displacements
        share = sum_of_powers(step, horizon) @ step[:, -1]
        for name, weight in weights:
            moved = self.displacements(name, weight)
            total = share.to(moved) @ moved[:-1]
            weight.add_(total.view_as(weight).to(weight.dtype), alpha=self.gain)

    def _products(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        moved = self.displacements(name, weight).double()
        return (moved @ moved.T).cpu()
