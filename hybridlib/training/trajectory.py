"""Are weights predictable at all? Every predictor's forecasts, compared with one computed trajectory."""

from collections.abc import Callable

import torch
from torch import Tensor

from hybridlib.method.predictors.base import Predictor
from hybridlib.method.schedule import Phase
from hybridlib.study.run import Run
from hybridlib.training.assemble import make_trainer
from hybridlib.training.data import DataSource
from hybridlib.training.models import held_out_loss
from hybridlib.training.trainer import HybridTrainer

Point = list[Tensor]  # every parameter, in the model's order


def record(run: Run, source: DataSource, steps: int) -> list[Point]:
    """Return the weights before the first and after each of `steps` steps of plain training of `run` on `source`."""
    trainer = plain_trainer(run)
    points = [snapshot(trainer)]
    for _ in range(steps):
        trainer.step(source.batch(run.seed, trainer.real_steps))
        points.append(snapshot(trainer))
    return points


def plain_trainer(run: Run) -> HybridTrainer:
    """Return a trainer that computes every step of `run`, on the CPU."""
    return make_trainer(run.model_copy(update=dict(schedule=None, predictor=None)), torch.device("cpu"))


def snapshot(trainer: HybridTrainer) -> Point:
    """Return a copy of the weights of `trainer`."""
    return [weight.detach().clone() for _, weight in trainer.optimizer.weights]


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
    """Return the loss on `held_out` batches of `source` around the jumps of `run`: nats, means over `cycles` cycles.

    `loss_computed` is the loss of plain training after as many computed steps.
    """
    batches = [source.held_out(i) for i in range(held_out)]
    trainer, plain = make_trainer(run, torch.device("cpu")), plain_trainer(run)
    seen: dict[str, list[float]] = dict(loss_before=[], loss_after_jump=[], loss_after_correct=[], loss_computed=[])

    def note(name: str, of: HybridTrainer) -> None:
        seen[name].append(held_out_loss(of.objective.model, batches))

    while len(seen["loss_after_correct"]) < cycles:
        state = trainer.state
        jumps = state.phase is Phase.PREDICT and state.index == 0
        if jumps:
            note("loss_before", trainer)
        trainer.step(source.batch(run.seed, trainer.real_steps))
        if jumps:
            note("loss_after_jump", trainer)
        if state.phase is Phase.CORRECT and state.index == state.length - 1:
            note("loss_after_correct", trainer)
            while plain.real_steps < trainer.real_steps:
                plain.step(source.batch(run.seed, plain.real_steps))
            note("loss_computed", plain)
    return {name: sum(values) / len(values) for name, values in seen.items()}
