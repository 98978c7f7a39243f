"""What a predictor is, and what all predictors share."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from inspect import isabstract
from typing import Any

import torch
from torch import Tensor

from hybridlib.method.settings import Window, checked, snake
from hybridlib.method.store import StoredTensor, TensorStore

Weights = Sequence[tuple[str, Tensor]]  # the named parameters that an optimizer moves


class Predictor(ABC):
    """Move the weights in Predict, once for all of its steps, without a batch, a loss or the optimizer.

    A subclass's settings are the arguments of its `__init__`; those with a type of `hybridlib.method.settings`, or a
    plain bool, int, float or str, are checked when it is made. Defining the class is enough to use it by name.

    Attributes:
        store: what it remembers between calls, off the device, tensor by tensor.
        copies: that memory in multiples of the parameters.
        orthogonalizes: a predicate, by name and tensor: whether a parameter is moved as a linear map. `HybridOptimizer`
            sets it to its `is_matrix`, to what parameter groups say, or to None. Without it, or where it returns None,
            `is_matrix` and `is_embedding` decide.
        owner: stands for the `HybridOptimizer` whose weights it moves, set by that.
    """

    copies: int = 0

    def __init__(self) -> None:
        self.store = TensorStore()
        self.orthogonalizes: Callable[[str, Tensor], bool | None] | None = None
        self.owner: object = None

    def __init_subclass__(cls, by_name: bool = True, **options: Any) -> None:
        """Make the class an arm's choice, unless `by_name` is False."""
        super().__init_subclass__(**options)
        if "__init__" in cls.__dict__:
            cls.__init__ = checked(cls.__init__)
        if by_name:
            _DEFINED[snake(cls.__name__)] = cls

    def start(self, weights: Weights) -> None:
        """Remember what is needed of `weights`: a Full phase begins, and its first step is about to be taken."""

    def before_gradient(self, weights: Weights, progress: float) -> None:
        """Move `weights` in place to where the next gradient is to be computed; they are put back before the step.

        `progress` is as for `predict`. By default the gradient is computed where the weights are.
        """

    def observe(self, weights: Weights) -> None:
        """Take in `weights` after a computed step."""

    @abstractmethod
    def predict(self, weights: Weights, horizon: int, progress: float) -> None:
        """Write the weights expected ahead, in place.

        Args:
            weights: the named parameters that require gradients, floating-point and not empty.
            horizon: how many nominal steps ahead, at least 1.
            progress: the share of the run's nominal steps taken so far, 0 to 1, and past 1 in an extension.
        """

    def forget(self) -> None:
        """Forget the path: a jump was undone or the run rolled back, and the path no longer leads to the weights."""
        self.store.clear()

    def state_dict(self) -> dict[str, StoredTensor]:
        """Return all that is remembered, each tensor to be read when it is needed."""
        return self.store.entries()

    def load_state_dict(self, state: dict[str, Tensor | StoredTensor]) -> None:
        """Remember `state`, which `state_dict` returned, its tensors read or not."""
        self.store.keep(state.items())


_DEFINED: dict[str, type[Predictor]] = {}


def defined() -> dict[str, type[Predictor]]:
    """Return every predictor whose class has been defined so far, by its name in snake case."""
    return {name: cls for name, cls in _DEFINED.items() if not isabstract(cls)}


class Hold(Predictor):
    """A control: predict that nothing changes, which is what skipping the steps does."""

    def predict(self, weights: Weights, horizon: int, progress: float) -> None:
        pass


class History(Predictor):
    """Keep the last `window` iterates since the last jump, for predictors that are fitted to a path.

    A jump breaks the path: what follows is a new one, so Correct's steps count for the next forecast.

    Args:
        window: how many iterates to keep, at least 3.
    """

    def __init__(self, window: Window) -> None:
        super().__init__()
        self.window = self.copies = window

    def start(self, weights: Weights) -> None:
        if not self.taken:
            self.observe(weights)

    def observe(self, weights: Weights) -> None:
        taken = self.taken
        for name, weight in weights:
            self.store.put(f"{taken % self.window}.{name}", weight)
        self.store.put("taken", torch.tensor(taken + 1, device="cpu"))

    @torch.no_grad()
    def predict(self, weights: Weights, horizon: int, progress: float) -> None:
        if min(self.taken, self.window) > 2:
            self.forecast(weights, horizon)
        self.store.clear()
        self.observe(weights)

    @abstractmethod
    def forecast(self, weights: Weights, horizon: int) -> None:
        """Write the `weights` expected `horizon` steps ahead, in place, from three iterates or more."""

    @property
    def taken(self) -> int:
        """Iterates seen since the last jump."""
        return int(self.store.get("taken")) if "taken" in self.store else 0

    def iterates(self, name: str, weight: Tensor) -> Tensor:
        """Return the iterates of the parameter `name`, (kept, elements) float32, oldest first, where `weight` lies."""
        kept = range(max(self.taken - self.window, 0), self.taken)
        return torch.stack(
            [self.store.get(f"{at % self.window}.{name}", weight.device).float().flatten() for at in kept]
        )

    def displacements(self, name: str, weight: Tensor) -> Tensor:
        """Return what each step moved the parameter `name`: as `iterates` of `weight`, one row fewer."""
        return self.iterates(name, weight).diff(dim=0)


def is_matrix(name: str, weight: Tensor) -> bool:
    """Return whether a parameter acts as a linear map, by its `name` and the axes of `weight`.

    Weights of linear layers and output heads have two axes, kernels of convolutions more, of which the first is the
    output's. Tables of embeddings, of tokens or of positions, are no linear maps, nor is a single row with more axes
    than two, as a class token's.
    """
    row = weight.ndim > 2 and max(weight.shape) == weight.numel()
    return weight.ndim >= 2 and not row and not is_table(name)


def is_embedding(name: str, weight: Tensor) -> bool:
    """Return whether `name` and the axes of `weight` are those of a table of token embeddings, tied or not."""
    return weight.ndim == 2 and is_table(name) and not POSITIONS & words(name)


POSITIONS = {"wpe", "pos", "position", "positions", "positional"}


def is_table(name: str) -> bool:
    """Return whether `name` is that of embeddings: GPT-2's `wte` and `wpe`, `tok_emb`, `embed_tokens`, and the like."""
    tables = bool({"wte", "wpe"} & words(name)) or any("embed" in word or word == "emb" for word in words(name))
    return tables and not {"proj", "projection"} & words(name)  # what embeds patches of an image is a linear map


def words(name: str) -> set[str]:
    """Return the words of a parameter's `name`: `transformer.tok_emb.weight` has transformer, tok, emb, weight."""
    return set(re.split(r"[._]", name.lower()))
