"""Are weights predictable at all? One computed trajectory, and every predictor's forecasts against it."""

from collections.abc import Callable

import torch
from torch import Tensor

from hybridlib.method.predictors.base import Predictor
from hybridlib.method.schedule import Phase
from hybridlib.study.run import Run
from hybridlib.training.assemble import make_trainer
from hybridlib.training.data import DataSource
from hybridlib.training.experiment import held_out_loss

Point = list[Tensor]  # every parameter, in the model's order


def record(run: Run, source: DataSource, steps: int) -> list[Point]:
    """The weights before the first and after each of `steps` steps of plain training."""
    trainer = make_trainer(run.model_copy(update=dict(schedule=None, predictor=None)), torch.device("cpu"))
    points = [snapshot(trainer.optimizer.weights)]
    for k in range(steps):
        trainer.step(source.batch(run.seed, k))
        points.append(snapshot(trainer.optimizer.weights))
    return points


def snapshot(weights: list[tuple[str, Tensor]]) -> Point:
    return [weight.detach().clone() for _, weight in weights]


def forecast_errors(
    names: list[str], points: list[Point], make: Callable[[], Predictor], full: int, start: int, horizons: list[int]
) -> list[dict[str, float]]:
    """Error of forecasts made at step `start` against horizon, as a share of what holding still gets wrong.

    The predictor watches the `full` computed steps that end at `start`. `error_ratio` is
    |forecast - weights(start + h)| / |weights(start) - weights(start + h)|, 2-norms over all parameters; 1 for `hold`.
    """
    rows = []
    for horizon in horizons:
        predictor, walker = make(), [(name, tensor.clone()) for name, tensor in zip(names, points[0])]
        watch(predictor, walker, points[start - full : start + 1])
        predictor.predict(walker, horizon, start / (len(points) - 1))
        truth = points[start + horizon]
        error = distance([tensor for _, tensor in walker], truth)
        rows.append(dict(start=start, horizon_steps=horizon, error_ratio=error / distance(points[start], truth)))
    return rows


def watch(predictor: Predictor, walker: list[tuple[str, Tensor]], window: list[Point]) -> None:
    """One Full phase seen from outside: `start` on the window's first point, `observe` on each later one."""
    for i, point in enumerate(window):
        for (_, tensor), value in zip(walker, point):
            tensor.copy_(value)
        predictor.observe(walker) if i else predictor.start(walker)


def distance(one: Point, other: Point) -> float:
    return float(torch.stack([(a - b).norm() for a, b in zip(one, other)]).norm())


def loss_after_correct(run: Run, source: DataSource, cycles: int, held_out: int = 4) -> dict[str, float]:
    """Held-out loss in nats around the jumps of the first `cycles` cycles, what a jump is really judged by.

    `loss_computed` is plain training's after as many real steps. Means over the cycles.
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
