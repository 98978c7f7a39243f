"""Faults put in on purpose, to see them detected and recovered from. Off unless an arm asks for one."""

from contextlib import contextmanager
from typing import Iterator

from torch.optim import Optimizer

from hybridlib.config import Fault


@contextmanager
def spiked(optimizer: Optimizer, fault: Fault | None, step: int) -> Iterator[bool]:
    """Puts a fault into one step: the learning rate times `factor`. Yields whether it did."""
    if fault is None or fault.step != step:
        yield False
        return
    for group in optimizer.param_groups:
        group["lr"] *= fault.factor
    yield True
    for group in optimizer.param_groups:
        group["lr"] /= fault.factor
