"""A small network that forecasts weights from their displacements."""

import torch
from torch import Tensor, nn

from hybridlib.method.predictors.base import History, Weights
from hybridlib.method.settings import Count, Window


class Wnn(History):
    """Forecast each weight from its own recent displacements by a small network, fitted online.

    After Weight Nowcaster Networks (Jang et al. 2023, "Learning to boost training by periodic nowcasting near future
    weights", section 3), but fitted on nothing except the run's own steps before each jump: from `inputs` displacements
    in a row to the next one, elements drawn at random, each tensor scaled by its root mean square. A forecast feeds on
    itself until the horizon.

    Args:
        window: iterates kept, at least 3.
        inputs: displacements in a row that the network sees, at least 1.
        width: of its hidden layer, at least 1.
        samples: examples drawn a million parameters, at least 1.
        gain: how many times the forecast displacement the weights move.
    """

    def __init__(
        self, window: Window = 16, inputs: Count = 5, width: Count = 16, samples: Count = 4096, gain: float = 1.0
    ) -> None:
        super().__init__(window)
        self.inputs, self.width, self.samples, self.gain = inputs, width, samples, gain

    def forecast(self, weights: Weights, horizon: int) -> None:
        inputs = min(self.inputs, min(self.taken, self.window) - 2)
        generator = torch.Generator().manual_seed(self.taken)
        seen = torch.cat([self._examples(name, weight, inputs, generator) for name, weight in weights])
        network = fitted(seen[:, :-1], seen[:, -1:], self.width, generator)
        for name, weight in weights:
            moved = self.displacements(name, weight)[-inputs:].T
            scale = moved.square().mean().sqrt()
            recent = (moved / scale.clamp_min(1e-12)).cpu()
            total = torch.zeros_like(recent[:, 0])
            for _ in range(horizon):
                ahead = network(recent).clamp(-3, 3)
                total += ahead[:, 0]
                recent = torch.cat([recent[:, 1:], ahead], dim=1)
            weight.add_((total.to(moved) * scale).view_as(weight).to(weight.dtype), alpha=self.gain)

    def _examples(self, name: str, weight: Tensor, inputs: int, generator: torch.Generator) -> Tensor:
        """Return (samples, inputs + 1): displacements in a row of random elements, over their root mean square."""
        moved = self.displacements(name, weight).cpu()
        count = max(self.samples * weight.numel() // 1_000_000, 64)
        element = torch.randint(moved.shape[1], (count,), generator=generator, device="cpu")
        first = torch.randint(len(moved) - inputs, (count,), generator=generator, device="cpu")
        runs = torch.stack([moved[first + at, element] for at in range(inputs + 1)], dim=1)
        return runs / moved.square().mean().sqrt().clamp_min(1e-12)


@torch.enable_grad()
def fitted(inputs: Tensor, targets: Tensor, width: int, generator: torch.Generator, steps: int = 100) -> nn.Module:
    """Return a network with a hidden layer of `width`, trained to give `targets`, (n, 1), from `inputs`, (n, inputs).

    Adam takes `steps` steps on the mean squared error of all examples; weights are drawn by `generator`.
    """
    there = dict(device=inputs.device)  # whatever the default device is
    network = nn.Sequential(nn.Linear(inputs.shape[1], width, **there), nn.GELU(), nn.Linear(width, 1, **there))
    for parameter in network.parameters():
        bound = 1 / parameter.shape[-1] ** 0.5
        parameter.data.uniform_(-bound, bound, generator=generator)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        (network(inputs) - targets).square().mean().backward()
        optimizer.step()
    return network.requires_grad_(False)
