"""HybridTrainer against the plain loop, itself, and its guards."""

import math
from itertools import count
from typing import Any

import pytest
import torch
from torch import nn

from hybridlib.method.guards import DivergenceMonitor
from hybridlib.method.offload import OptimizerOffload
from hybridlib.method.optimizer import HybridOptimizer
from hybridlib.method.predictors import make_predictor
from hybridlib.method.predictors.base import Predictor, Weights
from hybridlib.method.schedule import PhaseSchedule
from hybridlib.study.run import Model, Source
from hybridlib.training.checkpoint import Snapshots
from hybridlib.training.data import open_source
from hybridlib.training.loss import loss_fn
from hybridlib.training.models import build
from hybridlib.training.objective import Objective
from hybridlib.training.optimizers import WeightAverage
from hybridlib.training.states import copied
from hybridlib.training.trainer import HybridTrainer

SIZES = Model(n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=32)
CYCLES = PhaseSchedule(warmup=3, full=4, predict=5, correct=2, total=60)
EDGES = PhaseSchedule(warmup=0, full=4, predict=5, correct=0, total=60)  # no Warmup, and no Correct after a jump
PLAIN = PhaseSchedule(warmup=3, full=10, predict=0, correct=0, total=60)
DATA = open_source(Source(kind="markov"), 32, 8, 8)


def make(
    schedule: PhaseSchedule = CYCLES,
    predictor: str | Predictor = "spectral",
    offload: bool = False,
    accumulation: int = 1,
    precision: str = "fp32",
    jump_margin_nats: float = 4.0,
    **guards,
) -> HybridTrainer:
    model = build(SIZES, seed=1)
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    predictor = make_predictor(predictor) if isinstance(predictor, str) else predictor
    optimizer = HybridOptimizer(adam, model.named_parameters(), schedule, predictor, jump_margin_nats=jump_margin_nats)
    objective = Objective(model, loss_fn, accumulation, precision)
    return HybridTrainer(optimizer, objective, offload=OptimizerOffload(optimizer) if offload else None, **guards)


def go(trainer: HybridTrainer, steps: int) -> list[tuple]:
    """The records without time and memory."""
    records = (trainer.step(DATA.batch(0, trainer.real_steps)) for _ in range(steps))
    return [(r.step, r.phase, r.real, r.loss, r.grad_norm, r.tokens_trained, r.event) for r in records]


def flat(trainer: HybridTrainer) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for _, weight in trainer.optimizer.weights])


