"""Every optimizer trains, is saved and restored bit for bit, and Muon and Adam share the parameters between them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hybridlib.method.wrapping import forget_moments
from hybridlib.study.arm import OptimizerSettings
from hybridlib.study.run import Model
from hybridlib.training import checkpoint
from hybridlib.training.loss import loss_fn
from hybridlib.training.models import build
from hybridlib.training.optimizers import WeightAverage, make_optimizer, set_learning_rate

NAMES = ["adam", "muon", "soap", "schedule_free", "lookahead"]
SIZES = Model(n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=32)


def batch(step: int) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(32, (4, 9), generator=torch.Generator().manual_seed(step))
    return tokens[:, :-1], tokens[:, 1:]


def take(model: torch.nn.Module, optimizer, steps: range, settings: OptimizerSettings | None = None) -> None:
    for step in steps:
        if settings:
            set_learning_rate(optimizer, settings, step + 1, 40)
        loss_fn(model, batch(step % 3)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def weights(model: torch.nn.Module) -> list[Tensor]:
    return [w.detach().clone() for w in model.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other))


@pytest.mark.parametrize("name", NAMES)
def test_it_learns(name: str) -> None:
    model = build(SIZES, 1)
    before = loss_fn(model, batch(0)).item()
    optimizer = make_optimizer(OptimizerSettings(name=name, lr=3e-3), model)
    take(model, optimizer, range(30))
    with WeightAverage().applied(list(model.named_parameters()), optimizer):
        assert loss_fn(model, batch(0)).item() < before - 0.2


@pytest.mark.parametrize("name", NAMES)
def test_a_restored_optimizer_goes_on_bitwise(name: str, tmp_path: Path) -> None:
    settings = OptimizerSettings(
        name=name, lr=3e-3, lr_warmup_steps=4, lr_decay=0.0 if name == "schedule_free" else 0.5
    )
    model = build(SIZES, 1)
    optimizer = make_optimizer(settings, model)
    take(model, optimizer, range(7), settings)
    checkpoint.write(tmp_path / "saved", optimizer.state_dict())
    there = weights(model)
    take(model, optimizer, range(7, 20), settings)
    other = build(SIZES, 2)
    with torch.no_grad():
        for weight, value in zip(other.parameters(), there):
            weight.copy_(value)
    restored = make_optimizer(settings, other)
    restored.load_state_dict(checkpoint.read(tmp_path / "saved"))
    take(other, restored, range(7, 20), settings)
    assert same(weights(model), weights(other))


def test_adam_here_is_torchs_adam() -> None:
    ours, plain = build(SIZES, 1), build(SIZES, 1)
    take(ours, make_optimizer(OptimizerSettings(), ours), range(5), OptimizerSettings())
    take(plain, torch.optim.Adam(plain.parameters(), lr=6e-4, fused=True), range(5))
    assert same(weights(ours), weights(plain))


def test_adam_with_weight_decay_is_torchs_adamw() -> None:
    ours, plain = build(SIZES, 1), build(SIZES, 1)
    settings = OptimizerSettings(weight_decay=0.3)
    take(ours, make_optimizer(settings, ours), range(5), settings)
    take(plain, torch.optim.AdamW(plain.parameters(), lr=6e-4, weight_decay=0.3, fused=True), range(5))
    assert same(weights(ours), weights(plain))


def test_muon_has_the_matrices_and_adam_the_rest_each_once() -> None:
    model = build(SIZES, 1)
    muon, adam = make_optimizer(OptimizerSettings(name="muon"), model).parts
    theirs = [[p for g in part.param_groups for p in g["params"]] for part in (muon, adam)]
    assert all(p.ndim == 2 for p in theirs[0]) and model.transformer.wte.weight is theirs[1][0]
    assert sorted(map(id, theirs[0] + theirs[1])) == sorted(map(id, model.parameters()))


def test_the_rate_rises_and_falls_over_nominal_steps() -> None:
    settings = OptimizerSettings(lr=1.0, lr_warmup_steps=10, lr_decay=0.5)
    optimizer = make_optimizer(settings, build(SIZES, 1))
    rates = []
    for step in (1, 5, 10, 50, 51, 76, 100, 150):
        set_learning_rate(optimizer, settings, step, 100)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1, 0.5, 1, 1, 1, 0.5, 0.02, 0.0])


def test_a_rate_that_does_not_fall_is_given_no_decay() -> None:
    with pytest.raises(ValueError, match="lr_decay 0.5 does nothing: the rate of schedule_free does not fall"):
        OptimizerSettings(name="schedule_free", lr_decay=0.5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 8])
def test_to_be_judged_moves_no_weight_that_is_trained(name: str, steps: int) -> None:
    model = build(SIZES, 1)
    optimizer, average = make_optimizer(OptimizerSettings(name=name, lr=3e-3), model), WeightAverage(steps)
    for step in range(6):
        take(model, optimizer, range(step, step + 1))
        average.observe(list(model.named_parameters()))
    before = weights(model)
    for _ in range(3):
        with average.applied(list(model.named_parameters()), optimizer):
            pass
    for one, other in zip(before, weights(model)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_after_a_reset_every_optimizer_goes_on(name: str) -> None:
    model = build(SIZES, 1)
    optimizer = make_optimizer(
        OptimizerSettings(name=name, lr=3e-3, **dict(slow_every=2) if name == "lookahead" else {}), model
    )
    take(model, optimizer, range(3))
    forget_moments(optimizer, "reset")
    take(model, optimizer, range(3, 9))
    assert all(weight.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("moments, share", [("keep", 1.0), ("decay", 0.5)])
def test_what_a_jump_leaves_of_the_first_moment(moments: str, share: float) -> None:
    model = build(SIZES, 1)
    optimizer = make_optimizer(OptimizerSettings(), model)
    take(model, optimizer, range(3))
    before = [state["exp_avg"].clone() for state in optimizer.state.values()]
    assert all(moment.any() for moment in before)
    forget_moments(optimizer, moments)
    assert same([state["exp_avg"] for state in optimizer.state.values()], [share * m for m in before])


def test_after_a_reset_adam_starts_anew() -> None:
    model = build(SIZES, 1)
    optimizer = make_optimizer(OptimizerSettings(), model)
    take(model, optimizer, range(3))
    twin = build(SIZES, 1)
    with torch.no_grad():
        for a, b in zip(twin.parameters(), model.parameters()):
            a.copy_(b)
    forget_moments(optimizer, "reset")
    take(model, optimizer, range(3, 6))
    take(twin, make_optimizer(OptimizerSettings(), twin), range(3, 6))
    assert same(weights(model), weights(twin))


def test_an_average_is_the_mean_since_the_last_jump_and_leaves_the_weights() -> None:
    model = build(SIZES, 1)
    named, average, seen = list(model.named_parameters()), WeightAverage(8), []
    optimizer = make_optimizer(OptimizerSettings(), model)
    for step in range(7):
        if step == 3:
            average.forget()
            seen.clear()
        take(model, optimizer, range(step, step + 1))
        average.observe(named)
        seen.append(weights(model))
    with average.applied(named, optimizer):
        for i, (_, weight) in enumerate(named):
            torch.testing.assert_close(weight.detach(), torch.stack([s[i] for s in seen]).mean(0))
    assert same(weights(model), seen[-1])
