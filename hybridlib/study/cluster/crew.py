"""Train blocks of runs on the workers of a Dask cluster, and bring their records here.

Each block goes to one worker, run by run, so that a worker that is lost costs no more than the run that it was at.
Dask carries orders and records, and says which workers there are. Which block goes where is decided here, because only
this side knows which runs are compared.
"""

import queue
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import distributed
from rich.console import Console
from rich.markup import escape

from hybridlib.study import progress
from hybridlib.study.alone import PATIENCE_S
from hybridlib.study.cluster import worker
from hybridlib.study.cluster.blocks import Block, NoCluster, Task, Waiting
from hybridlib.study.cluster.connect import ONE_DEVICE
from hybridlib.study.cluster.hand import About, Hand, lines
from hybridlib.study.cluster.landing import Outcome, landed, set_aside
from hybridlib.study.cluster.order import Orders
from hybridlib.study.progress_line import live_line

LOOK_S = 1.0  # between two looks at which workers there are
Ended = Callable[[Task, str, float], bool]
Work = Callable[[str], dict[str, Any]]


class Crew:
    """The workers that `client` reaches, which `work` at `orders`; what happens is said on `console`."""

    def __init__(self, client: distributed.Client, orders: Orders, console: Console, work: Work = worker.work) -> None:
        self.client, self.orders, self.console, self.work = client, orders, console, work
        self.hands: dict[str, Hand] = {}
        self.came: queue.Queue[tuple[Hand, distributed.Future, Any]] = queue.Queue()
        self.forgotten: list[tuple[Hand, distributed.Future]] = []
        self.about = About.model_validate_json(worker.about())

    def train(self, blocks: list[Block], ended: Ended) -> None:
        """Train the `blocks`; call `ended` with each task, why it failed, if it did, and the seconds that it took.

        Once that returns False, no task is begun any more. Raise `NoCluster` when the scheduler is gone, or no machine
        is of the kind that the rest needs. On any exception, workers are told to stop, and have time for a checkpoint.
        """
        self.waiting, self.ended, self.going_on, self.count = Waiting(blocks), ended, True, 0
        looked_s = -LOOK_S
        try:
            with live_line(lambda: lines(self.hands, self.waiting.blocks, self.count), self.console):
                while (self.going_on and self.waiting.blocks) or any(hand.block for hand in self.hands.values()):
                    if time.monotonic() >= looked_s + LOOK_S:
                        self._look()
                        looked_s = time.monotonic()
                    self._give()
                    with suppress(queue.Empty):
                        hand, future, found = self.came.get(timeout=LOOK_S)
                        self._take(hand, future, found)
                        future.release()  # not left to its destructor, in which Python loses an interrupt
            with suppress(TimeoutError, distributed.CancelledError):  # no run depends on what is forgotten
                known = [future for hand, future in self.forgotten if hand is self.hands.get(hand.address)]
                distributed.wait(known, timeout=PATIENCE_S)
            for _, future in self.forgotten:
                future.release()
        except BaseException:
            self._stop()
            raise

    def _look(self) -> None:
        """See which workers came, and let the blocks of those that went wait again. Raise `NoCluster`."""
        if self.client.status != "running":
            raise NoCluster("The scheduler is gone. What came back is kept; the same command goes on from here.")
        try:  # asked by name: what `scheduler_info` returns may be what the client itself asks, which names no worker
            there = self.client.sync(self.client.scheduler.identity, n_workers=-1)["workers"]
        except OSError:
            return  # the next look says whether it is gone
        for hand in [hand for address, hand in self.hands.items() if address not in there]:
            self._lose(hand)
        for address, facts in there.items():
            if address not in self.hands:
                self.client.subscribe_topic(worker.TOPIC, self._hear)  # which a client that connects again has lost
                hand = self.hands[address] = Hand(address, str(facts.get("name") or address))
                if (facts.get("resources") or {}).get("device", 0) < 1:
                    self._refuse(hand, "it offers no device: start it with --resources device=1")
                else:
                    self._expect(hand, About.model_validate_json, worker.about)

    def _give(self) -> None:
        """Give each worker that has nothing to do a block, if there is one for it."""
        present = [hand.machine for hand in self.hands.values() if hand.machine]
        for hand in self.hands.values():
            if hand.machine and not hand.block and self.going_on:
                hand.block = self.waiting.take(hand.machine, present, time.monotonic())
                if hand.block:
                    if hand.block.moved:
                        self._say(f"{hand.block.name}: its machine is not there; {hand.name} trains all of it anew.")
                        for task in hand.block.tasks:
                            set_aside(task.run)
                    self._next(hand)
        if not any(hand.block for hand in self.hands.values()):
            self.waiting.require(present, time.monotonic())

    def _next(self, hand: Hand) -> None:
        """Have `hand` begin the next task of its block, or end with the block."""
        block = hand.block
        while block.todo and self._is_needless(block.todo[0]):
            block.done.append(block.todo[0])
        if block.todo and self.going_on:
            hand.task, hand.since_s, hand.said = block.todo[0], time.monotonic(), ""
            order = self.orders.order(hand.task, hand.gpu, hand.machine.host)
            self._expect(hand, Outcome.model_validate, self.work, order, resources=ONE_DEVICE)
            return
        landed = [task.run.id for task in block.done if progress.run_state(task.run) in progress.WHOLE]
        hand.block = hand.task = hand.future = None
        done = self._submit(hand, worker.forget, block.tasks[0].run.study, landed, self.orders.token)
        self.forgotten.append((hand, done))

    @staticmethod
    def _is_needless(task: Task) -> bool:
        """Return whether `task` extends a run that failed, or that reached its target without it."""
        return bool(task.job and task.job.extends) and progress.run_state(task.run) != "extendable"

    def _submit(self, hand: Hand, function: Callable, *given: Any, **options: Any) -> distributed.Future:
        """Have the worker of `hand` call `function` with what is `given`; `options` are those of Dask's `submit`."""
        here = dict(workers=[hand.address], allow_other_workers=False, pure=False)
        return self.client.submit(function, *given, key=f"hybridlib-{uuid.uuid4()}", **here, **options)

    def _expect(self, hand: Hand, read: Callable, *submitted: Any, **options: Any) -> None:
        """Have the worker of `hand` do what is `submitted`; what `read` makes of what it brings is taken when it comes.

        It is fetched in a thread of Dask's, beside the looks at who is there: of a worker that is lost nothing comes.
        """

        def fetch(done: distributed.Future) -> None:
            try:
                found = read(done.result())
            except Exception as error:  # whatever a worker with other code raises, or sends
                found = error
            self.came.put((hand, done, found))

        hand.future = self._submit(hand, *submitted, **options)
        hand.future.add_done_callback(fetch)

    def _take(self, hand: Hand, future: distributed.Future, found: Any) -> None:
        """Take what came back from `hand`: what it is, what became of its task, or the error that came instead."""
        if hand is not self.hands.get(hand.address):
            return
        if isinstance(found, (OSError, distributed.CancelledError)) and future.status != "error":
            self._lose(hand)  # the connection broke, not the task; the next look finds the worker, if it is there
            return
        if not hand.task:
            self._judge(hand, found)
            return
        if isinstance(found, Exception):
            found = Outcome(message=f"{hand.name} failed: {found!r}")
        if found.refused or found.stopped:
            if found.refused:
                self.orders.refused(hand.task, hand.machine.host)
            self._release(hand)
            self._refuse(hand, found.refused or "it is told to close")
            return
        for line in found.warnings.splitlines():
            self._say(line)
        task, message = hand.task, landed(hand.task.run, found)
        hand.block.done.append(task)
        self.count += 1
        self.going_on &= self.ended(task, message, time.monotonic() - hand.since_s)
        self._next(hand)

    def _judge(self, hand: Hand, found: About | Exception) -> None:
        """Take `hand` on, or refuse it, by what it has `found` of itself."""
        others = [other for other in self.hands.values() if other.machine]
        shares = self.orders.study is None and self.orders.device != "auto"  # trials are compared by loss alone
        try:
            hand.take_on(found, self.about, others, self.orders.device, shares)
        except ValueError as error:
            self._refuse(hand, str(error))

    def _refuse(self, hand: Hand, why: str) -> None:
        hand.machine = None
        self._say(f"{hand.name} is not used: {why}")

    def _lose(self, hand: Hand) -> None:
        """Forget `hand`, whose worker or connection is lost, what it was asked for, and let its block wait again."""
        del self.hands[hand.address]
        if hand.future:
            with suppress(Exception):  # of a client that is closed
                self.client.cancel([hand.future])  # or a worker that comes back at this address would begin with it
        if hand.block:
            if self.client.status == "running":
                self._say(f"{hand.name} is lost; {hand.task.name} is trained again, or goes on, elsewhere.")
            self._release(hand)

    def _release(self, hand: Hand) -> None:
        self.waiting.put_back(hand.block, time.monotonic())
        hand.block = hand.task = hand.future = None

    def _hear(self, event: tuple[float, dict[str, str]]) -> None:
        _, message = event
        if hand := self.hands.get(message["address"]):
            hand.said = message["said"]

    def _say(self, text: str) -> None:
        self.console.print(f"[yellow]{escape(text)}[/]")

    def _stop(self) -> None:
        """Cancel what workers are at, and wait until they have stopped, after a checkpoint, or are lost."""
        at_work = [hand for hand in self.hands.values() if hand.task]
        with suppress(Exception):  # of a scheduler that is gone
            for hand in at_work:
                hand.said = "stopping"
            self.client.cancel([hand.future for hand in at_work])
            until_s = time.monotonic() + PATIENCE_S
            while any(hand.said for hand in at_work) and time.monotonic() < until_s:
                time.sleep(0.1)