def test_without_predict_it_is_bitwise_the_plain_loop() -> None:
    model = build(SIZES, seed=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for k in range(30):
        loss = loss_fn(model, DATA.batch(0, k))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    trainer = make(PLAIN)
    assert [record[3] for record in go(trainer, 30)] == losses
    assert torch.equal(flat(trainer), torch.cat([w.detach().flatten() for w in model.parameters()]))


def test_two_identical_runs_are_bitwise_identical() -> None:
    one, other = make(), make()
    assert go(one, 60) == go(other, 60) and torch.equal(flat(one), flat(other))


@pytest.mark.parametrize("schedule", [CYCLES, EDGES])
def test_offloading_changes_no_bit(schedule: PhaseSchedule) -> None:
    kept, away = make(schedule), make(schedule, offload=True)
    assert go(kept, 60) == go(away, 60) and torch.equal(flat(kept), flat(away))


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize(  # in Warmup, between Predict and Correct, in Correct, in Full; without Warmup, after Predict
    "schedule, steps", [(CYCLES, 2), (CYCLES, 12), (CYCLES, 13), (CYCLES, 17), (EDGES, 0), (EDGES, 9), (EDGES, 11)]
)
@pytest.mark.parametrize("predictor", ["spectral", "linear", "sham"])
def test_a_restored_trainer_goes_on_bitwise(predictor: str, schedule: PhaseSchedule, steps: int, offload: bool) -> None:
    one, other = (make(schedule, predictor, offload) for _ in range(2))
    go(one, steps)
    snapshots = Snapshots()
    snapshots.save(one.state_dict())
    other.load_state_dict(snapshots.load())
    assert go(one, 43) == go(other, 43) and torch.equal(flat(one), flat(other))


def test_the_average_is_of_the_steps_since_a_jump_and_is_saved_with_the_rest() -> None:
    one, other = (make(average=WeightAverage(3)) for _ in range(2))
    go(one, 7)
    assert one.average.taken == 7
    go(one, 1)
    assert one.average.taken == 0 and not one.average.mean, "a jump"
    go(one, 7)
    other.load_state_dict(copied(one.state_dict()))
    assert go(one, 2) == go(other, 2) and one.average.taken == other.average.taken > 2
    assert all(torch.equal(mean, other.average.mean[name]) for name, mean in one.average.mean.items())


@pytest.mark.parametrize("schedule", [CYCLES, EDGES])
def test_hold_is_plain_training_on_fewer_steps(schedule: PhaseSchedule) -> None:
    """Skipping alone: the weights after r real steps are those of the plain loop after r."""
    held, plain = make(schedule, "hold"), make(PLAIN)
    records = go(held, 60)
    go(plain, sum(record[2] for record in records))
    assert torch.equal(flat(held), flat(plain))


def test_predicted_steps_compute_no_gradient_and_credit_no_tokens() -> None:
    trainer, jumps = make(), 0
    for record in go(trainer, 60):
        _step, phase, real, loss, grad_norm, _tokens, event = record
        assert real == (phase != "predict")
        jumps += "jump" in event
        if not real:
            assert grad_norm is loss is None
    assert jumps >= 4, "else little was predicted"
    assert trainer.tokens_trained == trainer.real_steps * 64


def test_the_weights_move_at_the_jump_and_nowhere_else_in_predict() -> None:
    trainer = make()
    go(trainer, 7)
    before = flat(trainer)
    go(trainer, 1)
    landed = flat(trainer)
    go(trainer, 4)
    assert not torch.equal(before, landed) and torch.equal(landed, flat(trainer))


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_gives_the_whole_batchs_gradient(parts: int) -> None:
    whole, split = make(PLAIN), make(PLAIN, accumulation=parts)
    for one, other in zip(go(whole, 5), go(split, 5)):
        assert other[3] == pytest.approx(one[3], rel=1e-5) and other[4] == pytest.approx(one[4], rel=1e-3)


def test_bf16_follows_fp32_closely_and_keeps_weights_in_fp32() -> None:
    full, half = make(PLAIN), make(PLAIN, precision="bf16")
    for one, other in zip(go(full, 10), go(half, 10)):
        assert other[3] == pytest.approx(one[3], abs=0.05)
    assert flat(half).dtype == torch.float32


class Wild(Predictor, by_name=False):
    """Predicts nonsense: what the gate is for."""

    def __init__(self, size: Any) -> None:  # what is said to be a number must be finite
        super().__init__()
        self.size = size

    def predict(self, weights: Weights, horizon: int, progress: float) -> None:
        for _, weight in weights:
            weight.detach().mul_(self.size)


@pytest.mark.parametrize("size", [50.0, math.nan, math.inf])
def test_a_wild_jump_is_undone_without_a_trace(size: float) -> None:
    trainer = make(predictor=Wild(size), jump_margin_nats=1.0)
    go(trainer, 7)
    before, taken = flat(trainer), trainer.real_steps
    records = go(trainer, 1)
    while not records[-1][2]:
        records += go(trainer, 1)
    assert [record[6] for record in records] == ["jump", *[""] * (len(records) - 2), "rejected"]
    assert torch.equal(flat(trainer), before) and trainer.real_steps == taken + 1
    assert (trainer.state.phase, trainer.state.index, trainer.state.step) == ("full", 1, records[-1][0] + 1)


@pytest.mark.parametrize("offload", [False, True])
def test_a_spike_is_rolled_back_to_the_snapshot_and_training_recovers(offload: bool) -> None:
    trainer = make(snapshot_every=20, offload=offload, monitor=DivergenceMonitor(grace_steps=1))
    go(trainer, 46)
    healthy = trainer.monitor.mean
    for group in trainer.optimizer.param_groups:
        group["lr"] *= 1000
    while not trainer.state.real:
        go(trainer, 1)
    go(trainer, 1)
    for group in trainer.optimizer.param_groups:
        group["lr"] /= 1000
    events = [record[6] for record in go(trainer, 4)]
    assert "rollback" in events and trainer.monitor.mean is None
    later = [record[3] for record in go(trainer, 30) if record[2]]
    assert min(later[:20]) < healthy


def test_one_gradient_that_is_not_finite_is_skipped_and_a_second_rolls_back() -> None:
    trainer = make(PLAIN)
    go(trainer, 12)
    snapshot = trainer.snapshots.load()["weights"]
    before, calls = flat(trainer), count()

    def poisoned(model: nn.Module, batch) -> torch.Tensor:
        return loss_fn(model, batch) * (math.nan if next(calls) in (0, 2, 3) else 1.0)

    trainer.objective.loss_fn = poisoned
    assert go(trainer, 1)[0][6] == "skipped" and torch.equal(flat(trainer), before)
    assert go(trainer, 1)[0][6] == "" and not torch.equal(flat(trainer), before)
    assert [record[6] for record in go(trainer, 2)] == ["skipped", "rollback"]
    assert all(torch.equal(w, snapshot[name]) for name, w in trainer.optimizer.weights)


def test_a_rollback_leaves_the_learning_rate_where_its_schedule_has_it() -> None:
    trainer, calls = make(PLAIN), count()
    go(trainer, 12)
    for group in trainer.optimizer.param_groups:
        group["lr"] *= 0.25
    trainer.objective.loss_fn = lambda model, batch: loss_fn(model, batch) * (math.nan if next(calls) < 2 else 1.0)
    assert [record[6] for record in go(trainer, 2)] == ["skipped", "rollback"]
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [0.25 * 1e-3]


def test_one_high_loss_is_recorded_and_changes_no_bit() -> None:
    """A baseline is the plain loop also where a batch is unlike the others, or Adam goes too far and comes back."""
    plain, spiked, calls = make(PLAIN), make(PLAIN), count()
    spiked.objective.loss_fn = lambda model, batch: loss_fn(model, batch) + (9.0 if next(calls) in (40, 41) else 0.0)
    go(plain, 60)
    assert [record[0] for record in go(spiked, 60) if "loss_spike" in record[6]] == [41, 42]
    assert torch.equal(flat(plain), flat(spiked))


def test_any_module_and_optimizer_will_do() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    x = torch.randn(64, 4)
    batch = x, x.sum(1, keepdim=True)
    mse = lambda model, b: nn.functional.mse_loss(model(b[0]), b[1])  # noqa: E731
    sgd = torch.optim.SGD(net.parameters(), lr=0.05)
    optimizer = HybridOptimizer(sgd, net.named_parameters(), CYCLES, make_predictor("linear", gain=0.5))
    trainer = HybridTrainer(optimizer, Objective(net, mse))
    losses = [record.loss for record in (trainer.step(batch) for _ in range(60)) if record.real]
    assert losses[-1] < 0.2 * losses[0]
