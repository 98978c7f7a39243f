"""HybridOptimizer in people's loops: plain PyTorch, mixed precision, schedulers, transformers, accelerate."""

import copy
import difflib
import inspect
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import CYCLES, PREDICTORS, batch, gradients, hybrid, loss_of, make, same, to_jump, train, values
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, OneCycleLR, SequentialLR, StepLR

from hybridlib import HybridOptimizer, Phase, PhaseSchedule, Spectral

SHORT = PhaseSchedule(warmup=2, full=3, predict=4, correct=2, total=28)  # 17 of them computed

NANO_STEP_S = 0.033  # of the nano GPT-2 on two cores, batch and all: assumed, so that a test needs no other's time


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
