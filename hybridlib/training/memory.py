"""Predict-aware memory: what leaves the device in Predict, and comes back."""

import ctypes
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from hybridlib.training.optimizers import parts
from hybridlib.training.store import Store


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
        states = enumerate(state for part in parts(self.optimizer) for state in part.state.values())
        return [(f"{i}.{k}", s, k) for i, s in states for k, v in s.items() if isinstance(v, Tensor) and v.ndim]


def give_back() -> None:
    """Returns freed memory to the system: CUDA's cache, and glibc's heap, which otherwise stays resident."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        pass  # another C library: nothing to trim


def ran_out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocator raised it: CUDA's has a type of its own, the CPU's a text."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
