"""What a predictor is, and what all of them share."""

from typing import Sequence

from torch import Tensor

from hybridlib.training.memory import Store

Weights = Sequence[tuple[str, Tensor]]  # a model's named parameters


class Predictor:
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

    def predict(self, weights: Weights, horizon: int) -> None:
        """Write the weights expected `horizon` steps ahead, in place."""
        raise NotImplementedError

    def forget(self) -> None:
        """The jump was undone or the run rolled back: what was learned no longer leads to these weights."""
        self.store.clear()

    def state_dict(self) -> dict[str, Tensor]:
        return {name: self.store.get(name) for name in self.store.names()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.store.clear()
        for name, tensor in state.items():
            self.store.put(name, tensor)


def is_matrix(name: str, weight: Tensor) -> bool:
    """Whether a parameter acts as a linear map: two axes, and not a table of embeddings (GPT-2's `wte`, `wpe`)."""
    return weight.ndim == 2 and not any(part in ("wte", "wpe") or "embed" in part for part in name.split("."))
