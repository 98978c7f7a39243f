"""HybridOptimizer in people's loops: plain PyTorch, mixed precision, transformers, accelerate, Lightning's contract."""

import copy
import difflib
import inspect
import io
import math
import pickle
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, OneCycleLR, SequentialLR, StepLR

from hybridlib import Drift, Hold, HybridOptimizer, Linear, Nesterov, Phase, PhaseSchedule, Predictor, Spectral
from hybridlib.method.predictors.base import Weights
from hybridlib.method.predictors.ema_nesterov import EmaNesterov

CYCLES = PhaseSchedule(warmup=3, full=4, predict=5, correct=2, total=64)
SHORT = PhaseSchedule(warmup=2, full=3, predict=4, correct=2, total=28)  # 17 of them computed
PREDICTORS: dict[str, Callable[[], Predictor]] = {
    "spectral": lambda: Spectral(gain=1.2, momentum=0.5, fade=0.5, fade_from=0.5),
    "linear": lambda: Linear(gain=0.3),
    "drift": lambda: Drift(window=4, gain=0.3),
    "nesterov": lambda: Nesterov(gain=0.9, momentum=0.4),
}
NANO_STEP_S = (
    0.033  # a step of the nano GPT-2 on two cores, batch and all: assumed, so that this test needs no other's time
)


def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 1))


def batch(at: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(at))
    return x, x.sin().sum(1, keepdim=True)


def loss_of(model: nn.Module, of: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.mse_loss(model(of[0]), of[1])


def hybrid(model: nn.Module, predictor: Predictor | None = None, **settings: Any) -> HybridOptimizer:
    adam, schedule = torch.optim.Adam(model.parameters(), lr=0.01), settings.pop("schedule", CYCLES)
    return HybridOptimizer(adam, model.named_parameters(), schedule, predictor or PREDICTORS["spectral"](), **settings)


def gradients(model: nn.Module, optimizer: HybridOptimizer) -> Tensor:
    """Those of the next batch; returns its loss."""
    optimizer.zero_grad()
    loss = loss_of(model, batch(optimizer.computed_steps))
    loss.backward()
    return loss


def train(model: nn.Module, optimizer: HybridOptimizer, until: int) -> None:
    calls = 0
    while optimizer.nominal_steps < until:
        gradients(model, optimizer)
        optimizer.step()
        calls += 1
        assert calls <= until, "the optimizer does not come forward"


def to_jump(model: nn.Module, optimizer: HybridOptimizer) -> dict[str, Tensor]:
    """Train to the first jump, and return model and buffers as they were before it."""
    while optimizer.position.index + 1 < optimizer.position.length or optimizer.phase is not Phase.FULL:
        optimizer.step(loss=gradients(model, optimizer))
    gradients(model, optimizer)
    optimizer.update()
    before = values(model)
    optimizer.jump()
    return before


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# A plain loop


def plain(model: nn.Module, total: int) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    rate = LambdaLR(optimizer, lambda step: 1 - step / total)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    for step in range(total):
        optimizer.zero_grad()
        loss = loss_of(model, batch(step))
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        rate.step()
    return optimizer


def adopted(model: nn.Module, total: int) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    optimizer = HybridOptimizer(optimizer, model.named_parameters(), CYCLES, Spectral(gain=1.2, momentum=0.5))
    rate = LambdaLR(optimizer, lambda step: 1 - optimizer.nominal_steps / total)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    while optimizer.nominal_steps < total:
        optimizer.zero_grad()
        loss = loss_of(model, batch(optimizer.computed_steps))
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer, loss=loss)
        scaler.update()
        rate.step()
    return optimizer


