"""Contenders timed in turns, so that a slow minute of the machine cancels out; work in a process of its own."""

import multiprocessing
import os
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from hybridlib.study.provenance import end_with

Block = Callable[[], list[float]]  # does the work some times over, and returns the seconds of each


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a call of `work`, with the outstanding work of `device`."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started_s = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started_s


def median_s(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the median seconds of `repeats` calls of `work` on `device`, after one that is not counted."""
    return float(np.median([timed(work, device) for _ in range(repeats + 1)][1:]))


@dataclass(frozen=True)
class Spread:
    """A `median` with the quartiles around it, `low` and `high`."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: "pd.Series[float] | list[float]") -> "Spread":
        """Return the spread of `values`, at least one."""
        low, median, high = np.percentile(values, [25, 50, 75])
        return cls(float(median), float(low), float(high))


def in_turns(contenders: Mapping[str, Block], rounds: int, seed: int = 0) -> pd.DataFrame:
    """Return the median seconds of every block: columns `round, contender, seconds`.

    Each of `contenders` has one block a round, in an order shuffled by `seed`. Before the `rounds`, one more is run and
    discarded: it loads libraries and fills caches.
    """
    rows, order, draw = [], list(contenders), random.Random(seed)
    for at in range(-1, rounds):
        draw.shuffle(order)
        for name in order:
            seconds = float(np.median(contenders[name]()))
            rows += [dict(round=at, contender=name, seconds=seconds)] if at >= 0 else []
    return pd.DataFrame(rows, columns=["round", "contender", "seconds"])


def ratio(times: pd.DataFrame, of: str, to: str) -> Spread:
    """Return the time of contender `of` over that of `to`, round by round, from `times` as `in_turns` returns them."""
    by_round = times.pivot(index="round", columns="contender", values="seconds")
    return Spread.of(by_round[of] / by_round[to])


def alone(work: Callable[..., Any], *given: Any) -> Any:
    """Return what `work` returns for the arguments `given`, or raise what it raises, in a fresh process."""
    fresh = dict(mp_context=multiprocessing.get_context("spawn"), initializer=_end_with, initargs=(os.getpid(),))
    with ProcessPoolExecutor(1, **fresh) as pool:
        return pool.submit(work, *given).result()


def _end_with(parent: int) -> None:
    if not end_with(parent):
        os._exit(1)  # the parent has ended, and nobody waits
