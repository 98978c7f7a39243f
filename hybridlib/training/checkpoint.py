"""Snapshots of a training state: on disk, atomic, and free of code when loaded (safetensors).

A state is a flat mapping of tensors and a mapping of JSON values.
"""

import json
import os
from pathlib import Path
from typing import Any, Callable

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

Tensors = dict[str, Tensor]


class Snapshots:
    """The last snapshot, in memory: what a trainer rolls back to when it is given no file."""

    def __init__(self) -> None:
        self._last: tuple[Tensors, dict[str, Any]] | None = None

    def save(self, tensors: Tensors, facts: dict[str, Any]) -> None:
        self._last = {name: tensor.detach().clone() for name, tensor in tensors.items()}, facts

    def load(self) -> tuple[Tensors, dict[str, Any]] | None:
        """The last snapshot, None before the first."""
        return self._last


class CheckpointFile:
    """The last snapshot, in one safetensors file that is replaced atomically: a resumed run starts from it.

    `before_save` runs first: what the snapshot presupposes (the records up to it) must be on disk before it is.
    """

    def __init__(self, path: Path, before_save: Callable[[], None], about: dict[str, Any]) -> None:
        self.path, self.before_save, self.about = path, before_save, about

    def save(self, tensors: Tensors, facts: dict[str, Any]) -> None:
        self.before_save()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, part, metadata={"facts": json.dumps(self.about | facts)})
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(self.path)

    def load(self) -> tuple[Tensors, dict[str, Any]] | None:
        """The last snapshot's tensors, on the host, and its facts; None if there is no file."""
        if not self.path.exists():
            return None
        with safe_open(self.path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["facts"])


def optimizer_tensors(optimizer: Optimizer, names: list[str]) -> Tensors:
    """The optimizer's state as `optimizer.<parameter>.<key>`; `names` are the parameters' in the optimizer's order."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{names[i]}.{key}": value for i, s in state.items() for key, value in s.items()}


def load_optimizer(optimizer: Optimizer, names: list[str], tensors: Tensors) -> None:
    """The inverse of `optimizer_tensors`; learning rate and other settings stay as they are."""
    place = {name: i for i, name in enumerate(names)}
    state: dict[int, Tensors] = {}
    for full, tensor in tensors.items():
        if full.startswith("optimizer."):
            name, key = full.removeprefix("optimizer.").rsplit(".", 1)
            state.setdefault(place[name], {})[key] = tensor.clone()
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
