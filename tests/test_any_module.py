"""Any module, any optimizer: buffers, sparse and half-precision weights, frozen and empty ones, batches of any form."""

import copy
import math
import warnings
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from hybridlib import HybridOptimizer, Linear, Phase, PhaseSchedule, Predictor, Spectral
from hybridlib.method.offload import OptimizerOffload
from hybridlib.method.predictors import make_predictor
from hybridlib.method.predictors.base import Weights, is_embedding, is_matrix
from hybridlib.method.settings import predictor_settings
from hybridlib.study.arm import PredictorSettings
from hybridlib.training.checkpoint import CheckpointFile, read, write
from hybridlib.training.objective import Objective
from hybridlib.training.optimizers import CombinedOptimizer, WeightAverage
from hybridlib.training.states import copied
from hybridlib.training.trainer import HybridTrainer

CYCLES = PhaseSchedule(warmup=3, full=4, predict=5, correct=2, total=64)
EVERY = sorted(predictor_settings())
LossFn = Callable[[nn.Module, Any], Tensor]


def make(*extra: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), *extra, nn.Linear(16, 1))


def batch(at: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(at))
    return x, x.sin().sum(1, keepdim=True)


def loss_of(model: nn.Module, of: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.mse_loss(model(of[0]), of[1])


def trainer_of(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    predictor: Predictor | None = None,
    loss_fn: LossFn = loss_of,
    **more: Any,
) -> HybridTrainer:
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=0.01)
    hybrid = HybridOptimizer(optimizer, model.named_parameters(), CYCLES, predictor or Spectral(gain=1.2, momentum=0.5))
    return HybridTrainer(hybrid, Objective(model, loss_fn, more.pop("accumulation", 1)), **more)


def go(trainer: HybridTrainer, steps: int, batches: Callable[[int], Any] = batch) -> list[tuple]:
    records = (trainer.step(batches(trainer.real_steps)) for _ in range(steps))
    return [(r.step, r.phase, r.loss, r.grad_norm, r.event) for r in records]


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def plain(state: Any) -> Any:
    """A state that can be compared: tensors as bytes and types."""
    if isinstance(state, Tensor):
        return str(state.dtype), state.shape, state.cpu().contiguous().view(-1).view(torch.uint8).tolist()
    if isinstance(state, dict):
        return {key: plain(value) for key, value in state.items()}
    return [plain(value) for value in state] if isinstance(state, (list, tuple)) else state


class Wild(Predictor, by_name=False):
    """Predicts nonsense."""

    def predict(self, weights: Weights, horizon: int, progress: float) -> None:
        for _, weight in weights:
            weight.mul_(math.inf)


# Buffers


def test_a_rejected_jump_leaves_buffers_as_they_were() -> None:
    model = make()
    trainer = trainer_of(model, predictor=Wild())
    go(trainer, 7)
    before, events = values(model), [go(trainer, 1)[0][4]]
    while "rejected" not in events:
        events += [record[4] for record in go(trainer, 1)]
    assert events[0] == "jump" and len(events) < 20 and same(values(model), before)


def test_a_skipped_step_and_a_rollback_leave_buffers_finite() -> None:
    """A forward pass over what is not finite spoils running means before anything can be judged."""
    model = make()
    trainer = trainer_of(model)
    go(trainer, 6)
    before, snapshot = values(model), trainer.snapshots.load()
    spoilt = batch(0)[0] * math.nan, batch(0)[1]
    assert trainer.step(spoilt).event == "skipped" and same(values(model), before)
    while not trainer.state.real:
        go(trainer, 1)
    go(trainer, 1)
    assert [trainer.step(spoilt).event for _ in range(2)][-1] == "rollback"
    assert all(torch.equal(buffer, snapshot["buffers"][name]) for name, buffer in model.named_buffers())
    assert all(torch.equal(weight, snapshot["weights"][name]) for name, weight in model.named_parameters())


