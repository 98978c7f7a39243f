"""Predict-aware memory: an optimizer's state leaves the device while no gradient is computed."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hybridlib.method.store import TensorStore, strides
from hybridlib.method.wrapping import states_of


class OptimizerOffload:
    """Predict-aware memory: an optimizer's state leaves the device in Predict and comes back for Correct, bit for bit.

    Args:
        optimizer: whose state it is; one that wraps another has that one's state too.
        folder: as for `TensorStore`.
    """

    def __init__(self, optimizer: Optimizer, folder: Path | None = None) -> None:
        self.optimizer, self.store, self.away = optimizer, TensorStore(folder), False
        self._strides: dict[str, tuple[int, ...]] = {}

    def offload(self) -> None:
        """Move every tensor of the state, but for single numbers, off the device, and free the gradients.

        Raises `OSError` where there is no room; `restore` brings back what has left by then.
        """
        if not self.away:
            self.away = True
            for name, state, key in self._tensors():
                self.store.put(name, state[key])
                self._strides[name] = strides(state[key])
                state[key] = state[key].new_empty(0)
        self.optimizer.zero_grad(set_to_none=True)

    def restore(self) -> None:
        """Bring back what is away, if anything is."""
        if self.away:
            kept = self.store.entries()
            gone = [each for each in self._tensors() if not each[1][each[2]].numel()]
            for name, state, key in gone:
                state[key] = state[key].new_empty_strided(kept[name].shape, self._strides[name])
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # fresh pages take longer to touch than to copy
                list(pool.map(lambda each: self.store.read(each[0], each[1][each[2]]), gone))
            self.away = False

    @property
    def stored_bytes(self) -> int:
        """The bytes that are away now."""
        return self.store.nbytes if self.away else 0

    def _tensors(self) -> list[tuple[str, Any, Any]]:
        """Return the name, the mapping or list that holds it, and the key or index there, of each tensor to move."""
        found: list[tuple[str, Any, Any]] = []
        states = enumerate(kept for state in states_of(self.optimizer) for kept in state.values())
        for i, kept in states:
            for key, value in kept.items():
                if isinstance(value, list):  # as SOAP keeps matrices
                    found += [(f"{i}.{key}.{at}", value, at) for at in range(len(value))]
                else:
                    found.append((f"{i}.{key}", kept, key))
        return [each for each in found if isinstance(tensor := each[1][each[2]], Tensor) and tensor.ndim]
