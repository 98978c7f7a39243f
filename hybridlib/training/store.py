"""Where tensors are kept off the device: pinned host memory for a GPU, a file for a CPU.

The file is written and read whole, so its pages lie in the system's cache and never in the process's resident memory.
"""

import errno
import os
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Callable

import numpy as np
import torch
from torch import Tensor

from hybridlib.records import writing

PIECE_BYTES = 1 << 30  # Linux moves no more than 2 GiB in one call


@dataclass(frozen=True)
class Kept:
    """A tensor that is kept somewhere else, and copied from there when it is read."""

    shape: torch.Size
    dtype: torch.dtype
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class Slot:
    """Where in a store's file a tensor lies."""

    offset: int
    shape: torch.Size
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize


class Store:
    """Named tensors kept off the device, one at a time in and out.

    The file has no name in any folder, so it is gone with the process, however that ends.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = Path(folder or tempfile.gettempdir())
        self._file = tempfile.TemporaryFile(dir=self.folder)
        self._end = 0
        self._kept: dict[str, Tensor | Slot] = {}

    def put(self, name: str, tensor: Tensor) -> None:
        """Keeps a copy of a tensor under a name, in place of an earlier one. Raises `StorageError` where there is no room."""
        tensor, kept = tensor.detach(), self._kept.get(name)
        if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
            kept = self._kept[name] = self._room_for(tensor)
        if isinstance(kept, Tensor):
            kept.copy_(tensor)
            return
        data = _bytes(tensor.contiguous())
        with writing(self.folder, kept.nbytes):
            for at in range(0, kept.nbytes, PIECE_BYTES):
                _whole(os.pwrite(self._file.fileno(), data[at : at + PIECE_BYTES], kept.offset + at), data[at:])

    def read(self, name: str, out: Tensor) -> None:
        """Copies a kept tensor into another of its shape; raises `KeyError` for an unknown name."""
        kept = self._kept[name]
        if isinstance(kept, Tensor):
            out.copy_(kept)
        elif out.device.type != "cpu" or not out.is_contiguous():
            out.copy_(self.get(name))
        else:
            data = _bytes(out)
            for at in range(0, kept.nbytes, PIECE_BYTES):
                _whole(os.preadv(self._file.fileno(), [data[at : at + PIECE_BYTES]], kept.offset + at), data[at:])

    def get(self, name: str, device: torch.device | str = "cpu") -> Tensor:
        """A fresh copy of a kept tensor on a device; raises `KeyError` for an unknown name."""
        kept = self._kept[name]
        tensor = torch.empty(kept.shape, dtype=kept.dtype, device=device if isinstance(kept, Tensor) else "cpu")
        self.read(name, tensor)
        return tensor.to(device)

    def entries(self) -> dict[str, Kept]:
        """All that is kept, by name, none of it read yet."""
        return {name: Kept(kept.shape, kept.dtype, partial(self.get, name)) for name, kept in self._kept.items()}

    def names(self) -> list[str]:
        return list(self._kept)

    def __contains__(self, name: str) -> bool:
        return name in self._kept

    def clear(self) -> None:
        self._kept.clear()
        self._end = 0
        self._file.truncate(0)

    def _room_for(self, tensor: Tensor) -> Tensor | Slot:
        if tensor.is_cuda:
            return torch.empty_like(tensor, device="cpu", pin_memory=True)
        slot = Slot(self._end, tensor.shape, tensor.dtype)
        self._end += slot.nbytes
        return slot


def _bytes(tensor: Tensor) -> np.ndarray:
    """The memory of a contiguous tensor on the host."""
    return tensor.view(-1).view(torch.uint8).numpy()


def _whole(done_bytes: int, data: np.ndarray) -> None:
    """A file system that is full writes a part and says nothing."""
    if done_bytes != min(len(data), PIECE_BYTES):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