def test_a_buffer_that_is_replaced_by_a_new_tensor_is_seen() -> None:
    class Averaging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(6))
            self.linear = nn.Linear(6, 1)

        def forward(self, x: Tensor) -> Tensor:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
            return self.linear(x - self.mean)

    model = Averaging()
    trainer = trainer_of(model)
    go(trainer, 5)
    assert torch.equal(trainer.state_dict()["buffers"]["mean"], model.mean)


# Optimizers


def two_dimensional(model: nn.Module) -> list[Tensor]:
    return [weight for weight in model.parameters() if weight.ndim == 2]


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "Adadelta": lambda m: torch.optim.Adadelta(m.parameters(), lr=1.0),
    "Adafactor": lambda m: torch.optim.Adafactor(m.parameters(), lr=0.05),
    "Adagrad": lambda m: torch.optim.Adagrad(m.parameters(), lr=0.05),
    "Adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.01, amsgrad=True),
    "AdamW": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, fused=True),
    "Adamax": lambda m: torch.optim.Adamax(m.parameters(), lr=0.01),
    "ASGD": lambda m: torch.optim.ASGD(m.parameters(), lr=0.05, t0=3),
    "Muon": lambda m: torch.optim.Muon(two_dimensional(m), lr=0.01),
    "NAdam": lambda m: torch.optim.NAdam(m.parameters(), lr=0.01),
    "RAdam": lambda m: torch.optim.RAdam(m.parameters(), lr=0.01),
    "RMSprop": lambda m: torch.optim.RMSprop(m.parameters(), lr=0.01, centered=True, momentum=0.5),
    "Rprop": lambda m: torch.optim.Rprop(m.parameters(), lr=0.01),
    "SGD": lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9, nesterov=True),
}


def two_as_one(model: nn.Module) -> torch.optim.Optimizer:
    """Muon over matrices and Adam over the rest, as the study has them."""
    others = [weight for weight in model.parameters() if weight.ndim != 2]
    return CombinedOptimizer(
        torch.optim.SGD(two_dimensional(model), lr=0.05, momentum=0.9), torch.optim.Adam(others, lr=0.01)
    )


BY_CLOSURE, SPARSE = {"LBFGS"}, {"SparseAdam"}


def test_every_optimizer_of_torch_is_tried() -> None:
    there = {
        name
        for name, cls in vars(torch.optim).items()
        if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)
    }
    assert there - {"Optimizer"} <= OPTIMIZERS.keys() | BY_CLOSURE | SPARSE


def resumed(
    make_trainer: Callable[[], HybridTrainer], batches: Callable[[int], Any], folder: Path
) -> tuple[HybridTrainer, HybridTrainer]:
    """A trainer, and one that went on from its checkpoint of the second Full; both 40 steps old, and bitwise alike."""
    one, other = make_trainer(), make_trainer()
    go(one, 17, batches)
    file = CheckpointFile(folder / "checkpoint.safetensors", dict, {})
    file.save(one.state_dict())
    wanted = plain(one.optimizer.state_dict())
    go(other, 5, batches)
    other.load_state_dict(file.load())
    assert plain(other.optimizer.state_dict()) == wanted
    assert go(one, 23, batches) == go(other, 23, batches)
    assert same(values(one.objective.model), values(other.objective.model))
    assert plain(one.optimizer.state_dict()) == plain(other.optimizer.state_dict())
    return one, other


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if hasattr(torch.optim, name)])
def test_every_optimizer_learns_and_resumes_bitwise_from_a_file(name: str, tmp_path: Path) -> None:
    def make_trainer() -> HybridTrainer:
        model = make()
        return trainer_of(model, OPTIMIZERS[name](model))

    start = loss_of(make().eval(), batch(999)).item()
    one, _ = resumed(make_trainer, batch, tmp_path)
    assert loss_of(one.objective.model.eval(), batch(999)).item() < start


