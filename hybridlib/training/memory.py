"""Memory off the device: where predictors keep their state, and what leaves the device in Predict.

Off the device is pinned host memory for a GPU, and a memory-mapped file for a CPU: a mapping is dropped as soon as
it is copied, so its pages lie in the page cache and not in the process's resident memory.
"""

import ctypes
import mmap
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer


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
        elif kept.nbytes:
            self._map(kept).copy_(tensor)

    def get(self, name: str, device: torch.device | str = "cpu") -> Tensor:
        """A fresh copy of a kept tensor on a device; raises `KeyError` for an unknown name."""
        kept = self._kept[name]
        if isinstance(kept, Slot):
            kept = self._map(kept) if kept.nbytes else torch.empty(kept.shape, dtype=kept.dtype)
        return kept.to(device, copy=True)

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
        self._end += -(-slot.nbytes // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        self._file.truncate(self._end)
        return slot

    def _map(self, slot: Slot) -> Tensor:
        """The slot as a tensor over a mapping, which goes when the tensor does."""
        mapping = mmap.mmap(self._file.fileno(), slot.nbytes, offset=slot.offset)
        return torch.frombuffer(mapping, dtype=slot.dtype).view(slot.shape)


class KeepOnDevice:
    """The memory policy that does nothing: gradients are freed after each step as in plain training, all else stays."""

    def leave(self) -> None: ...
    def come_back(self) -> None: ...


class PredictAware:
    """Predict-aware memory: the optimizer's state leaves the device for Predict and comes back, bit for bit, before Correct."""

    def __init__(self, optimizer: Optimizer, folder: Path | None = None) -> None:
        self.optimizer, self.store, self.away = optimizer, Store(folder), False

    def leave(self) -> None:
        """Moves every tensor of the optimizer's state off the device and gives the memory back to the system."""
        for name, state, key in self._tensors():
            self.store.put(name, state[key])
            state[key] = state[key].new_empty(0)
        self.away = True
        self.optimizer.zero_grad(set_to_none=True)
        give_back()

    def come_back(self) -> None:
        if self.away:
            for name, state, key in self._tensors():
                state[key] = self.store.get(name, state[key].device)
            self.away = False

    def _tensors(self) -> list[tuple[str, dict, str]]:
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        states = [(i, self.optimizer.state.get(p, {})) for i, p in enumerate(params)]
        return [(f"{i}.{k}", s, k) for i, s in states for k, v in s.items() if isinstance(v, Tensor) and v.ndim]


def give_back() -> None:
    """Returns freed memory to the system: CUDA's cache, and glibc's heap, which otherwise stays resident."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        pass  # another C library: nothing to trim
