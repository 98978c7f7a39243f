"""Snapshots of a training state: in memory, or on disk, where they are checked before they are used.

A state is a flat mapping of tensors, or of what is kept elsewhere and read when needed, and a mapping of JSON values.
"""

import warnings
from pathlib import Path
from typing import Any, Callable

from torch import Tensor

from hybridlib.records import writing
from hybridlib.training import tensor_file
from hybridlib.training.optimizers import parts
from hybridlib.training.predictors.base import Weights
from hybridlib.training.store import Kept

Tensors = dict[str, Tensor | Kept]
Snapshot = tuple[dict[str, Tensor], dict[str, Any]]
LR = ("lr", "initial_lr")  # set before each step


class Snapshots:
    """The last snapshot, in memory: what a trainer rolls back to when it is given no file."""

    def __init__(self) -> None:
        self._last: Snapshot | None = None

    def save(self, tensors: Tensors, facts: dict[str, Any]) -> None:
        self._last = {k: t.read() if isinstance(t, Kept) else t.detach().clone() for k, t in tensors.items()}, facts

    def load(self) -> Snapshot | None:
        """The last snapshot, None before the first."""
        return self._last


class CheckpointFile:
    """The last two snapshots, each in a safetensors file with a checksum: a resumed run starts from the newest sound one.

    The newest is replaced by renaming: a kill leaves the old one, the new one, or the one before them. No write is forced
    to the disk: what a power failure tears is found by its checksum, and the one before it has long been written.
    `before_save` runs first: what the snapshot presupposes (the records up to it) must be on disk before it is; the facts
    that it returns are saved too.
    """

    def __init__(self, path: Path, before_save: Callable[[], dict[str, Any]], about: dict[str, Any]) -> None:
        self.path, self.before_save, self.about = path, before_save, about
        self.previous = path.with_name(f"{path.stem}.previous{path.suffix}")

    def save(self, tensors: Tensors, facts: dict[str, Any]) -> None:
        """Raises `StorageError` if there is no room for it; earlier snapshots are still there then."""
        facts = self.about | facts | self.before_save()
        part = self.path.with_suffix(".part")
        with writing(self.path, tensor_file.size_bytes(tensors)):
            try:
                tensor_file.write(part, tensors, facts)
                if self.path.exists():
                    self.path.replace(self.previous)
                part.replace(self.path)
            finally:
                part.unlink(missing_ok=True)

    def load(self, accept: Callable[[dict[str, Any]], bool] = lambda facts: True) -> Snapshot | None:
        """The newest snapshot that is sound and accepted, its tensors on the host; None if there is none.

        Warns of a file that is damaged.
        """
        for path in filter(Path.exists, (self.path, self.previous)):
            try:
                tensors, facts = tensor_file.read(path)
            except tensor_file.Damaged as error:
                warnings.warn(f"{error}; going on from an earlier state", stacklevel=2)
                continue
            if accept(facts):
                return tensors, facts
        return None

    def remove(self) -> None:
        for path in (self.path, self.previous, self.path.with_suffix(".part")):
            path.unlink(missing_ok=True)


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
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


def load_optimizer(optimizer: Any, weights: Weights, tensors: dict[str, Tensor], counters: list[dict[str, Any]]) -> None:
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
