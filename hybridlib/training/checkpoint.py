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

from hybridlib.training.optimizers import parts
from hybridlib.training.predictors.base import Weights

Tensors = dict[str, Tensor]
LR = ("lr", "initial_lr")  # set before each step


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


def under(prefix: str, tensors: Tensors) -> Tensors:
    """The tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def optimizer_tensors(optimizer: Any, weights: Weights) -> Tensors:
    """The optimizer's state as `optimizer.<part>.<parameter>.<key>`, parts as in `optimizers.parts`."""
    return {
        f"optimizer.{at}.{name}.{key}": value
        for at, part in enumerate(parts(optimizer))
        for name, weight in weights
        for key, value in part.state.get(weight, {}).items()
    }


def optimizer_counters(optimizer: Any) -> list[dict[str, Any]]:
    """What an optimizer counts outside its tensors: the numbers in its parameter groups, but for the learning rate."""
    groups = [group for part in parts(optimizer) for group in part.param_groups]
    return [{k: v for k, v in group.items() if isinstance(v, (bool, int, float)) and k not in LR} for group in groups]


def load_optimizer(optimizer: Any, weights: Weights, tensors: Tensors, counters: list[dict[str, Any]]) -> None:
    """The inverse of `optimizer_tensors` and `optimizer_counters`."""
    for at, part in enumerate(parts(optimizer)):
        part.state.clear()
        on_device = any(group.get("fused") or group.get("capturable") for group in part.param_groups)
        for name, weight in weights:
            for key, tensor in under(f"optimizer.{at}.{name}.", tensors).items():
                device = "cpu" if key == "step" and not on_device else weight.device
                part.state[weight][key] = tensor.to(device, copy=True)
    groups = [group for part in parts(optimizer) for group in part.param_groups]
    for group, values in zip(groups, counters, strict=True):
        group.update(values)
