"""The parameters that a predictor moves: their names, which can be predicted, which are moved as matrices."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hybridlib.method.predictors.base import Predictor, Weights
from hybridlib.method.schedule import Phase
from hybridlib.method.store import TensorStore

NamedBuffers = Iterable[tuple[str, Tensor]] | Callable[[], Iterable[tuple[str, Tensor]]]


class PredictedParameters:
    """The parameters of an optimizer that its predictor can move, and those that it follows now.

    A parameter group's `orthogonalize`, where it has that key, tells the predictor which parameters are matrices,
    unless a predicate has told it.

    Args:
        optimizer: the one that holds the parameters, and whose `predictor` moves them.
        named_parameters: pairs of a name and a parameter. Those without a name have that of their group's
            `param_names`, and where it has none they are numbered.
        named_buffers: what a forward pass changes besides, to be put back with the parameters; or a function that
            returns it.

    Attributes:
        all: those that can be predicted, frozen ones among them.
        path: the names of those that the predictor follows; None before it follows any.
        before_jump: the weights and buffers as the last jump found them.
    """

    def __init__(
        self, optimizer: Any, named_parameters: Iterable[tuple[str, Tensor]], named_buffers: NamedBuffers
    ) -> None:
        self.optimizer, self.before_jump = optimizer, TensorStore()
        if not hasattr(self.predictor, "store"):
            raise TypeError(f"{type(self.predictor).__name__}.__init__ must call super().__init__()")
        self.predictor.forget()
        self.predictor.owner = self._token = object()
        self._buffers = named_buffers if callable(named_buffers) else tuple(named_buffers)
        self.path: list[str] | None = None
        self._names = first_names(named_parameters)
        self.renew()

    def renew(self) -> None:
        """Take in the optimizer's parameter groups as they are now."""
        names = dict(self._names)
        for group in self.optimizer.param_groups:
            for weight, name in zip(group["params"], group.get("param_names", ())):
                names.setdefault(weight, name)
        self.all: Weights = predictable(self.optimizer, names)
        chosen, told_before = ChosenByGroup(self.optimizer), self.predictor.orthogonalizes
        if chosen.said and (told_before is None or isinstance(told_before, ChosenByGroup)):
            self.predictor.orthogonalizes = chosen

    @property
    def predictor(self) -> Predictor:
        """What moves the parameters."""
        return self.optimizer.predictor

    @property
    def weights(self) -> Weights:
        """The parameters that are predicted: those that require gradients now."""
        return [(name, weight) for name, weight in self.all if weight.requires_grad]

    def followed(self, phase: Phase) -> Weights:
        """Return the weights for the predictor to follow in `phase`.

        Where other parameters require gradients than before, the path so far is not theirs: a new one begins. Raises
        `RuntimeError` where the predictor follows those of another optimizer since.
        """
        if self.predictor.owner is not self._token:
            raise RuntimeError("this predictor is another HybridOptimizer's: each needs one of its own, from its start")
        weights = self.weights
        before, self.path = self.path, [name for name, _ in weights]
        if before is not None and self.path != before:
            self.predictor.forget()
            if phase in (Phase.FULL, Phase.PREDICT):
                self.predictor.start(weights)
        return weights

    @contextmanager
    def ahead_of(self, phase: Phase, progress: float) -> Iterator[None]:
        """While the block runs, let the weights be where the predictor wants the gradient of a step in `phase`.

        `progress` is the share of the run's nominal steps taken so far. Afterwards they are back, bit for bit.
        """
        if type(self.predictor).before_gradient is Predictor.before_gradient:
            yield
            return
        weights = self.followed(phase)
        before = [weight.detach().clone() for _, weight in weights]
        with torch.no_grad():
            self.predictor.before_gradient(weights, progress)
        try:
            yield
        finally:
            for (_, weight), value in zip(weights, before):
                weight.detach().copy_(value)

    def keep(self) -> None:
        """Keep what a jump is about to change."""
        self.before_jump.keep(self._changed(self.weights))

    @torch.no_grad()
    def put_back(self) -> None:
        """Put back what was kept. Raise `RuntimeError`, and put back nothing, where some of it has no place now."""
        now, kept = dict(self._changed(self.all)), self.before_jump.entries()
        if lost := [name for name in kept if name not in now]:
            raise RuntimeError(f"a jump cannot be undone: what it moved is not named {lost[0]} any more")
        if other := [name for name in kept if now[name].shape != kept[name].shape]:
            raise RuntimeError(f"a jump cannot be undone: {other[0]} has not the shape any more that it had before")
        for name in kept:
            self.before_jump.read(name, now[name].detach())

    def state(self, undoable: bool, materialize: bool) -> dict[str, Any]:
        """Return the path, and what the last jump changed if it is `undoable`; if `materialize`, with tensors read."""
        before = self.before_jump.entries() if undoable else {}
        stored: dict[str, dict[str, Any]] = dict(predictor=self.predictor.state_dict(), before_jump=before)
        if materialize:
            stored = {key: {name: tensor.read() for name, tensor in kept.items()} for key, kept in stored.items()}
        return dict(path=self.path, path_of=self._path_of) | stored

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`, which `state` returned.

        The path of another predictor, or of parameters of other names, leads nowhere: a warning says so, and a new one
        begins.
        """
        self.before_jump.keep(state["before_jump"].items())
        self.path = state["path"]
        path_of, names = state.get("path_of", self._path_of), {name for name, _ in self.all}
        strange = [name for name in self.path or () if name not in names]
        if path_of == self._path_of and not strange:
            self.predictor.load_state_dict(state["predictor"])
            return
        self.predictor.forget()
        if self.path:
            self.path = []
            why = f"no parameter is named {strange[0]}" if strange else f"it is of {path_of}, not of {self._path_of}"
            warnings.warn(f"the path in this state cannot be followed, and a new one begins: {why}", stacklevel=4)

    @property
    def _path_of(self) -> str:
        return f"{type(self.predictor).__name__}, {self.predictor.copies} copies"

    def _changed(self, weights: Weights) -> Iterator[tuple[str, Tensor]]:
        yield from ((f"weight.{name}", weight) for name, weight in weights)
        buffers = self._buffers() if callable(self._buffers) else self._buffers
        yield from ((f"buffer.{name}", buffer) for name, buffer in buffers)


def predictable(optimizer: Optimizer, names: dict[Tensor, str]) -> list[tuple[str, Tensor]]:
    """Return the parameters of `optimizer` that can be predicted: floating-point and not empty.

    Those with a name come first, in the order of `names`; the others are numbered by their place in the optimizer.
    Raises `ValueError` where two parameters have one name, under which only one of them could be remembered.
    """
    held = {
        weight: f"parameter.{at}"
        for at, weight in enumerate(w for group in optimizer.param_groups for w in group["params"])
    }
    order = [*(weight for weight in names if weight in held), *(weight for weight in held if weight not in names)]
    found = [(names.get(w, held[w]), w) for w in order if w.is_floating_point() and w.numel()]
    if twice := [name for name, times in Counter(name for name, _ in found).items() if times > 1]:
        raise ValueError(f"several parameters are named {', '.join(twice)}: give each a name of its own")
    return found


def first_names(named: Iterable[tuple[str, Tensor]]) -> dict[Tensor, str]:
    """Return names by parameter from `named` pairs; one that is shared keeps the first of its names.

    Raises `TypeError` for parameters without names, as `model.parameters()` gives them.
    """
    names: dict[Tensor, str] = {}
    for pair in named:
        if not (isinstance(pair, tuple) and isinstance(pair[0], str)):
            raise TypeError(
                "named_parameters are pairs of a name and a parameter, as model.named_parameters() gives them"
            )
        names.setdefault(pair[1], pair[0])
    return names


class ChosenByGroup:
    """A predicate: what the `orthogonalize` key of a parameter's group in `optimizer` says; None where it has none."""

    def __init__(self, optimizer: Optimizer) -> None:
        groups = (group for group in optimizer.param_groups if "orthogonalize" in group)
        self.said: dict[Tensor, bool] = {
            weight: group["orthogonalize"] for group in groups for weight in group["params"]
        }

    def __call__(self, name: str, weight: Tensor) -> bool | None:
        return self.said.get(weight)
