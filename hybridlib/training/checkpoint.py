"""Snapshots of a training state: in memory, or on disk, where they are checked before they are used.

A state is what `state_dict` methods return: mappings, lists and tuples of tensors, of tensors kept elsewhere and read when
needed, and of plain values.
"""

import os
import signal
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from hybridlib.study.storage import writing
from hybridlib.training import tensor_file
from hybridlib.training.tensor_file import copied

State = dict[str, Any]


class Snapshots:
    """The last snapshot, in memory: what a trainer rolls back to when it is given no file.

    Args:
        every: nominal steps between two snapshots, at least 1.
    """

    def __init__(self, every: int = 80) -> None:
        self.every = every
        self._last: State | None = None

    def save(self, state: State) -> None:
        self._last = copied(state)

    def load(self) -> State | None:
        """Return the last snapshot, None before the first."""
        return None if self._last is None else copied(self._last)


class CheckpointFile:
    """The last two snapshots, each in a safetensors file with a checksum: a resumed run starts from the newest sound one.

    The newest is replaced by renaming: a kill leaves the old one, the new one, or the one before them. No write is forced
    to the disk: what a power failure tears is found by its checksum, and the one before it has long been written.

    Args:
        path: of the newest; the one before lies beside it.
        before_save: runs first: what the snapshot presupposes, the records up to it, must be on disk before it is. What
            it returns, a state too, is saved as `beside`.
        about: plain values that say what run it is of, saved as `about`.
        every: as for `Snapshots`.
    """

    def __init__(self, path: Path, before_save: Callable[[], State], about: dict[str, Any], every: int = 80) -> None:
        self.path, self.before_save, self.about, self.every = path, before_save, about, every
        self.previous = path.with_name(f"{path.stem}.previous{path.suffix}")

    def save(self, state: State) -> None:
        """Raise `StorageError` if there is no room for it; earlier snapshots are still there then."""
        whole = dict(state=state, beside=self.before_save(), about=self.about)
        part = self.path.with_suffix(".part")
        with writing(self.path, tensor_file.size_bytes(whole)):
            try:
                tensor_file.write(part, whole)
                if self.path.exists():
                    self.path.replace(self.previous)
                part.replace(self.path)
            finally:
                part.unlink(missing_ok=True)

    def load(self) -> State | None:
        """Return the newest sound snapshot, to roll back to; None if there is none."""
        found = self.newest()
        return found and found["state"]

    def newest(self, accept: Callable[[State], bool] = lambda whole: True) -> State | None:
        """Return the newest snapshot that is sound and accepted, as `state`, `beside` and `about`, its tensors on the host.

        Warns of a file that is damaged.
        """
        for path in filter(Path.exists, (self.path, self.previous)):
            try:
                whole = tensor_file.read(path)
            except tensor_file.Damaged as error:
                warnings.warn(f"{error}; going on from an earlier state", stacklevel=2)
                continue
            if accept(whole):
                return whole
        return None

    def remove(self) -> None:
        for path in (self.path, self.previous, self.path.with_suffix(".part")):
            path.unlink(missing_ok=True)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the state of PyTorch's generators that a step on a device may draw from: dropout's."""
    return dict(cpu=torch.get_rng_state()) | (
        dict(cuda=torch.cuda.get_rng_state(device)) if device.type == "cuda" else {}
    )


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Take back what `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


class Preemption:
    """While entered, SIGTERM only sets `asked`, for a loop to see between two steps.

    A process that was asked ends by that signal when this is left, as if nothing had caught it. Outside the main thread,
    where Python handles no signals, nothing is caught.
    """

    asked = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before)
        if self.asked:
            os.kill(os.getpid(), signal.SIGTERM)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
