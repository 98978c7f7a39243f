"""Extrapolation of past displacements: straight lines, and linear recursions of one tensor or of all at once."""

import torch

from hybridlib.method.predictors.base import History, Predictor, Weights
from hybridlib.method.settings import Count, NotNegative, Small, Window


class Linear(Predictor):
    """Go on along the last Full phase's mean displacement a step, `gain` times as far as the horizon asks.

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
        self.store.put("steps", torch.zeros((), dtype=torch.int64, device="cpu"))

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
    """Go on along the least-squares line through the last `window` iterates: the drift between their averages.

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


class Ridge(History):
    """Autoregression: each step's displacement is a linear combination of the `order` before it.

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
            regular = gram + self.penalty * scale * eye
            if self.penalty:
                coefficients = torch.linalg.solve(regular, target)
            else:  # it may be singular: displacements that are alike are no more equations than one
                coefficients = torch.linalg.pinv(regular, hermitian=True) @ target
            total = rolled_out(coefficients, horizon).to(moved) @ moved[-order:]
            weight.add_(total.view_as(weight).to(weight.dtype), alpha=self.gain)


def rolled_out(coefficients: torch.Tensor, horizon: int) -> torch.Tensor:
    """Return the weights, (order,), of the last displacements in the sum of the next `horizon`; all oldest first.

    The roots of the recursion with these `coefficients`, (order,), are pulled into the unit circle: no forecast
    explodes.
    """
    order = len(coefficients)
    companion = torch.zeros(order, order, dtype=coefficients.dtype, device=coefficients.device)
    companion[:-1, 1:] = torch.eye(order - 1, device=companion.device)
    companion[-1] = coefficients
    return sum_of_powers(companion, horizon)[-1]


def sum_of_powers(matrix: torch.Tensor, horizon: int) -> torch.Tensor:
    """Return M + M^2 + … + M^horizon for M, `matrix` with its eigenvalues pulled into the unit circle."""
    values, vectors = torch.linalg.eig(matrix)
    values = values / values.abs().clamp_min(1.0)
    powers = torch.stack([values**h for h in range(1, horizon + 1)]).sum(0)
    return (vectors @ powers.diag() @ torch.linalg.pinv(vectors)).real


class Dmd(History):
    """Dynamic mode decomposition (Schmid 2010, "Dynamic mode decomposition of numerical and experimental data", 2.1).

    The displacements of a few steps span a space; the linear map that takes each to the next, in that space and over
    all parameters at once, is rolled out to the horizon. Singular directions below `cutoff` of the largest are noise,
    and left out. Exact on a sum of fewer geometric modes than there are displacements.

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
        # Columns of coefficients, each of the next displacement in those before it.
        step = torch.linalg.pinv(before, rtol=self.cutoff**2, hermitian=True) @ across
        share = sum_of_powers(step, horizon) @ step[:, -1]
        for name, weight in weights:
            moved = self.displacements(name, weight)
            total = share.to(moved) @ moved[:-1]
            weight.add_(total.view_as(weight).to(weight.dtype), alpha=self.gain)

    def _products(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        moved = self.displacements(name, weight).double()
        return (moved @ moved.T).cpu()
