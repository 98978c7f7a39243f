"""What a predictor is, and what all of them share."""

from abc import ABC, abstractmethod
from typing import Sequence

import torch
from torch import Tensor

from hybridlib.training.store import Kept, Store

Weights = Sequence[tuple[str, Tensor]]  # a model's named parameters


class Predictor(ABC):
    """Moves the weights in Predict to where training would have taken them. It never sees a batch, a loss or the optimizer.

    What it remembers between calls lies in `self.store`, off the device, tensor by tensor. `copies` is that memory
    in multiples of the parameters.
    """

    copies: int = 0

    def __init__(self) -> None:
        self.store = Store()

    def start(self, weights: Weights) -> None:
        """A Full phase begins: remember what is needed."""

    def observe(self, weights: Weights) -> None:
        """After every real step."""

    @abstractmethod
    def predict(self, weights: Weights, horizon: int, progress: float) -> None:
        """Write the weights expected `horizon` steps ahead, in place.

        `progress` is the share of the run's nominal steps taken so far, past 1 in an extension.
        """

    def forget(self) -> None:
        """The jump was undone or the run rolled back: what was learned no longer leads to these weights."""
        self.store.clear()

    def state_dict(self) -> dict[str, Kept]:
        """All that is remembered, each tensor to be read when it is needed."""
        return self.store.entries()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.store.clear()
        for name, tensor in state.items():
            self.store.put(name, tensor)


class History(Predictor):
    """Keeps the last `window` iterates since the last jump, for predictors that are fitted to a path.

    A path is broken by a jump: what follows it is a new one, so Correct's steps count for the next forecast.
    """

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = self.copies = window

    def start(self, weights: Weights) -> None:
        if not self.taken:
            self.observe(weights)

    def observe(self, weights: Weights) -> None:
        taken = self.taken
        for name, weight in weights:
            self.store.put(f"{taken % self.window}.{name}", weight)
        self.store.put("taken", torch.tensor(taken + 1))

    @torch.no_grad()
    def predict(self, weights: Weights, horizon: int, progress: float) -> None:
        if min(self.taken, self.window) > 2:
            self.forecast(weights, horizon)
        self.store.clear()
        self.observe(weights)

    @abstractmethod
    def forecast(self, weights: Weights, horizon: int) -> None:
        """Write the weights expected `horizon` steps ahead, in place, from three iterates or more."""

    @property
    def taken(self) -> int:
        return int(self.store.get("taken")) if "taken" in self.store else 0

    def iterates(self, name: str, weight: Tensor) -> Tensor:
        """(kept, elements) float32, oldest first, on the weight's device."""
        kept = range(max(self.taken - self.window, 0), self.taken)
        return torch.stack([self.store.get(f"{at % self.window}.{name}", weight.device).float().flatten() for at in kept])

    def displacements(self, name: str, weight: Tensor) -> Tensor:
        """(kept - 1, elements) float32: what each step moved, oldest first."""
        return self.iterates(name, weight).diff(dim=0)


def is_matrix(name: str, weight: Tensor) -> bool:
    """Whether a parameter acts as a linear map: two axes, and not a table of embeddings (GPT-2's `wte`, `wpe`)."""
    return weight.ndim == 2 and not is_table(name)


def is_embedding(name: str, weight: Tensor) -> bool:
    """Whether a parameter is a table of embeddings of tokens, tied to the output head or not; positions are none."""
    return weight.ndim == 2 and is_table(name) and "wpe" not in name.split(".")


def is_table(name: str) -> bool:
    return any(part in ("wte", "wpe") or "embed" in part for part in name.split("."))
