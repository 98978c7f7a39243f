"""HybridOptimizer judges each jump by the first loss after it, and undoes one that went wrong."""

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from loops import CYCLES, Wild, batch, gradients, hybrid, loss_of, make, same, to_jump, train, values
from torch import nn

from hybridlib import HybridOptimizer, Phase, PhaseSchedule, Spectral


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
    assert optimizer.nominal_steps == 13 and optimizer.computed_steps == computed + 1 and optimizer.undone_jumps == 1


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
    with pytest.warns(UserWarning, match=r"cannot be followed, and a new one begins: no parameter is named 0.weight"):
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
