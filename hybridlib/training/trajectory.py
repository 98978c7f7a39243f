"""The weights along a run: the average that it is judged by, and predictors' forecasts against what was computed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hybridlib.method.predictors.base import Predictor, Weights
from hybridlib.method.schedule import Phase
from hybridlib.method.wrapping import wrapped
from hybridlib.study.run import Run
from hybridlib.training.assemble import make_trainer
from hybridlib.training.data import DataSource
from hybridlib.training.models import Batch, loss_fn

Point = list[Tensor]  # every parameter, in the model's order


class WeightAverage:
    """The mean of the weights over the last computed steps, at most `steps` (at least 1), none from before a jump.

    It is a running mean in float32 or finer, so it takes one copy of the weights; past `steps` it forgets exponentially.
    With `steps` 1 it keeps nothing. Schedule-free's own average is applied in any case.
    """

    def __init__(self, steps: int = 1) -> None:
        self.steps = steps
        self.mean: dict[str, Tensor] = {}
        self.taken = 0

    @torch.no_grad()
    def observe(self, weights: Weights) -> None:
        """Take `weights`, as they are after a computed step, into the mean."""
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
        """Start anew, after a jump or a rollback."""
        self.taken = 0
        self.mean.clear()

    @contextmanager
    def applied(self, weights: Weights, optimizer: Any) -> Iterator[None]:
        """Put the mean into `weights`, and the wrapped `optimizer` into evaluation mode, until the block ends."""
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
        """Return all that `load_state_dict` needs."""
        return dict(mean=dict(self.mean), taken=self.taken)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`, as `state_dict` returned it."""
        self.mean, self.taken = dict(state["mean"]), state["taken"]

    @staticmethod
    @torch.no_grad()
    def _put(weights: Weights, values: dict[str, Tensor]) -> None:
        for name, weight in weights:
            if name in values:
                weight.copy_(values[name])


@torch.no_grad()
def held_out_loss(model: nn.Module, batches: list[Batch]) -> float:
    """Return the mean loss in nats of `model` over `batches`, in float32 whatever the run's precision."""
    return sum(float(loss_fn(model, batch)) for batch in batches) / len(batches)


def record(run: Run, source: DataSource, steps: int) -> list[Point]:
    """Return the weights before the first and after each of `steps` steps of plain training of `run` on `source`."""
    trainer = make_trainer(run.model_copy(update=dict(schedule=None, predictor=None)), torch.device("cpu"))
    points = []
    for k in range(steps + 1):
        points.append([weight.detach().clone() for _, weight in trainer.optimizer.weights])
        if k < steps:
            trainer.step(source.batch(run.seed, k))
    return points


def forecast_errors(
    names: list[str], points: list[Point], make: Callable[[], Predictor], full: int, start: int, horizons: list[int]
) -> list[dict[str, float]]:
    """Return the error of forecasts made at step `start`, a row for each of `horizons` (steps ahead).

    `points` is the trajectory of the parameters `names`. A predictor that `make` returns observes the `full` computed
    steps that end at `start`. `error_ratio` is |forecast - weights(start + h)| / |weights(start) - weights(start + h)|,
    2-norms over all parameters: 1 for `hold`.
    """
    rows = []
    for horizon in horizons:
        predictor, walker = make(), [(name, tensor.clone()) for name, tensor in zip(names, points[0])]
        for i, point in enumerate(points[start - full : start + 1]):  # one Full phase, as a predictor sees it
            for (_, tensor), value in zip(walker, point):
                tensor.copy_(value)
            predictor.observe(walker) if i else predictor.start(walker)
        predictor.predict(walker, horizon, start / (len(points) - 1))
        truth = points[start + horizon]
        error = distance([tensor for _, tensor in walker], truth)
        rows.append(dict(start=start, horizon_steps=horizon, error_ratio=error / distance(points[start], truth)))
    return rows


def distance(one: Point, other: Point) -> float:
    """Return the 2-norm, over all parameters, of the difference of the points `one` and `other`."""
    return float(torch.stack([(a - b).norm() for a, b in zip(one, other)]).norm())


def loss_after_correct(run: Run, source: DataSource, cycles: int, held_out: int = 4) -> dict[str, float]:
    """Return the loss in nats on `held_out` batches of `source` around the jumps of a `run`, means over `cycles` cycles.

    `loss_computed` is the loss of plain training after as many computed steps.
    """
    batches = [source.held_out(i) for i in range(held_out)]
    trainer = make_trainer(run, torch.device("cpu"))
    plain = make_trainer(run.model_copy(update=dict(schedule=None, predictor=None)), torch.device("cpu"))
    seen: dict[str, list[float]] = dict(loss_before=[], loss_after_jump=[], loss_after_correct=[], loss_computed=[])
    while len(seen["loss_after_correct"]) < cycles:
        state = trainer.state
        if state.phase is Phase.PREDICT and state.index == 0:
            seen["loss_before"].append(held_out_loss(trainer.objective.model, batches))
        trainer.step(source.batch(run.seed, trainer.real_steps))
        if state.phase is Phase.PREDICT and state.index == 0:
            seen["loss_after_jump"].append(held_out_loss(trainer.objective.model, batches))
        if state.phase is Phase.CORRECT and state.index == state.length - 1:
            seen["loss_after_correct"].append(held_out_loss(trainer.objective.model, batches))
            while plain.real_steps < trainer.real_steps:
                plain.step(source.batch(run.seed, plain.real_steps))
            seen["loss_computed"].append(held_out_loss(plain.objective.model, batches))
    return {name: sum(values) / len(values) for name, values in seen.items()}
