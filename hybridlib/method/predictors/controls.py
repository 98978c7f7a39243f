"""Controls: predictors that must not work."""

import zlib

import torch
from torch import Tensor

from hybridlib.method.predictors.base import Predictor, Weights
from hybridlib.method.predictors.spectral import Spectral


class Hold(Predictor):
    """Predict that nothing changes, which is what skipping the steps does."""

    def predict(self, weights: Weights, horizon: int, progress: float) -> None:
        pass


class Sham(Spectral):
    """Jump in a random direction, each tensor as far as Spectral would: what distance alone does.

    Args: those of `Spectral`.
    """

    def start(self, weights: Weights) -> None:
        super().start(weights)
        if "jumps" not in self.store:
            self.store.put("jumps", torch.zeros((), dtype=torch.int64))

    def predict(self, weights: Weights, horizon: int, progress: float) -> None:
        super().predict(weights, horizon, progress)
        self.store.put("jumps", self.store.get("jumps") + 1)

    def directions(self, group: Weights, ahead: list[Tensor]) -> list[Tensor]:
        true = super().directions(group, ahead)
        return [self._random_like(name, jump) for (name, _), jump in zip(group, true)]

    def _random_like(self, name: str, jump: Tensor) -> Tensor:
        seed = zlib.crc32(f"{name} {int(self.store.get('jumps'))}".encode())
        noise = torch.randn(jump.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
        noise = noise.to(jump.device, jump.dtype)
        return noise * (jump.norm() / noise.norm())
