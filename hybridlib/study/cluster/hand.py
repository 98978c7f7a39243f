"""A worker as the side that asks knows it, and whether it may be used: what it says of itself beside what is here."""

from dataclasses import dataclass

import distributed
from pydantic import BaseModel, ConfigDict

from hybridlib.study.cluster.blocks import Block, Machine, Task
from hybridlib.study.progress import differences
from hybridlib.study.progress_line import duration

FEW = 4  # differences that are named


class About(BaseModel):
    """What a worker says of itself: what must be the `same` on both sides, its `host`, `processor` and `gpus`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    same: dict[str, int | str]
    host: str
    processor: str
    gpus: list[str]

    def must_be_like(self, here: "About") -> None:
        """Raise `ValueError`, which names both, where this worker has not the versions and NUMERICS of `here`."""
        differ = differences(here.same, self.same)
        if differ:
            said = [f"{key} is {its} there, {own} here" for key, own, its in differ]
            more = f"; and {len(said) - FEW} more differ" if len(said) > FEW else ""
            raise ValueError("; ".join(said[:FEW]) + more)

    def gpu_for(self, device: str, taken: list[str]) -> str:
        """Return the number of the GPU that this worker is on: the one that `device` names, else one that is free.

        It is empty where the worker has but one, or trains on the CPU. `taken` are those of the other workers of its
        host that it must not share. Raise `ValueError` where none is left, or where it has not, or must not share, the
        one that `device` names.
        """
        if device.startswith("cuda") and not self.gpus:
            raise ValueError(f"--device {device}: it has no GPU")
        if _number(device) >= max(len(self.gpus), 1):
            raise ValueError(f"--device {device}: its last GPU is cuda:{len(self.gpus) - 1}")
        if device == "cpu" or len(self.gpus) < 2:
            return ""
        if device != "auto" and str(_number(device)) in taken:
            raise ValueError(f"--device {device}: it has a worker already; --device auto gives each a GPU of its own")
        free = [str(at) for at in range(len(self.gpus)) if str(at) not in taken]
        if not free:
            raise ValueError(f"each of the {len(self.gpus)} GPUs of {self.host} has a worker already")
        return free[0] if device == "auto" else str(_number(device))

    def machine(self, device: str, gpu: str) -> Machine:
        """Return the machine of this worker when it trains on `device`, there on the GPU `gpu` if that has a number."""
        if device == "cpu" or not self.gpus:
            return Machine(f"cpu: {self.processor}", self.host)
        at = int(gpu) if gpu else _number(device)
        return Machine(f"cuda: {self.gpus[at]}", self.host)


def _number(device: str) -> int:
    """Return the number of the GPU that `device` names, 0 where it names none."""
    return int(device.partition(":")[2] or 0)


@dataclass(eq=False)
class Hand:
    """A worker at `address`, called `name`, on `machine`, and what it is at.

    `machine` is None until it has said what it is, and for one that is refused. `gpu` is the number of the GPU that it
    is on, empty where it has but one or none. It works at `task` of `block` since `since_s`; `future` is what it was
    asked for last, and `said` is how far it is.
    """

    address: str
    name: str
    machine: Machine | None = None
    gpu: str = ""
    block: Block | None = None
    task: Task | None = None
    future: distributed.Future | None = None
    since_s: float = 0.0
    said: str = ""

    def take_on(self, found: About | Exception, here: About, others: list["Hand"], device: str, shares: bool) -> None:
        """Let this worker train on `device`, by what it has `found` of itself. Raise `ValueError` where it must not.

        Args:
            found: what it says of itself, or why it says nothing.
            here: what is true on the side that asks.
            others: the workers that were taken on before.
            device: as the command has it.
            shares: whether workers of a host may have one GPU together.
        """
        if isinstance(found, Exception):
            raise ValueError(f"it, or the scheduler, was not started with this project: {found!r}")
        found.must_be_like(here)
        taken = [other.gpu for other in others if other.machine.host == found.host]
        gpu = found.gpu_for(device, [] if shares else taken)
        machine = found.machine(device, gpu)
        if any(other.machine.kind != machine.kind for other in others):
            raise ValueError(f"it would train on {machine.computes}, others do not: choose by --device cpu or cuda:0")
        self.gpu, self.machine = gpu, machine


def lines(hands: dict[str, Hand], waiting: list[Block], count: int) -> str:
    """Say that `count` runs have ended, how long the rest may take, and in a line for each of `hands` what it is at.

    `waiting` are the blocks that no worker has.
    """
    at_work = [(hand, hand.task, hand.block) for hand in list(hands.values()) if hand.task and hand.block]
    blocks = [*waiting, *(block for _, _, block in at_work)]
    head = f"{count} of {count + sum(len(block.todo) for block in blocks)} runs"
    if not at_work:
        return f"{head}: waiting for workers"
    left_s = sum(block.seconds for block in blocks) / len(at_work)
    said = [f"  {hand.name}: {task.name}: {hand.said or 'starting'}" for hand, task, _ in at_work]
    return "\n".join([f"{head}, {len(at_work)} workers at work, {duration(left_s)} left", *said])
