"""Tensors kept off the device: in pinned memory for a GPU, in a file for a CPU.

The file is written and read whole, so its pages lie in the system's cache and never in the process's resident memory.
"""

import errno
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

PIECE_BYTES = 1 << 30  # Linux moves no more than 2 GiB in one call


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of this `shape` and `dtype` that lies in a store; `read` returns a copy on the host.

    `read(rows=slice(...))` returns these rows of its first axis alone.
    """

    shape: torch.Size
    dtype: torch.dtype
    read: Callable[..., Tensor]


@dataclass(frozen=True)
class Slot:
    """Where in a store's file a tensor of this `shape` and `dtype` lies: `offset` bytes from its beginning."""

    offset: int
    shape: torch.Size
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize

    def __getitem__(self, rows: slice) -> "Slot":
        """Return where these `rows`, along the first axis and without a step, lie."""
        start, stop, _ = rows.indices(self.shape[0])
        row_bytes = self.nbytes // self.shape[0]
        return Slot(self.offset + start * row_bytes, torch.Size((stop - start, *self.shape[1:])), self.dtype)


class TensorStore:
    """Named tensors kept off the device, one at a time in and out.

    The file has no name in any folder, so it is gone with the process, however that ends. A store can be copied and
    pickled: the copy has a file of its own.

    Args:
        folder: where the file takes its room; by default the system's folder for temporary files, a copy's own there.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.given, self.folder = folder, Path(folder or tempfile.gettempdir())
        self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 (open as long as the store lives)
        weakref.finalize(self, self._file.close)
        self._end = 0
        self._kept: dict[str, Tensor | Slot] = {}
        self.nbytes = 0  # of all that is kept

    def put(self, name: str, tensor: Tensor | StoredTensor, rows: slice | None = None) -> None:
        """Keep a copy of `tensor`, which may lie in a store, as `name`, in place of an earlier one or of its `rows`.

        Raises `OSError` where there is no room; the message says where, and how many bytes are needed and free.
        """
        tensor = tensor.read() if isinstance(tensor, StoredTensor) else tensor.detach()
        kept = self._kept.get(name)
        if isinstance(kept, Slot) and tensor.is_cuda:  # a checkpoint gave it back on the host
            kept = self._kept[name] = self.get(name).pin_memory()
        if rows is not None:
            kept = kept[rows]
        elif kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
            self.nbytes += tensor.nbytes - (0 if kept is None else kept.nbytes)
            kept = self._kept[name] = self._room_for(tensor)
        if isinstance(kept, Tensor):
            kept.copy_(tensor)
            return
        data = _bytes(tensor.cpu().contiguous())
        with _room_told(self.folder, kept.nbytes):
            for at in range(0, kept.nbytes, PIECE_BYTES):
                done_bytes = os.pwrite(self._file.fileno(), data[at : at + PIECE_BYTES], kept.offset + at)
                _whole(done_bytes, data[at:], errno.ENOSPC)

    def read(self, name: str, out: Tensor, rows: slice | None = None) -> None:
        """Copy the tensor kept as `name`, or its `rows`, into `out`; raise `KeyError` for an unknown name.

        `rows` are along the first axis, without a step; `out` has the shape of what is read.
        """
        kept = self._at(name, rows)
        if isinstance(kept, Tensor):
            out.copy_(kept)
        elif out.device.type == "cpu" and out.dtype == kept.dtype and out.shape == kept.shape and out.is_contiguous():
            self._fill(out, kept)
        else:
            out.copy_(self._fill(torch.empty(kept.shape, dtype=kept.dtype, device="cpu"), kept))

    def get(self, name: str, device: torch.device | str = "cpu", rows: slice | None = None) -> Tensor:
        """Return a fresh copy of the tensor kept as `name`, or of its `rows`, on `device`.

        Raises `KeyError` for an unknown name.
        """
        kept = self._at(name, rows)
        if isinstance(kept, Tensor):
            return kept.to(device, copy=True)
        return self._fill(torch.empty(kept.shape, dtype=kept.dtype, device="cpu"), kept).to(device)

    def entries(self) -> dict[str, StoredTensor]:
        """Return all that is kept, by name, none of it read yet."""
        return {
            name: StoredTensor(kept.shape, kept.dtype, partial(self.get, name)) for name, kept in self._kept.items()
        }

    def names(self) -> list[str]:
        """Return the names of all that is kept."""
        return list(self._kept)

    def __contains__(self, name: str) -> bool:
        return name in self._kept

    def keep(self, tensors: Iterable[tuple[str, Tensor | StoredTensor]]) -> None:
        """Keep copies of these `tensors`, pairs of name and tensor, and nothing else."""
        wanted = dict(tensors)
        if self._kept.keys() - wanted.keys():
            self.clear()
        for name, tensor in wanted.items():
            self.put(name, tensor)

    def clear(self) -> None:
        """Forget all; the file's room is given back."""
        self._kept.clear()
        self._end = self.nbytes = 0
        self._file.truncate(0)

    def __getstate__(self) -> dict[str, Any]:
        return dict(folder=self.given, tensors={name: self.get(name) for name in self._kept})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])
        for name, tensor in state["tensors"].items():
            self.put(name, tensor)

    def _at(self, name: str, rows: slice | None) -> Tensor | Slot:
        kept = self._kept[name]
        return kept if rows is None else kept[rows]

    def _fill(self, out: Tensor, slot: Slot) -> Tensor:
        """Return `out`, contiguous on the host and as large as `slot`, with what lies there."""
        data = _bytes(out)
        for at in range(0, slot.nbytes, PIECE_BYTES):
            done_bytes = os.preadv(self._file.fileno(), [data[at : at + PIECE_BYTES]], slot.offset + at)
            _whole(done_bytes, data[at:], errno.EIO)
        return out

    def _room_for(self, tensor: Tensor) -> Tensor | Slot:
        if tensor.is_cuda:
            return torch.empty_like(tensor, device="cpu", pin_memory=True)
        slot = Slot(self._end, tensor.shape, tensor.dtype)
        self._end += slot.nbytes
        return slot


def strides(tensor: Tensor) -> tuple[int, ...]:
    """Return the strides of a copy of `tensor`: its own, unless elements of it overlap or lie apart."""
    return torch.empty_like(tensor, device="meta").stride()


@contextmanager
def _room_told(folder: Path, nbytes: int) -> Iterator[None]:
    """Turn the error of a write that failed into one that a user can act on."""
    try:
        yield
    except OSError as error:
        free, why = shutil.disk_usage(folder).free, error.strerror or error
        raise OSError(
            error.errno, f"{folder}: {nbytes:,} bytes could not be written: {why}; {free:,} bytes are free there"
        ) from None


def _bytes(tensor: Tensor) -> np.ndarray:
    """Return the memory of a contiguous tensor on the host."""
    return tensor.view(-1).view(torch.uint8).numpy()


def _whole(done_bytes: int, data: np.ndarray, why: int) -> None:
    """Raise the `OSError` of number `why` for a write or read that did a part: a full file system says nothing."""
    if done_bytes != min(len(data), PIECE_BYTES):
        raise OSError(why, os.strerror(why))