def by_hand(model: nn.Module, total: int) -> HybridOptimizer:
    """The same without scaler and scheduler, `update` and `jump` called one by one."""
    optimizer = hybrid(model, Spectral(gain=1.2, momentum=0.5))
    while optimizer.nominal_steps < total:
        optimizer.optimizer.param_groups[0]["lr"] = 0.01 * (1 - optimizer.nominal_steps / total)
        gradients(model, optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.update()
        if optimizer.phase is Phase.PREDICT:
            optimizer.jump()
    return optimizer


def test_a_loop_adopts_it_in_five_lines() -> None:
    one, other = (inspect.getsource(loop).splitlines()[1:] for loop in (plain, adopted))
    changed = [line for line in difflib.ndiff(one, other) if line.startswith("+")]
    assert 0 < len(changed) <= 5, changed


def test_the_adopted_loop_clips_scales_and_schedules_as_by_hand() -> None:
    one, other = make(), make()
    adopted(one, 64), by_hand(other, 64)
    assert same(values(one), values(other))


def test_the_adopted_loop_learns_in_half_the_gradients() -> None:
    model = make()
    before, optimizer = loss_of(model, batch(999)).item(), adopted(model, 64)
    assert (
        optimizer.nominal_steps == 64
        and optimizer.computed_steps <= 40
        and loss_of(model, batch(999)).item() < 0.5 * before
    )


@pytest.mark.parametrize("name", PREDICTORS)
def test_the_loop_is_bitwise_hybrid_trainer(name: str) -> None:
    from hybridlib.training.objective import Objective
    from hybridlib.training.trainer import HybridTrainer

    looped, trained = make(), make()
    optimizer = hybrid(looped, PREDICTORS[name]())
    trainer = HybridTrainer(hybrid(trained, PREDICTORS[name]()), Objective(trained, loss_of))
    while optimizer.nominal_steps < 64:
        optimizer.step(loss=gradients(looped, optimizer))
    events = [trainer.step(batch(trainer.real_steps)).event for _ in range(64)]
    assert "jump" in events and "rejected" not in events and same(values(looped), values(trained))


@pytest.mark.parametrize("after_a_jump", [False, True])
def test_a_scaled_step_that_meets_inf_is_no_step(after_a_jump: bool) -> None:
    model = make()
    optimizer, scaler = hybrid(model), torch.amp.GradScaler("cpu", init_scale=1024.0)
    to_jump(model, optimizer) if after_a_jump else train(model, optimizer, 5)
    before, taken, computed = values(model), optimizer.nominal_steps, optimizer.computed_steps
    optimizer.zero_grad()
    scaler.scale(loss_of(model.eval(), batch(0)) * 1e-3).backward()
    next(model.parameters()).grad[0, 0] = math.inf
    scaler.step(optimizer)
    scaler.update()
    assert same(values(model), before) and (optimizer.nominal_steps, optimizer.computed_steps) == (taken, computed)
    assert scaler.get_scale() == 512


def test_scaling_changes_no_bit_of_the_step_after_a_jump() -> None:
    one, other = make(), make()
    for model, scaled in ((one, False), (other, True)):
        optimizer, scaler = hybrid(model), torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        while optimizer.nominal_steps < 30:
            optimizer.zero_grad()
            loss = loss_of(model, batch(optimizer.computed_steps))
            scaler.scale(loss).backward()
            scaler.step(optimizer, loss=loss)
            scaler.update()
    assert same(values(one), values(other))


# The gate


class Wild(Predictor, by_name=False):
    """Predicts nonsense."""

    def __init__(self, size: Any) -> None:
        super().__init__()
        self.size = size

    def predict(self, weights: Weights, horizon: int, progress: float) -> None:
        for _, weight in weights:
            weight.mul_(self.size)


def given_loss(model: nn.Module, optimizer: HybridOptimizer) -> None:
    optimizer.step(loss=gradients(model, optimizer))


def closed(model: nn.Module, optimizer: HybridOptimizer) -> None:
    optimizer.step(lambda: gradients(model, optimizer))


def scaled(model: nn.Module, optimizer: HybridOptimizer) -> None:
    """A jump that overflows what a scaler checks must be undone all the same."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    optimizer.zero_grad()
    loss = loss_of(model, batch(optimizer.computed_steps))
    scaler.scale(loss).backward()
    scaler.step(optimizer, loss=loss)


@pytest.mark.parametrize("step", [given_loss, closed, scaled])
@pytest.mark.parametrize("size", [50.0, math.nan, math.inf])
def test_a_jump_that_went_wrong_is_undone(size: float, step: Callable[[nn.Module, HybridOptimizer], None]) -> None:
    model = make()
    optimizer = hybrid(model, Wild(size), named_buffers=model.named_buffers())
    before = to_jump(model, optimizer)
    moments = [state["exp_avg"].clone() for state in optimizer.state.values()]
    computed = optimizer.computed_steps
    assert not same(values(model), before) and optimizer.nominal_steps == 12
    step(model, optimizer)
    assert same(values(model), before)
    assert all(torch.equal(state["exp_avg"], moment) for state, moment in zip(optimizer.state.values(), moments))
    assert optimizer.phase is Phase.FULL and optimizer.position.index == 1
    assert optimizer.nominal_steps == 13 and optimizer.computed_steps == computed + 1


def test_buffers_that_were_replaced_since_are_put_back_too() -> None:
    """As `model.to`, `accelerator.prepare` and Trainer replace them, after the optimizer was made."""
    model = make()
    optimizer = hybrid(model, Wild(math.inf), named_buffers=model.named_buffers)
    model.double()
    optimizer.zero_grad()
    while optimizer.nominal_steps < 12:
        x, y = batch(optimizer.computed_steps)
        loss = loss_of(model, (x.double(), y.double()))
        loss.backward()
        optimizer.step(loss=loss)
        optimizer.zero_grad()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    loss = loss_of(model, tuple(part.double() for part in batch(0)))
    assert not loss.isfinite() and not model[1].running_mean.isfinite().all()
    optimizer.step(loss=loss)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers() if "mean" in name)


def test_a_jump_whose_weights_have_other_names_now_is_not_undone_in_part() -> None:
    model = make()
    optimizer = hybrid(model, Wild(50.0))
    to_jump(model, optimizer)
    parallel = nn.ModuleDict(dict(module=make()))  # as DistributedDataParallel names them
    resumed = HybridOptimizer(torch.optim.Adam(parallel.parameters()), parallel.named_parameters(), CYCLES, Wild(50.0))
    resumed.load_state_dict(optimizer.state_dict())
    there = values(parallel)
    with pytest.raises(RuntimeError, match="cannot be undone: what it moved is not named weight.0.weight any more"):
        resumed.undo_jump()
    assert same(values(parallel), there)


def test_a_buffer_of_another_shape_keeps_a_jump_from_being_undone_in_part() -> None:
    model = make()
    model.register_buffer("cache", torch.ones(3))
    optimizer = hybrid(model, Wild(50.0), named_buffers=model.named_buffers)
    to_jump(model, optimizer)
    model.cache = torch.ones(4)
    there = values(model)
    with pytest.raises(RuntimeError, match="cannot be undone: buffer.cache has not the shape any more"):
        optimizer.undo_jump()
    assert same(values(model), there)


class ClimbFirst(torch.optim.Optimizer):
    """Moves up along the gradients that it finds, asks only there, and moves down from where it was, as SAM does."""

    def __init__(self, params) -> None:
        super().__init__(params, dict(lr=0.05))

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> None:
        weights = [weight for group in self.param_groups for weight in group["params"]]
        before = [weight.clone() for weight in weights]
        for weight in weights:
            weight.add_(0.05 * weight.grad.sign())
        with torch.enable_grad():
            closure()
        for weight, value in zip(weights, before):
            weight.copy_(value - self.param_groups[0]["lr"] * weight.grad)


class Climb(ClimbFirst):
    """Asks before it climbs, too."""

    def step(self, closure: Callable[[], Tensor]) -> None:
        closure()
        super().step(closure)


@pytest.mark.parametrize("kind", [Climb, ClimbFirst])
def test_an_optimizer_that_moves_before_it_asks_is_asked_again_where_it_is(kind: type[Climb]) -> None:
    ends = []
    for wrapped in (False, True):
        model = make()
        optimizer = kind(model.parameters())
        if wrapped:
            optimizer = HybridOptimizer(optimizer, model.named_parameters(), PhaseSchedule(0, 1, 0, 0, 30), Hold())
        for at in range(30):

            def closure(at: int = at, model: nn.Module = model) -> Tensor:
                model.zero_grad()
                loss = loss_of(model, batch(at))
                loss.backward()
                return loss

            closure()
            optimizer.step(closure)
        ends.append({name: weight.detach() for name, weight in model.named_parameters()})
    assert same(*ends)


@pytest.mark.parametrize("name", PREDICTORS)
def test_a_predictor_begins_anew_with_each_optimizer(name: str) -> None:
    ends, again = [], PREDICTORS[name]()
    for predictor in (again, again, PREDICTORS[name]()):
        model = make()
        train(model, hybrid(model, predictor), 64)
        ends.append(values(model))
    assert same(*ends[:2]) and same(*ends[1:])


@pytest.mark.parametrize("settings", [dict(moments="resett"), dict(jump_margin_nats=-1.0), dict(jump_margin_nats="4")])
def test_a_setting_that_is_none_is_named(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(ValueError, match=f"HybridOptimizer: {name} = .*: must be "):
        hybrid(make(), **settings)


@pytest.mark.parametrize("lengths", [(10, 5, 0.6 * 20, 3, 200), (10, 2.5, 12, 3, 200), (10, 5, 12, 3, 2e2)])
def test_a_schedule_of_parts_of_steps_is_refused_before_anything_moves(lengths: tuple) -> None:
    with pytest.raises(ValueError, match="a schedule's lengths are whole numbers"):
        PhaseSchedule(*lengths)


class Nudge(Hold):
    """Moves the weights in place, as the base class says, without knowing of autograd."""

    def before_gradient(self, weights: Weights, progress: float) -> None:
        for _, weight in weights:
            weight.add_(1.0)


def test_a_predictor_moves_weights_in_place_before_a_gradient() -> None:
    model = make()
    optimizer, before = hybrid(model, Nudge()), values(model)
    with optimizer.looking_ahead():
        assert torch.equal(model[0].weight, before["0.weight"] + 1)
    assert same(values(model), before)


def test_a_closure_takes_its_gradient_ahead_where_the_predictor_looks_ahead() -> None:
    ends = []
    for with_closure in (False, True):
        model = make()
        optimizer = hybrid(model, EmaNesterov(reach=2.0))
        for _ in range(12):
            if with_closure:
                optimizer.step(lambda model=model, optimizer=optimizer: gradients(model, optimizer))
                continue
            with optimizer.looking_ahead():
                loss = gradients(model, optimizer)
            optimizer.step(loss=loss)
        ends.append(values(model))
    assert same(*ends)


def test_where_full_is_one_step_the_step_that_undoes_a_jump_is_followed_by_the_next() -> None:
    model, predictor = make(), Spectral()
    cycles = PhaseSchedule(warmup=2, full=1, predict=3, correct=1, total=40)
    optimizer = HybridOptimizer(torch.optim.Adam(model.parameters()), model.named_parameters(), cycles, predictor)
    while optimizer.nominal_steps < 40:
        loss = gradients(model, optimizer)
        jumped = optimizer.may_undo
        optimizer.step(loss=1e9 if jumped and optimizer.nominal_steps < 12 else loss)
        assert optimizer.phase is not Phase.PREDICT
        assert all(torch.isfinite(value).all() for value in values(model).values())


@pytest.mark.parametrize("step", [given_loss, closed])
def test_a_good_jump_stands(step: Callable[[nn.Module, HybridOptimizer], None]) -> None:
    model = make()
    optimizer = hybrid(model)
    before = to_jump(model, optimizer)
    step(model, optimizer)
    assert not same(values(model), before) and optimizer.nominal_steps == 13 and optimizer.phase is Phase.CORRECT
    with pytest.raises(RuntimeError, match="no jump to undo"):
        optimizer.undo_jump()


def test_without_a_loss_nothing_is_judged() -> None:
    model = make()
    optimizer = hybrid(model, Wild(2.0))
    to_jump(model, optimizer)
    gradients(model, optimizer)
    optimizer.step()
    assert optimizer.nominal_steps == 13


def test_a_loss_that_is_not_finite_spoils_no_later_verdict() -> None:
    """It says nothing of what losses are like: a mean with it in would refuse every jump."""
    model = make()
    optimizer = hybrid(model)
    train(model, optimizer, 5)
    gradients(model, optimizer)
    optimizer.step(loss=math.nan)
    to_jump(model, optimizer)
    given_loss(model, optimizer)
    assert optimizer.phase is Phase.CORRECT


def test_a_loss_with_a_graph_is_taken_without_a_warning() -> None:
    model = make()
    optimizer = hybrid(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_jump(model, optimizer)
        given_loss(model, optimizer)


@pytest.mark.parametrize("frozen_first", [False, True])
def test_an_undone_jump_puts_back_what_moved_whatever_is_frozen_since(frozen_first: bool) -> None:
    model = make()
    model[3].weight.requires_grad_(not frozen_first)
    optimizer = hybrid(model, Wild(50.0))
    before = to_jump(model, optimizer)
    model[3].weight.requires_grad_(frozen_first)
    model[0].weight.requires_grad_(False)
    optimizer.undo_jump()
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


# Closures and hooks: what Lightning's automatic optimization asks of an optimizer


def test_a_closure_is_called_once_a_step_and_its_result_returned() -> None:
    one, other = make(), make()
    loop, closing, calls = hybrid(one), hybrid(other), []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        return gradients(other, closing)

    while loop.nominal_steps < 40:
        loss = gradients(one, loop)
        loop.step(loss=loss)
        with torch.no_grad():
            assert torch.equal(closing.step(closure=closure), loss)
    assert len(calls) == loop.computed_steps and all(calls) and same(values(one), values(other))


def test_a_closure_without_a_loss_is_none_to_judge() -> None:
    model = make()
    optimizer = hybrid(model)
    for _ in range(10):
        assert optimizer.step(closure=lambda: gradients(model, optimizer) and None) is None
    assert optimizer.nominal_steps == 15


def test_an_optimizer_that_calls_its_closure_many_times_does_so_here() -> None:
    one, other, steps = make(), make(), PhaseSchedule(0, 10, 0, 0, 10)
    plainly = torch.optim.LBFGS(one.parameters(), max_iter=4)
    wrapping = HybridOptimizer(
        torch.optim.LBFGS(other.parameters(), max_iter=4), other.named_parameters(), steps, Hold()
    )
    for model, optimizer in ((one, plainly), (other, wrapping)):

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, batch(0))
            loss.backward()
            return loss

        for _ in range(4):
            optimizer.step(closure)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))


def test_step_hooks_run_once_a_step() -> None:
    model, ran = make(), []
    optimizer = hybrid(model)
    optimizer.register_step_pre_hook(lambda opt, args, kwargs: ran.append(("before", opt.nominal_steps)))
    optimizer.register_step_post_hook(lambda opt, args, kwargs: ran.append(("after", opt.nominal_steps)))
    train(model, optimizer, 12)
    assert ran[-2:] == [("before", 6), ("after", 12)] and len(ran) == 14


# Learning-rate schedulers

SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "step": lambda opt: StepLR(opt, 5, 0.5),
    "one_cycle": lambda opt: OneCycleLR(opt, 0.02, total_steps=40),
    "sequential": lambda opt: SequentialLR(opt, [LinearLR(opt, 0.1, total_iters=5), CosineAnnealingLR(opt, 30)], [5]),
    "nominal": lambda opt: LambdaLR(opt, lambda _: 1 / (1 + opt.nominal_steps)),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_construct_and_step_without_a_warning(name: str) -> None:
    model = make()
    optimizer = hybrid(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rate, rates = SCHEDULERS[name](optimizer), set()
        for _ in range(20):
            gradients(model, optimizer)
            optimizer.step()
            rate.step()
            assert optimizer.optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] == rate.get_last_lr()[0]
            rates.add(rate.get_last_lr()[0])
    assert len(rates) > 3 and optimizer.nominal_steps > 20


def test_a_rate_set_after_loading_reaches_the_wrapped_optimizer() -> None:
    model = make()
    optimizer = hybrid(model)
    rate = StepLR(optimizer, 1, 0.1)
    train(model, optimizer, 5)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    rate.step()
    assert optimizer.optimizer.param_groups[0]["lr"] == pytest.approx(0.001)
    before = values(model)
    optimizer.param_groups[0]["lr"] = 0.0
    train(model, optimizer, 6)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


# State


def saved(state: Any) -> Any:
    """As it comes back from a file that may hold no code."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def one_position(model: nn.Module, optimizer: HybridOptimizer) -> None:
    """A step or a jump, each by itself."""
    if optimizer.phase is Phase.PREDICT:
        optimizer.jump()
    else:
        gradients(model, optimizer)
        optimizer.update()


@pytest.mark.parametrize(
    ("name", "moments"), [*((name, "keep") for name in PREDICTORS), ("spectral", "decay"), ("spectral", "reset")]
)
def test_loading_at_every_position_of_two_cycles_goes_on_bitwise(name: str, moments: str) -> None:
    """Before the first step, in every phase, with a jump due, and with one made that may yet be undone."""
    model = make()
    optimizer = hybrid(model, PREDICTORS[name](), moments=moments)
    kept = []
    while optimizer.nominal_steps < 40:
        kept.append(saved(dict(model=model.state_dict(), optimizer=optimizer.state_dict())))
        one_position(model, optimizer)
    end = values(model)
    for state in kept[: 1 + 3 + 2 * 7]:
        fresh = make()
        again = hybrid(fresh, PREDICTORS[name](), moments=moments)
        with torch.no_grad():
            fresh[0].weight.add_(1.0)
        fresh.load_state_dict(state["model"])
        again.load_state_dict(state["optimizer"])
        while again.nominal_steps < 40:
            one_position(fresh, again)
        assert same(values(fresh), end), state["optimizer"]["hybrid"]["position"]


def test_a_jump_loaded_from_a_file_can_still_be_undone() -> None:
    model, fresh = make(), make()
    optimizer, again = hybrid(model, Wild(50.0)), hybrid(fresh, Wild(50.0))
    before = to_jump(model, optimizer)
    again.load_state_dict(saved(optimizer.state_dict()))
    fresh.load_state_dict(saved(model.state_dict()))
    again.step(loss=gradients(fresh, again))
    assert (
        all(torch.equal(weight, before[name]) for name, weight in fresh.named_parameters())
        and again.phase is Phase.FULL
    )


def test_the_wrapped_optimizers_own_state_is_taken_too() -> None:
    """A run that was begun without the method goes on with it."""
    model, other = make(), make()
    plainly = torch.optim.Adam(model.parameters(), lr=0.03)
    loss_of(model, batch(0)).backward()
    plainly.step()
    optimizer = hybrid(other)
    optimizer.load_state_dict(saved(plainly.state_dict()))
    assert optimizer.param_groups[0]["lr"] == 0.03 and optimizer.nominal_steps == 0
    moments = (state["exp_avg"] for state in optimizer.state.values())
    assert all(torch.equal(moment, state["exp_avg"]) for moment, state in zip(moments, plainly.state.values()))


def test_a_gradient_where_a_jump_is_due_is_refused() -> None:
    """It was taken at weights that the jump leaves behind."""
    model = make()
    optimizer = hybrid(model)
    while optimizer.phase is not Phase.PREDICT:
        one_position(model, optimizer)
    gradients(model, optimizer)
    with pytest.raises(RuntimeError, match=r"jump\(\)"):
        optimizer.update()


@pytest.mark.parametrize("how", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
@pytest.mark.parametrize("with_scheduler", [False, True])
@pytest.mark.parametrize("at", [0, 5, 12, 20])
def test_a_copy_goes_on_by_itself_as_the_first_would(how: Callable[[Any], Any], with_scheduler: bool, at: int) -> None:
    """A scheduler puts its own `step` into the optimizer: a copy with that one would move the first one's weights."""
    model = make()
    optimizer = hybrid(model)
    if with_scheduler:
        StepLR(optimizer, 100)
    train(model, optimizer, at)
    before = values(model)
    its_model, copied = how((model, optimizer))
    train(its_model, copied, 40)
    assert same(values(model), before)
    train(model, optimizer, 40)
    assert same(values(model), values(its_model)) and not same(values(model), before)


def test_a_copy_keeps_what_groups_say_of_matrices() -> None:
    model = make()
    groups = [
        dict(params=[model[0].weight], orthogonalize=False),
        dict(params=[*model[1:].parameters(), model[0].bias]),
    ]
    optimizer = HybridOptimizer(
        torch.optim.Adam(groups, lr=0.01), model.named_parameters(), CYCLES, PREDICTORS["spectral"]()
    )
    its_model, copied = pickle.loads(pickle.dumps((model, optimizer)))
    for its, one in ((model, optimizer), (its_model, copied)):
        assert not one.predictor.is_linear("0.weight", its[0].weight) and one.predictor.is_linear(
            "3.weight", its[3].weight
        )


def test_state_dict_hooks_run_and_may_change_the_state() -> None:
    model, ran = make(), []
    optimizer = hybrid(model)
    train(model, optimizer, 15)
    optimizer.register_state_dict_pre_hook(lambda opt: ran.append("pre"))
    optimizer.register_state_dict_post_hook(lambda opt, state: state | dict(mine=1))
    optimizer.register_load_state_dict_pre_hook(lambda opt, state: {k: v for k, v in state.items() if k != "mine"})
    optimizer.register_load_state_dict_post_hook(lambda opt: ran.append("loaded"))
    state = optimizer.state_dict()
    keys = set(state)
    optimizer.load_state_dict(state)
    assert state["mine"] == 1 and set(state) == keys and ran == ["pre", "loaded"]


def test_parameters_added_in_the_middle_are_stepped_jumped_and_saved() -> None:
    def grown(until: int) -> tuple[nn.Module, HybridOptimizer]:
        model = make()
        optimizer = HybridOptimizer(
            torch.optim.Adam(model[0].parameters(), lr=0.01), model.named_parameters(), CYCLES, PREDICTORS["spectral"]()
        )
        train(model, optimizer, 5)
        optimizer.add_param_group(dict(params=list(model[3].parameters()), lr=0.02, orthogonalize=True))
        train(model, optimizer, until)
        return model, optimizer

    model, optimizer = grown(15)
    other, its = grown(5)
    assert [name for name, _ in optimizer.weights] == ["0.weight", "0.bias", "3.weight", "3.bias"]
    assert optimizer.predictor.is_linear("3.weight", model[3].weight)
    assert {f"anchor.{name}" for name, _ in optimizer.weights} <= set(optimizer.predictor.store.names())
    other.load_state_dict(model.state_dict())
    its.load_state_dict(saved(optimizer.state_dict()))
    train(model, optimizer, 40), train(other, its, 40)
    assert same(values(model), values(other)) and len(optimizer.param_groups) == 2


def test_it_is_an_optimizer_with_all_that_one_has() -> None:
    optimizer = hybrid(make())
    assert isinstance(optimizer, torch.optim.Optimizer) and optimizer.defaults["betas"] == (0.9, 0.999)
    assert optimizer.state is optimizer.optimizer.state and optimizer.param_groups is optimizer.optimizer.param_groups
    assert "lr: 0.01" in repr(optimizer)


# Names


def test_shared_weights_move_once_under_their_first_name() -> None:
    model = nn.ModuleDict(dict(tok_emb=nn.Embedding(7, 4), head=nn.Linear(4, 7, bias=False)))
    model["head"].weight = model["tok_emb"].weight
    named = model.named_parameters(remove_duplicate=False)
    optimizer = HybridOptimizer(torch.optim.SGD(model.parameters(), 0.1), named, CYCLES, Linear())
    assert [name for name, _ in optimizer.weights] == ["tok_emb.weight"]


def test_two_parameters_of_one_name_are_refused() -> None:
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    named = [*one.named_parameters(), *other.named_parameters()]
    with pytest.raises(ValueError, match="weight, bias"):
        HybridOptimizer(torch.optim.SGD([w for _, w in named], 0.1), named, CYCLES, Hold())


def test_parameters_without_names_are_refused() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="named_parameters"):
        HybridOptimizer(torch.optim.SGD(model.parameters(), 0.1), model.parameters(), CYCLES, Hold())


# Cost


@pytest.mark.timed
def test_a_step_without_a_jump_costs_a_hundredth_of_a_nano_step_at_most() -> None:
    from hybridlib.study.run import Model
    from hybridlib.training.models import build

    model = build(Model(preset="nano"), seed=1)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    inner = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    endless = PhaseSchedule(warmup=0, full=10_000, predict=1, correct=1, total=100_000)
    optimizer, extra = HybridOptimizer(inner, model.named_parameters(), endless, Spectral()), []
    for _ in range(240):
        at = time.perf_counter()
        inner.step()
        between = time.perf_counter()
        optimizer.step(loss=1.0)
        extra.append(time.perf_counter() - between - (between - at))
    cost_s = statistics.median(extra[40:])
    assert optimizer.phase is Phase.FULL and cost_s <= 0.01 * NANO_STEP_S, f"{1e6 * cost_s:.0f} µs a step"


# accelerate and transformers


def test_accelerate_trains_it_as_the_plain_loop_does() -> None:
    accelerate = pytest.importorskip("accelerate")
    one, other = make(), make()
    plainly, inner = hybrid(one), hybrid(other)
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(other, inner)
    while inner.nominal_steps < 40:
        optimizer.zero_grad()
        accelerator.backward(loss_of(model, batch(inner.computed_steps)))
        optimizer.step()
    train(one, plainly, 40)
    assert same(values(one), values(other)) and plainly.computed_steps == inner.computed_steps


@pytest.fixture(scope="module")
def transformers_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Callable[..., Any]]]:
    """A run of 17 calls of `step` with a checkpoint after each; and what makes another trainer like its own."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("trainer")
    tokens = torch.randint(32, (64, 8), generator=torch.Generator().manual_seed(1))
    data = [dict(input_ids=row, labels=row) for row in tokens]

    def trainer(where: str, **settings: Any) -> Any:
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=32, n_positions=8, n_embd=16, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=None
            )
        )
        arguments = transformers.TrainingArguments(
            str(folder / where), max_steps=SHORT.computed, per_device_train_batch_size=4, report_to=[], use_cpu=True,
            disable_tqdm=True, logging_strategy="no", seed=7, **settings,
        )  # fmt: skip
        optimizer = hybrid(model, schedule=SHORT)
        rate = LambdaLR(optimizer, lambda _: 1 - optimizer.nominal_steps / 40)
        return transformers.Trainer(model=model, args=arguments, train_dataset=data, optimizers=(optimizer, rate))

    whole = trainer("whole", save_strategy="steps", save_steps=1)
    whole.train()
    yield folder / "whole", whole, trainer


def test_transformers_trains_it(transformers_run: tuple) -> None:
    _folder, whole, _trainer = transformers_run
    optimizer = whole.optimizer.optimizer
    assert isinstance(optimizer, HybridOptimizer) and optimizer.computed_steps == 17 and optimizer.nominal_steps == 28
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * (1 - 28 / 40))


@pytest.mark.parametrize("call", [1, 4, 5, 6, 11])
def test_a_checkpoint_of_transformers_resumes_bit_for_bit(transformers_run: tuple, call: int) -> None:
    """Call 5 is the last of Full: its checkpoint lies right after a jump that may yet be undone."""
    folder, whole, trainer = transformers_run
    checkpoint = folder / f"checkpoint-{call}"
    extra = torch.load(checkpoint / "optimizer.pt", weights_only=True)["hybrid"]
    assert extra["may_undo"] == (call == 5) and extra["computed_steps"] == call
    again = trainer(f"from-{call}", save_strategy="no")
    with torch.no_grad():
        next(again.model.parameters()).add_(1.0)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert same(values(again.model), values(whole.model))
    assert again.optimizer.optimizer.nominal_steps == 28
