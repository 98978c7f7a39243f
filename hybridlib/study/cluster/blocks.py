"""Blocks of runs, each for one machine, and which of them a worker gets next. Nothing here knows Dask."""

import math
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from hybridlib.study import progress
from hybridlib.study.plan import Job
from hybridlib.study.records import RunFolder
from hybridlib.study.run import Run

PATIENCE_S = 30.0  # that a block which has begun waits for its machine: a worker that was killed starts again by then


class NoCluster(OSError):
    """No scheduler answers, or Dask is not installed; the message says which, and what to do."""


@dataclass(frozen=True)
class Machine:
    """What `computes` on a worker, as records name it without the number of threads, and the name of its `host`.

    Of a record's machine the host is not known, and empty.
    """

    computes: str
    host: str = ""

    @property
    def kind(self) -> str:
        """`cpu` or `cuda`."""
        return self.computes.partition(":")[0]

    def is_that_of(self, other: "Machine") -> bool:
        """Return whether this machine may be the `other` one."""
        return self.computes == other.computes and (not self.host or not other.host or self.host == other.host)


def machine_of(device: str) -> Machine:
    """Return the machine of a record, which names its `device`: `cpu: AMD EPYC, 2 threads`."""
    return Machine(re.sub(r", \d+ threads$", "", device))


@dataclass(frozen=True, eq=False)
class Task:
    """A `run` to be trained in about `seconds`: by the notebook of `job`, or without one where that is None."""

    run: Run
    job: Job | None
    seconds: float

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.job.name if self.job else f"{self.run.study}: {self.run.id}"


@dataclass
class Block:
    """The `tasks`, in order, of runs that are compared by their times: one machine makes all of them.

    `done` holds those that have ended, and `machine` where; it is None while nothing has. `since_s` is the time from
    which the block has waited, and `moved` whether it began anew elsewhere. Blocks of a `group`, if it has a name, are
    compared by their losses: machines that compute alike make all of them.
    """

    name: str
    tasks: list[Task]
    done: list[Task] = field(default_factory=list)
    machine: Machine | None = None
    since_s: float = 0.0
    moved: bool = False
    group: str = ""

    @property
    def todo(self) -> list[Task]:
        """The tasks that have not ended, in order."""
        return [task for task in self.tasks if task not in self.done]

    @property
    def seconds(self) -> float:
        """The time that the tasks to do may take."""
        return sum(task.seconds for task in self.todo)


class Waiting:
    """The `blocks` that no worker has, the longest first: so the last to end is a short one.

    Where all workers are there from the start, the last block then ends at most a third later than in the best order
    (Graham 1969, "Bounds on multiprocessing timing anomalies", SIAM Journal on Applied Mathematics 17).
    """

    def __init__(self, blocks: list[Block]) -> None:
        self.blocks = [block for block in blocks if block.todo]
        known = ((block.group, block.machine.computes) for block in blocks if block.group and block.machine)
        self.computes = dict(known)  # what computes the blocks of a group
        self.stuck_since_s = math.inf
        self._sort()

    def take(self, machine: Machine, present: Iterable[Machine], now_s: float) -> Block | None:
        """Return the block that a worker on `machine` is to train, None if it should wait; it waits no longer here.

        A block that has begun goes to its own machine. If that is not among the machines `present`, and has not come
        back for PATIENCE_S seconds at the time `now_s`, the block begins anew: its tasks are all to do again.
        """
        for block in self.blocks:
            if self.computes.get(block.group, machine.computes) != machine.computes:
                continue
            alone = not any(other.is_that_of(block.machine) for other in present) if block.machine else False
            gone = alone and now_s - block.since_s >= PATIENCE_S
            if block.machine is None or machine.is_that_of(block.machine) or gone:
                if gone:
                    block.done.clear()
                if block.group:
                    self.computes[block.group] = machine.computes
                block.machine, block.moved, self.stuck_since_s = machine, gone, math.inf
                self.blocks.remove(block)
                return block
        return None

    def require(self, there: Iterable[Machine], now_s: float) -> None:
        """Raise `NoCluster` if what waits has waited, at `now_s`, PATIENCE_S seconds for machines that are not `there`.

        To be asked while nobody is at work. What is not there is the kind that computed the rest of the groups.
        """
        here, wanted = {each.computes for each in there}, {self.computes.get(block.group) for block in self.blocks}
        if not here or not wanted or None in wanted or wanted & here:
            self.stuck_since_s = math.inf
            return
        self.stuck_since_s = min(self.stuck_since_s, now_s)
        if now_s - self.stuck_since_s >= PATIENCE_S:
            groups, kinds, others = (", ".join(sorted(n)) for n in ({b.group for b in self.blocks}, wanted, here))
            raise NoCluster(
                f"{groups}: the others were trained on {kinds}. On {others} rounding differs, and losses with it. "
                f"The same command goes on where there is such a machine."
            )

    def put_back(self, block: Block, now_s: float) -> None:
        """Let `block`, whose worker is lost at the time `now_s`, wait again."""
        block.since_s = now_s
        if not block.done:
            block.machine = None
        self.blocks.append(block)
        self._sort()

    def _sort(self) -> None:
        self.blocks.sort(key=lambda block: -block.seconds)


def block_of(name: str, tasks: list[Task], group: str = "") -> Block:
    """Return `tasks` as the block `name` of `group`, what is complete done where its records say.

    What extends a run is to do, too, while that run's target is yet to come, from a baseline of the block.
    """
    found = [(task, progress.run_state(task.run)) for task in tasks]
    unfinished = any(state not in progress.WHOLE for _, state in found)

    def is_done(task: Task, state: str) -> bool:
        extends = task.job and task.job.extends
        to_come = extends and (state == "extendable" or (unfinished and progress.awaits_target(task.run)))
        return state in progress.WHOLE and not to_come

    done = [task for task, state in found if is_done(task, state)]
    devices = [RunFolder(progress.run_folder(task.run)).facts["device"] for task in done]
    return Block(name, tasks, done, machine_of(devices[0]) if devices else None, time.monotonic(), group=group)
