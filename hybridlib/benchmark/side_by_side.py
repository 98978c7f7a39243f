"""Contenders in turns, each for a while and then again, so that a slow minute of the machine cancels out; memory alone."""

import multiprocessing
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

Block = Callable[[], list[float]]  # does the work some times over, and returns the seconds of each


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, the device's outstanding work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started_s = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started_s


@dataclass(frozen=True)
class Spread:
    """A median with the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: "pd.Series[float]") -> "Spread":
        low, median, high = np.percentile(values, [25, 50, 75])
        return cls(float(median), float(low), float(high))


def in_turns(contenders: Mapping[str, Block], rounds: int, seed: int = 0) -> pd.DataFrame:
    """Columns `round, contender, seconds`: the median of each block, every contender once a round, in a shuffled order.

    One round more is run first, and not kept: it loads libraries and fills caches.
    """
    rows, order, draw = [], list(contenders), random.Random(seed)
    for at in range(-1, rounds):
        draw.shuffle(order)
        for name in order:
            seconds = float(np.median(contenders[name]()))
            rows += [dict(round=at, contender=name, seconds=seconds)] if at >= 0 else []
    return pd.DataFrame(rows, columns=["round", "contender", "seconds"])


def ratio(times: pd.DataFrame, of: str, to: str) -> Spread:
    """One contender's time over another's, round by round. Raises `KeyError` for a contender that was not timed."""
    by_round = times.pivot(index="round", columns="contender", values="seconds")
    return Spread.of(by_round[of] / by_round[to])


def alone(work: Callable[..., Any], *given: Any) -> Any:
    """Does the work in a fresh process, and returns what it returns, or raises what it raises."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *given).result()
