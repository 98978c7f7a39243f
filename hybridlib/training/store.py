"""Where tensors are kept off the device: pinned host memory for a GPU, a file for a CPU.

The file is written and read whole, so its pages lie in the system's cache and never in the process's resident memory.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

PIECE_BYTES = 1 << 30  # Linux moves no more than 2 GiB in one call


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
        self._file = tempfile.TemporaryFile(dir=folder)
        self._end = 0
        self._kept: dict[str, Tensor | Slot] = {}

    def put(self, name: str, tensor: Tensor) -> None:
        """Keeps a copy of a tensor under a name, in place of an earlier one."""
        tensor, kept = tensor.detach(), self._kept.get(name)
        if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
            kept = self._kept[name] = self._room_for(tensor)
        if isinstance(kept, Tensor):
            kept.copy_(tensor)
        else:
            data = tensor.contiguous().view(-1).view(torch.uint8).numpy()
            for at in range(0, kept.nbytes, PIECE_BYTES):
                _whole(os.pwrite(self._file.fileno(), data[at : at + PIECE_BYTES], kept.offset + at), data[at:])

    def get(self, name: str, device: torch.device | str = "cpu") -> Tensor:
        """A fresh copy of a kept tensor on a device; raises `KeyError` for an unknown name."""
        kept = self._kept[name]
        if isinstance(kept, Tensor):
            return kept.to(device, copy=True)
        tensor = torch.empty(kept.shape, dtype=kept.dtype)
        data = tensor.view(-1).view(torch.uint8).numpy()
        for at in range(0, kept.nbytes, PIECE_BYTES):
            _whole(os.preadv(self._file.fileno(), [data[at : at + PIECE_BYTES]], kept.offset + at), data[at:])
        return tensor.to(device)

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


def _whole(done_bytes: int, data: np.ndarray) -> None:
    """A file system that is full writes a part and says nothing."""
    if done_bytes != min(len(data), PIECE_BYTES):
        raise OSError(f"the temporary file for predictors took {done_bytes} of {len(data)} bytes: {tempfile.gettempdir()} is full")