def test_two_optimizers_as_one_are_resumed_copied_and_added_to(tmp_path: Path) -> None:
    def make_trainer() -> HybridTrainer:
        model = make()
        return trainer_of(model, two_as_one(model))

    resumed(make_trainer, batch, tmp_path)
    model, extra = make(), nn.Parameter(torch.ones(()))
    optimizer = two_as_one(model)
    optimizer.add_param_group(dict(params=[extra]))
    its_model, its_extra, copied_one = copy.deepcopy((model, extra, optimizer))
    for net, scale, stepping in ((model, extra, optimizer), (its_model, its_extra, copied_one)):
        (loss_of(net, batch(0)) * scale).backward()
        stepping.step()
        assert scale.item() == pytest.approx(0.99) and len(stepping.param_groups) == 3
    assert same(values(model), values(its_model)) and not same(values(model), values(make()))


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tok_emb = nn.Embedding(40, 8, sparse=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.tok_emb(tokens).sum((1, 2))


def tokens(at: int) -> tuple[Tensor, Tensor]:
    drawn = torch.randint(40, (16, 3), generator=torch.Generator().manual_seed(at))
    return drawn, drawn.float().sin().sum(1)


@pytest.mark.parametrize("optimizer", [torch.optim.SparseAdam, torch.optim.SGD, torch.optim.Adagrad])
def test_sparse_gradients_are_stepped_judged_jumped_and_resumed(optimizer: Any, tmp_path: Path) -> None:
    def make_trainer() -> HybridTrainer:
        model = Bag()
        return trainer_of(model, optimizer(model.parameters(), lr=0.05))

    one, _other = resumed(make_trainer, tokens, tmp_path)
    assert all(math.isfinite(norm) and norm > 0 for _, _, _, norm, _ in go(one, 10, tokens) if norm is not None)


def test_what_a_scheduler_set_comes_back_with_a_checkpoint(tmp_path: Path) -> None:
    def make_both() -> tuple[HybridTrainer, OneCycleLR]:
        trainer = trainer_of(make())
        return trainer, OneCycleLR(trainer.optimizer, 0.03, total_steps=80)

    def scheduled(trainer: HybridTrainer, rate: OneCycleLR, steps: int) -> list[tuple]:
        seen = []
        for _ in range(steps):
            seen += go(trainer, 1)
            rate.step()
        return seen

    (one, its_rate), (other, other_rate) = make_both(), make_both()
    scheduled(one, its_rate, 17)
    CheckpointFile(tmp_path / "c.safetensors", dict, {}).save(one.state_dict())
    other.load_state_dict(CheckpointFile(tmp_path / "c.safetensors", dict, {}).load())
    other_rate.load_state_dict(its_rate.state_dict())
    mine, others = (
        [{k: v for k, v in g.items() if k != "params"} for g in t.optimizer.param_groups] for t in (one, other)
    )
    assert mine == others and mine[0]["lr"] not in (0.01, 0.03) and mine[0]["betas"][0] not in (0.85, 0.9, 0.95)
    assert scheduled(one, its_rate, 20) == scheduled(other, other_rate, 20)


def test_a_scheduler_steps_with_the_trainer_without_a_warning() -> None:
    trainer = trainer_of(make())
    rate = StepLR(trainer.optimizer, 1, 0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(20):
            go(trainer, 1)
            rate.step()


@pytest.mark.parametrize("by_hook", [True, False])
def test_gradients_are_clipped_by_the_trainer_or_by_a_hook_as_in_the_plain_loop(by_hook: bool) -> None:
    """What is recorded is the norm before."""
    looped, trained, norms = make(), make(), []
    plainly, inner = (torch.optim.SGD(model.parameters(), lr=0.05) for model in (looped, trained))
    if by_hook:
        inner.register_step_pre_hook(lambda *_: nn.utils.clip_grad_norm_(trained.parameters(), 0.1) and None)
    optimizer = HybridOptimizer(inner, trained.named_parameters(), PhaseSchedule(3, 10, 0, 0, 20), Linear())
    records = go(HybridTrainer(optimizer, Objective(trained, loss_of), clip_norm=None if by_hook else 0.1), 20)
    for at in range(20):
        plainly.zero_grad()
        loss_of(looped, batch(at)).backward()
        norms.append(nn.utils.clip_grad_norm_(looped.parameters(), 0.1).item())
        plainly.step()
    assert same(values(looped), values(trained)) and [record[3] for record in records] == norms and max(norms) > 0.1


def test_a_rollback_keeps_the_rate_that_the_clock_has_come_to() -> None:
    trainer = trainer_of(make())
    rate, spoilt = StepLR(trainer.optimizer, 1, 0.9), (batch(0)[0] * math.nan, batch(0)[1])
    for _ in range(5):
        go(trainer, 1)
        rate.step()
    assert [trainer.step(spoilt).event for _ in range(2)] == ["skipped", "rollback"]
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * 0.9**5)


def test_a_parameter_of_the_loss_is_saved_and_rolled_back_with_the_model() -> None:
    model, scale = make(), nn.Parameter(torch.tensor(0.5))
    spoilt = batch(0)[0] * math.nan, batch(0)[1]
    optimizer = torch.optim.Adam([*model.parameters(), scale], lr=0.01)
    trainer = trainer_of(
        model, optimizer, loss_fn=lambda m, b: loss_of(m, b) * torch.exp(-scale) + scale, snapshot_every=4
    )
    go(trainer, 5)
    kept = trainer.snapshots.load()
    moment = kept["optimizer"]["state"][len(list(model.parameters()))]["exp_avg"]
    (name,) = kept["weights"].keys() - dict(model.named_parameters()).keys()
    assert scale.item() != kept["weights"][name].item()
    assert [trainer.step(spoilt).event for _ in range(2)] == ["skipped", "rollback"]
    assert torch.equal(scale.detach(), kept["weights"][name]) and torch.equal(optimizer.state[scale]["exp_avg"], moment)
    go(trainer, 20)
    assert math.isfinite(scale.item()) and scale.item() != kept["weights"][name].item()


def test_a_loss_whose_parameters_have_the_models_names_is_kept_apart() -> None:
    model, head = nn.Linear(6, 6), nn.Linear(6, 1)
    optimizer = HybridOptimizer(torch.optim.Adam(head.parameters(), lr=0.01), head.named_parameters(), CYCLES, Linear())
    trainer = HybridTrainer(optimizer, Objective(model, lambda m, b: nn.functional.mse_loss(head(m(b[0])), b[1])))
    kept = [copy.deepcopy(weight) for weight in (model.weight, head.weight)]
    state = copy.deepcopy(trainer.state_dict())
    with torch.no_grad():
        model.weight.zero_(), head.weight.zero_()
    trainer.load_state_dict(state)
    assert torch.equal(model.weight, kept[0]) and torch.equal(head.weight, kept[1])


# Parameters that are not like others


def test_frozen_weights_stay_and_take_no_copies() -> None:
    model = make()
    model[0].requires_grad_(False)
    trainer = trainer_of(model)
    before = values(model)
    go(trainer, 30)
    assert torch.equal(model[0].weight, before["0.weight"]) and not torch.equal(model[4 - 1].weight, before["3.weight"])
    store, trained = trainer.optimizer.predictor.store, sum(w.nbytes for w in model.parameters() if w.requires_grad)
    assert sum(kept.shape.numel() * kept.dtype.itemsize for kept in store.entries().values()) == 2 * trained
    assert not [name for name in [*store.names(), *trainer.optimizer._predicted.before_jump.names()] if ".0." in name]


@pytest.mark.parametrize("name", EVERY)
def test_a_jump_of_no_weights_moves_nothing(name: str) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = HybridOptimizer(
        optimizer, model.named_parameters(), PhaseSchedule(1, 4, 3, 1, 18), make_predictor(name)
    )
    model.requires_grad_(False)
    while optimizer.nominal_steps < 18:
        optimizer.step(loss=1.0)


@pytest.mark.parametrize("name", EVERY)
def test_weights_are_frozen_and_unfrozen_in_the_middle(name: str) -> None:
    """Within one phase and across jumps: what was frozen stays where it was, and all is finite."""
    model = make()
    trainer = trainer_of(model, predictor=make_predictor(name))
    for at in range(60):
        if at in (2, 9, 22, 31, 40):
            model[0].requires_grad_(False)
            frozen = model[0].weight.detach().clone()
        if at in (4, 11, 36, 37, 41):
            model[0].requires_grad_(True)
        go(trainer, 1)
        assert model[0].weight.requires_grad or torch.equal(model[0].weight, frozen)
    assert all(weight.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("name", EVERY)
def test_a_path_that_froze_over_a_checkpoint_starts_anew(name: str) -> None:
    """A copy of what another set of weights went through is no path of theirs."""
    model, fresh = make(), make()
    one, other = trainer_of(model, predictor=make_predictor(name)), trainer_of(fresh, predictor=make_predictor(name))
    model[0].requires_grad_(False)
    go(one, 17)
    other.load_state_dict(one.state_dict())
    go(other, 20)
    assert all(weight.isfinite().all() for weight in fresh.parameters())


def test_empty_and_whole_numbered_parameters_are_left_alone() -> None:
    nothing = nn.Identity()
    nothing.empty = nn.Parameter(torch.empty(0, 3))
    nothing.counts = nn.Parameter(torch.arange(3), requires_grad=False)
    model = make(nothing)
    trainer = trainer_of(model)
    records = go(trainer, 30)
    assert any(event == "jump" for *_, event in records) and nothing.counts.tolist() == [0, 1, 2]
    assert [name for name, _ in trainer.optimizer.parameters] == [
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "4.weight",
        "4.bias",
    ]
    while trainer.state.phase is Phase.PREDICT:
        go(trainer, 1)
    trainer.load_state_dict(copy.deepcopy(trainer.state_dict()))
    go(trainer, 10)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_did_not_move_do_not_jump(name: str, dtype: torch.dtype) -> None:
    """In half precision a small step is lost: no displacement, so no jump, and nothing that is not finite."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1)).to(dtype)
    nn.init.zeros_(model[0].bias)
    optimizer = HybridOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.0), model.named_parameters(), CYCLES, make_predictor(name)
    )
    before = values(model)
    while optimizer.nominal_steps < 40:
        for weight in model.parameters():
            weight.grad = torch.ones_like(weight)
        optimizer.step()
    for name, weight in values(model).items():  # a line through equal points is level to rounding
        torch.testing.assert_close(weight, before[name], rtol=1e-6 if dtype == torch.float32 else 0.0, atol=0.0)


def test_half_precision_weights_jump_in_their_own_precision() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1)).bfloat16()
    trainer = trainer_of(model, torch.optim.SGD(model.parameters(), lr=0.05))
    records = go(trainer, 40, lambda at: tuple(part.bfloat16() for part in batch(at)))
    assert any(event == "jump" for *_, event in records)
    assert all(weight.isfinite().all() and weight.dtype == torch.bfloat16 for weight in model.parameters())


def test_a_model_cast_in_the_middle_is_undone_by_value_not_by_bytes() -> None:
    model = nn.Linear(6, 6)
    sgd, schedule = torch.optim.SGD(model.parameters(), lr=0.1), PhaseSchedule(0, 1, 2, 1, 9)
    optimizer = HybridOptimizer(sgd, model.named_parameters(), schedule, Linear())
    model(torch.ones(6)).sum().backward()
    optimizer.update()
    before = model.weight.detach().clone()
    optimizer.jump()
    model.double()
    optimizer.undo_jump()
    assert torch.equal(model.weight, before.double())


def test_complex_weights_are_stepped_saved_and_not_predicted(tmp_path: Path) -> None:
    class Spectrum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.filter, self.linear = nn.Parameter(torch.randn(4, dtype=torch.complex64)), nn.Linear(6, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(torch.fft.irfft(torch.fft.rfft(x) * self.filter, n=6))

    one, _ = resumed(lambda: trainer_of(Spectrum()), batch, tmp_path)
    assert "filter" not in [name for name, _ in one.optimizer.parameters]


def test_dropout_draws_the_same_after_a_resume(tmp_path: Path) -> None:
    def make_trainer() -> HybridTrainer:
        return trainer_of(make(nn.Dropout(0.3)))

    one, other = make_trainer(), make_trainer()
    go(one, 17)
    file = CheckpointFile(tmp_path / "c.safetensors", dict, {})
    file.save(one.state_dict())
    ahead = go(one, 20)
    torch.manual_seed(99)
    other.load_state_dict(file.load())
    assert go(other, 20) == ahead and same(values(one.objective.model), values(other.objective.model))


def test_a_trainer_takes_its_own_state() -> None:
    one, other = trainer_of(make()), trainer_of(make())
    go(one, 17), go(other, 17)
    one.load_state_dict(one.state_dict())
    assert go(one, 20) == go(other, 20)


def test_no_state_is_saved_in_predict() -> None:
    trainer = trainer_of(make())
    trainer.offload = OptimizerOffload(trainer.optimizer)
    go(trainer, 9)
    with pytest.raises(RuntimeError, match="in Predict"):
        trainer.state_dict()
    wanted = trainer_of(make())
    go(wanted, 5)
    trainer.load_state_dict(copied(wanted.state_dict()))
    assert go(trainer, 20) == go(wanted, 20)


def test_loading_in_predict_forgets_the_steps_that_were_left_of_it() -> None:
    one, other = trainer_of(make()), trainer_of(make())
    go(one, 5), go(other, 9)
    other.load_state_dict(copied(one.state_dict()))
    assert other.state == one.state and go(one, 20) == go(other, 20)


# Averages


def test_an_exception_while_the_average_is_in_restores_the_weights() -> None:
    model, average = make(), WeightAverage(steps=4)
    named = list(model.named_parameters())
    average.observe(named)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    average.observe(named)
    before, optimizer = values(model), torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ZeroDivisionError), average.applied(named, optimizer):
        assert not torch.equal(model[0].weight, before["0.weight"])
        raise ZeroDivisionError
    assert same(values(model), before)


def test_half_precision_weights_are_averaged_in_float32() -> None:
    """In bfloat16 a thousandth of a difference is lost, and the mean would stay near where it began."""
    average, weight, seen = WeightAverage(steps=1000), torch.zeros(3, dtype=torch.bfloat16), []
    for at in range(1000):
        weight.fill_(5.0 + 2.0 * at / 1000)
        seen.append(weight.float().mean().item())
        average.observe([("w", weight)])
    assert average.mean["w"].dtype == torch.float32
    assert (
        average.mean["w"].mean().item() == pytest.approx(sum(seen) / 1000, abs=1e-3) == pytest.approx(5.999, abs=1e-2)
    )


# Batches

Pair = namedtuple("Pair", ["x", "y"])


def encoded(x: Tensor, y: Tensor) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.BatchEncoding(dict(x=x, y=y))


FORMS: dict[str, tuple[Callable[[Tensor, Tensor], Any], Callable[[Any], tuple[Tensor, Tensor]]]] = {
    "dictionary": (lambda x, y: dict(x=x, y=y), lambda b: (b["x"], b["y"])),
    "ordered": (lambda x, y: OrderedDict(x=x, y=y), lambda b: (b["x"], b.pop("y"))),
    "batch_encoding": (encoded, lambda b: (b.x, b["y"])),
    "named_tuple": (Pair, lambda b: (b.x, b.y)),
    "nested": (lambda x, y: [dict(inputs=(x, "text")), Pair(None, y)], lambda b: (b[0]["inputs"][0], b[1].y)),
    "with_others": (
        lambda x, y: dict(
            scale=torch.tensor(1.0), x=x, names=["a", "b"], table=torch.ones(20, 6), lengths=x.shape, y=y
        ),
        lambda b: (b["x"] * b["scale"] * b["table"][19], b["y"]),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_batches_of_any_form_train_as_a_tuple_does(form: str) -> None:
    """In micro-batches, where each part has the form of the whole."""
    wrap, unwrap = FORMS[form]
    kinds = set()

    def wrapped_loss(model: nn.Module, part: Any) -> Tensor:
        kinds.add(type(part))
        return loss_of(model, unwrap(part))

    one, other = trainer_of(make(), accumulation=2), trainer_of(make(), loss_fn=wrapped_loss, accumulation=2)
    assert go(one, 20)[-1][2:4] == go(other, 20, lambda at: wrap(*batch(at)))[-1][2:4]
    assert kinds == {type(wrap(*batch(0)))} and same(values(one.objective.model), values(other.objective.model))


def test_a_batch_without_a_tensor_is_refused_by_its_type() -> None:
    with pytest.raises(ValueError, match="dict"):
        trainer_of(make()).step(dict(names=["a"]))


# Which parameters are matrices


@pytest.mark.parametrize(
    ("name", "shape", "matrix", "embedding"),
    [
        ("pos_emb.weight", (8, 4), False, False),
        ("transformer.wpe.weight", (8, 4), False, False),
        ("pos_embed", (1, 8, 4), False, False),
        ("embeddings.position_embeddings.weight", (8, 4), False, False),
        ("tok_emb.weight", (8, 4), False, True),
        ("model.embed_tokens.weight", (8, 4), False, True),
        ("lm_head.weight", (8, 4), True, False),
        ("conv1.weight", (8, 4, 3, 3), True, False),
        ("patch_embed.proj.weight", (8, 3, 4, 4), True, False),
        ("vit.embeddings.patch_embeddings.projection.weight", (8, 3, 4, 4), True, False),
        ("h.0.attn.c_attn.weight", (4, 12), True, False),
        ("ln_f.weight", (4,), False, False),
        ("cls_token", (1, 1, 4), False, False),
        ("tok_emb.scale", (4,), False, False),
    ],
)
def test_axes_and_names_say_what_a_parameter_is(
    name: str, shape: tuple[int, ...], matrix: bool, embedding: bool
) -> None:
    weight = torch.zeros(shape)
    assert (is_matrix(name, weight), is_embedding(name, weight)) == (matrix, embedding)


def orthogonalized(predictor: Spectral, model: nn.Module) -> set[str]:
    return {name for name, weight in model.named_parameters() if predictor.is_linear(name, weight)}


def test_a_group_or_a_function_says_better() -> None:
    model = nn.ModuleDict(
        dict(tok_emb=nn.Embedding(7, 4), odd=nn.Linear(4, 4), conv=nn.Conv1d(4, 4, 3), pos_emb=nn.Embedding(5, 4))
    )
    named, tables = list(model.named_parameters()), [model["tok_emb"].weight, model["pos_emb"].weight]
    by_default, by_group, by_function = Spectral(), Spectral(), Spectral()
    HybridOptimizer(torch.optim.SGD(model.parameters(), 0.1), named, CYCLES, by_default)
    assert orthogonalized(by_default, model) == {"tok_emb.weight", "odd.weight", "conv.weight"}
    odd, conv = (list(model[name].parameters()) for name in ("odd", "conv"))
    groups = [dict(params=odd, orthogonalize=False), dict(params=tables, orthogonalize=True), dict(params=conv)]
    HybridOptimizer(torch.optim.SGD(groups, 0.1), named, CYCLES, by_group)
    assert orthogonalized(by_group, model) == {
        "tok_emb.weight",
        "pos_emb.weight",
        "conv.weight",
    }  # conv's group says nothing
    is_odd = lambda name, weight: name.startswith("odd")  # noqa: E731
    HybridOptimizer(torch.optim.SGD(groups, 0.1), named, CYCLES, by_function, is_matrix=is_odd)
    assert orthogonalized(by_function, model) == {"odd.weight"}


# Predictors of one's own, and settings


def test_a_predictor_defined_in_a_notebook_is_used_by_object_and_by_name() -> None:
    class LastStepTwice(Predictor):
        copies = 1

        def __init__(self, gain: float = 1.0, unit: "OfMyOwn | None" = None) -> None:  # noqa: F821
            super().__init__()
            self.gain = gain

        def observe(self, weights: Weights) -> None:
            for name, weight in weights:
                if name in self.store:
                    self.store.put(f"step.{name}", weight.detach() - self.store.get(name))
                self.store.put(name, weight)

        def predict(self, weights: Weights, horizon: int, progress: float) -> None:
            for name, weight in weights:
                weight.add_(self.store.get(f"step.{name}"), alpha=self.gain)

    by_object, by_name = make(), make()
    assert PredictorSettings(name="last_step_twice", gain=2.0).settings == dict(gain=2.0)
    with pytest.raises(ValueError, match="gain: 'two'"):
        PredictorSettings(name="last_step_twice", gain="two")
    with pytest.raises(ValueError, match="gain = 'two'"):
        make_predictor("last_step_twice", gain="two")
    go(trainer_of(by_object, predictor=LastStepTwice(2.0)), 30)
    go(trainer_of(by_name, predictor=make_predictor("last_step_twice", gain=2.0)), 30)
    assert same(values(by_object), values(by_name))


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 40), st.floats(-2, 2),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e-12, 1 - 1e-12]),
    st.sampled_from(["fp32", "bf16", "fp16", ""]), st.just([]),
)  # fmt: skip


@pytest.mark.parametrize("name", EVERY)
@given(data=st.data())
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_what_settings_are_accepted_construct_and_what_are_refused_are_named(name: str, data: st.DataObject) -> None:
    kinds = predictor_settings()[name]
    chosen = (
        {key: data.draw(ANYTHING, label=key) for key in data.draw(st.sets(st.sampled_from(sorted(kinds))))}
        if kinds
        else {}
    )
    try:
        accepted = PredictorSettings(name=name, **chosen).settings
    except ValueError as error:
        assert any(f"{key}: {chosen[key]!r}" in str(error) for key in chosen)
        with pytest.raises(ValueError) as refused:
            make_predictor(name, **chosen)
        assert any(f"{key} = {chosen[key]!r}" in str(refused.value) for key in chosen)
        return
    assert isinstance(make_predictor(name, **accepted), Predictor)


def test_a_mean_of_weights_begins_for_those_that_are_unfrozen_later() -> None:
    model = make()
    model[0].requires_grad_(False)
    trainer = trainer_of(model, average=WeightAverage(3))
    go(trainer, 2)
    model[0].requires_grad_(True)
    go(trainer, 1)
    assert "0.weight" in trainer.average.mean
    with trainer.average.applied(trainer.optimizer.weights, trainer.optimizer):
        assert all(weight.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("kept", ["offload", "checkpoint"])
def test_a_state_that_lies_as_channels_last_weights_do_comes_back_so(tmp_path: Path, kept: str) -> None:
    """Fused Adam reads weights and moments element by element of their memory, in whichever order that is."""
    ends = []
    for away in (False, True):
        torch.manual_seed(0)
        model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        adam = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
        for at in range(6):
            if away and at == 3 and kept == "offload":
                offload = OptimizerOffload(adam)
                offload.offload()
                offload.restore()
            if away and at == 3 and kept == "checkpoint":
                write(tmp_path / "state", adam.state_dict())
                adam.load_state_dict(read(tmp_path / "state"))
            adam.zero_grad()
            images = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(at))
            model(images.to(memory_format=torch.channels_last)).square().mean().backward()
            adam.step()
        moments = adam.state[model.weight]["exp_avg"]
        assert moments.stride() == model.weight.stride()
        ends.append([model.weight.detach().clone(), moments.clone()])
    assert all(torch.equal(*pair) for pair in zip(*ends))


def test_a_state_of_a_type_that_no_file_holds_is_refused_by_its_place(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="cannot hold a tensor of torch.complex128, as a.b is"):
        write(tmp_path / "state", dict(a=dict(b=torch.zeros(2, dtype=torch.complex128))))
