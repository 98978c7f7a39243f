"""Closures and step hooks of HybridOptimizer: Lightning's contract, L-BFGS, SAM, predictors that look ahead."""

from collections.abc import Callable

import pytest
import torch
from loops import batch, gradients, hybrid, loss_of, make, same, train, values
from torch import Tensor, nn

from hybridlib import Hold, HybridOptimizer, PhaseSchedule
from hybridlib.method.predictors.base import Weights
from hybridlib.method.predictors.ema_nesterov import EmaNesterov


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
