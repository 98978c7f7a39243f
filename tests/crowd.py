"""Many workers in one process, which make believe that they train: `crowd.py scheduler.json count`."""

import asyncio
import json
import sys
import time
from typing import Any

from distributed import Worker, get_worker

BOOT_S = 1.0  # until a worker that was lost has started again
LOST: set[str] = set()


def fake(order: str) -> dict[str, Any]:
    """Take the time that the run's `about` says; if it says so, the worker is lost on the way, once."""
    run, worker = json.loads(order)["run"], get_worker()
    how = json.loads(run["about"])
    if how["lost"] is not None and run["arm"] not in LOST:
        LOST.add(run["arm"])
        time.sleep(how["s"] * how["lost"])
        worker.loop.add_callback(lose, worker)
        time.sleep(BOOT_S)
    else:
        time.sleep(how["s"])
    return {}


async def lose(worker: Worker) -> None:
    """Close `worker` at once, and start another one a while later."""
    await worker.close(timeout=2, executor_wait=False, nanny=False)
    await asyncio.sleep(BOOT_S)
    await start(worker.scheduler.address)


async def start(scheduler: str) -> Worker:
    """A worker that has joined the `scheduler`."""
    return await Worker(scheduler, nthreads=1, resources={"device": 1}, dashboard=False, host="127.0.0.1")


async def main(scheduler: str, count: int) -> None:
    """Have `count` workers join the `scheduler`, and serve until killed."""
    for _ in range(count):
        await start(scheduler)
    await asyncio.Event().wait()


if __name__ == "__main__":
    sys.modules["crowd"] = sys.modules["__main__"]  # what a task names by the module is what runs here
    with open(sys.argv[1]) as file:
        address = json.load(file)["address"]
    asyncio.run(main(address, int(sys.argv[2])))
