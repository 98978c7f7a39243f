"""Work in a process of its own: what another left in memory is in none of its figures."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any


def alone(work: Callable[..., Any], *given: Any) -> Any:
    """Does the work in a fresh process, and returns what it returns, or raises what it raises."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *given).result()
