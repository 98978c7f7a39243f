"""The progress line of the job that runs: read from its records, so that training knows nothing of it."""

import io
import sys
import threading
import time
from types import TracebackType
from typing import Self

import pandas as pd
from rich.console import Console
from rich.status import Status

from hybridlib.study import progress
from hybridlib.study.plan import Job
from hybridlib.study.run import Run

REFRESH_S = 2.0
PLAIN_EVERY_S = 15.0  # where there is no terminal to redraw a line on


class BackgroundLine:
    """Runs `show` in a thread of its own while a block runs; `done` is set when the block ends."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self._thread = threading.Thread(target=self.show, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.done.set()
        self._thread.join()

    def show(self) -> None:
        """Say what is going on, until `done`."""
        raise NotImplementedError


class ProgressLine(BackgroundLine):
    """Shows a job's progress while its block runs: one line redrawn on a terminal, a plain line now and then elsewhere."""

    def __init__(self, job: Job, label: str, console: Console) -> None:
        self.job, self.label, self.console = job, label, console
        self.started = time.time()
        super().__init__()

    def show(self) -> None:
        if self.console.is_terminal:
            with Status(self._text(), console=self.console, refresh_per_second=1) as status:
                while not self.done.wait(REFRESH_S):
                    status.update(self._text())
        else:
            while not self.done.wait(PLAIN_EVERY_S):
                print(self._text(), flush=True, file=sys.stdout)

    def _text(self) -> str:
        said = how_far(self.job.run, self.started) if self.job.run else f"{time.time() - self.started:.0f} s"
        return f"{self.label} {self.job.name}: {said}"


def how_far(run: Run, since: float) -> str:
    """Step, loss, tokens a second and time left of a run; rows written before `since` (a time) are not its own."""
    file = progress.folder(run) / "steps.csv"
    if not file.exists() or file.stat().st_mtime < since:
        return "starting"
    text = file.read_text()
    steps = pd.read_csv(io.StringIO(text[: text.rfind("\n") + 1]))
    if steps.empty:
        return "starting"
    step, losses = int(steps.step.iloc[-1]), steps.loss.dropna()
    recent = steps.tail(100).step_s.mean()
    last = run.steps if step <= run.steps else int(run.extend * run.steps)
    loss = f"loss {losses.iloc[-1]:.3f}, " if len(losses) else ""
    return (
        f"step {step}/{last}{' at most' if last > run.steps else ''}, {loss}"
        f"{run.batch_size * run.seq_len / recent:,.0f} tokens/s, {duration((last - step) * recent)} left"
    )


def duration(seconds: float) -> str:
    """Seconds as a person says them: 45 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
