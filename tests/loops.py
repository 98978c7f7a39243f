"""A small network, its training loop, and HybridOptimizer in it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hybridlib import Drift, HybridOptimizer, Linear, Nesterov, Phase, PhaseSchedule, Predictor, Spectral
from hybridlib.method.predictors.base import Weights

CYCLES = PhaseSchedule(warmup=3, full=4, predict=5, correct=2, total=64)

PREDICTORS: dict[str, Callable[[], Predictor]] = {
    "spectral": lambda: Spectral(gain=1.2, momentum=0.5, fade=0.5, fade_from=0.5),
    "linear": lambda: Linear(gain=0.3),
    "drift": lambda: Drift(window=4, gain=0.3),
    "nesterov": lambda: Nesterov(gain=0.9, momentum=0.4),
}


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


def one_position(model: nn.Module, optimizer: HybridOptimizer) -> None:
    """A step or a jump, each by itself."""
    if optimizer.phase is Phase.PREDICT:
        optimizer.jump()
    else:
        gradients(model, optimizer)
        optimizer.update()


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Wild(Predictor, by_name=False):
    """Predicts nonsense."""

    def __init__(self, size: Any) -> None:
        super().__init__()
        self.size = size

    def predict(self, weights: Weights, horizon: int, progress: float) -> None:
        for _, weight in weights:
            weight.mul_(self.size)
