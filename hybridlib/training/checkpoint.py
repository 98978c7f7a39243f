"""Snapshots of a training state, in memory or in safetensors files that are checked before they are used.

A file is written piece by piece, because the library's own writer takes all tensors in memory at once, which would
double a run's peak at every checkpoint. Loading one runs no code.
"""

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from hybridlib.study.storage import writing
from hybridlib.training.states import PIECE_BYTES, State, built, copied, flat, pieces, size_bytes

DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16",
          torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
          torch.bool: "BOOL", torch.complex64: "C64"}  # fmt: skip
NO_SHA256 = "0" * 64  # stands in the file while its checksum is taken
HEADER_BYTES = 100_000_000  # safetensors refuses a longer header


class Damaged(ValueError):
    """A file is not as it was written; the message names it."""


class Snapshots:
    """The last snapshot, in memory: what a trainer rolls back to when it is given no file."""

    def __init__(self) -> None:
        self._last: State | None = None

    def save(self, state: State) -> None:
        """Keep a copy of `state` in place of the last one."""
        self._last = copied(state)

    def load(self) -> State | None:
        """Return a copy of the last snapshot, None before the first."""
        return None if self._last is None else copied(self._last)


class CheckpointFile:
    """The last two snapshots, each in a file with a checksum, and the state at which the run was told to stop.

    The newest, at `path`, is replaced by renaming: a kill leaves the old one, the new one, or the one before them. No
    write is forced to the disk: a power failure may tear the newest, which its checksum shows, but not the one before,
    which has long been written. `before_save` runs first and puts on disk what the snapshot presupposes, the records up
    to it; what it returns, a state too, is saved as `beside`. `about` holds plain values that identify the run.
    """

    def __init__(self, path: Path, before_save: Callable[[], State], about: dict[str, Any]) -> None:
        self.path, self.before_save, self.about = path, before_save, about
        self.previous = path.with_name(f"{path.stem}.previous{path.suffix}")
        self.stopped = path.with_name(f"{path.stem}.stopped{path.suffix}")
        self._refused: set[Path] = set()

    def save(self, state: State) -> None:
        """Write `state` as the newest snapshot. Raises `StorageError` if there is no room; earlier ones stay."""
        self._write(state, self.path)

    def stop(self, state: State) -> None:
        """As `save`, to go on from but not to roll back to: no loss has shown the weights of `state` to be sound."""
        self._write(state, self.stopped)

    def _write(self, state: State, path: Path) -> None:
        whole = dict(state=state, beside=self.before_save(), about=self.about)
        part = self.path.with_suffix(".part")
        with writing(path, size_bytes(whole)):
            try:
                write(part, whole)
                if path == self.path:
                    self.stopped.unlink(missing_ok=True)  # first: it must not outlive what is newer
                    if path.exists() and path not in self._refused:  # else the one before it is what is sound
                        path.replace(self.previous)
                        self._refused.discard(self.previous)
                part.replace(path)
                self._refused.discard(path)
            finally:
                part.unlink(missing_ok=True)

    def load(self) -> State | None:
        """Return the newest sound snapshot, to roll back to, if `newest` did not refuse it; None if there is none."""
        kept = (path for path in (self.path, self.previous) if path not in self._refused)
        return next((whole["state"] for _, whole in self._sound(kept)), None)

    def newest(self, accept: Callable[[State], bool]) -> State | None:
        """Return the newest sound state that `accept` takes: `state`, `beside` and `about`, its tensors on the host.

        None if there is none. Warns of each damaged file.
        """
        for path, whole in self._sound([self.stopped, self.path, self.previous]):
            if accept(whole):
                return whole
            self._refused.add(path)
        return None

    def _sound(self, paths: Iterable[Path]) -> Iterator[tuple[Path, State]]:
        for path in filter(Path.exists, paths):
            try:
                yield path, read(path)
            except Damaged as error:
                warnings.warn(f"{error}; going on from an earlier state", stacklevel=2)
                self._refused.add(path)


def write(path: Path, state: Any) -> None:
    """Write `state` to a new file at `path`, its folder made if need be.

    Raises `OSError`, and `TypeError` for a tensor of a type that no such file holds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    form, tensors = flat(state)
    header: dict[str, Any] = {"__metadata__": dict(sha256=NO_SHA256, form=json.dumps(form))}
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise TypeError(f"a file cannot hold a tensor of {tensor.dtype}, as {name} is")
        start, end = end, end + math.prod(tensor.shape) * tensor.dtype.itemsize
        header[name] = dict(dtype=DTYPES[tensor.dtype], shape=list(tensor.shape), data_offsets=[start, end])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data is aligned
    with path.open("wb", buffering=0) as out, ThreadPoolExecutor(1) as beside:
        digest = hashlib.sha256()
        for piece in (len(text).to_bytes(8, "little"), text):
            digest.update(piece)
            out.write(piece)
        for piece in chain.from_iterable(map(pieces, tensors.values())):
            data = memoryview(piece.contiguous().view(-1).view(torch.uint8).numpy())
            hashed = beside.submit(digest.update, data)  # takes as long as writing, and both leave Python to others
            while data:  # one call may write less
                data = data[out.write(data) :]
            hashed.result()
        out.seek(8 + text.index(NO_SHA256.encode()))
        out.write(digest.hexdigest().encode())


def read(path: Path) -> Any:
    """Return the state in the file at `path`, its tensors on the host. Raises `Damaged` if its checksum is another."""
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("sha256") != sha256(path, about.get("sha256", "").encode()):
                raise Damaged(f"{path} is damaged: its content does not match its checksum")
            # Copied: a tensor of the library's maps the whole file, which would stay in memory as long as it lives.
            return built(json.loads(about["form"]), lambda name: file.get_tensor(name).clone())
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        if isinstance(error, Damaged):
            raise
        raise Damaged(f"{path} is damaged: {error}") from None


def sha256(path: Path, known: bytes) -> str:
    """Return the checksum of the file at `path`, with `known`, the checksum in its header, replaced by zeros."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        start = file.read(8)
        header = file.read(min(int.from_bytes(start, "little"), HEADER_BYTES))
        digest.update(start + (header.replace(known, NO_SHA256.encode(), 1) if known else header))
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()
