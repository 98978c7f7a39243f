"""What the command says while it works: the progress of the job that runs, read from its records, and durations."""

import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape

from hybridlib.study import progress
from hybridlib.study.plan import Job
from hybridlib.study.run import Run

REFRESH_S = 1.0


def use_utf8() -> None:
    """Start this program again in Python's UTF-8 mode if the locale has file names and text in another encoding.

    Its children inherit the mode. Standard output stays in the terminal's encoding.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        own = {"PYTHONUTF8": "1", "PYTHONIOENCODING": os.environ.get("PYTHONIOENCODING", sys.stdout.encoding)}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | own)


def replace_unknown_characters() -> None:
    """Have standard output write `?` for a character that its encoding lacks, where Python would raise an error."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")


@contextmanager
def live_line(
    text: Callable[[], str], console: Console, quiet_s: float = 0.0, plain_every_s: float = 15.0
) -> Iterator[None]:
    """While the block runs, show on `console` what `text` returns.

    A terminal has one line that is redrawn, and none for the first `quiet_s` seconds. Elsewhere a line is printed every
    `plain_every_s` seconds.
    """
    done = threading.Event()

    def show() -> None:
        if console.is_terminal and not done.wait(quiet_s):
            with console.status(escape(text())) as status:
                while not done.wait(REFRESH_S):
                    status.update(escape(text()))
        while not done.wait(plain_every_s):
            console.print(escape(text()))

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def progress_of(job: Job, label: str) -> Callable[[], str]:
    """Return what says how far `job`, which starts now, has come; `label` stands before its name."""
    started = time.time()
    if job.run:
        return lambda: f"{label} {job.name}: {how_far(job.run, progress.run_folder(job.run), started)}"
    return lambda: f"{label} {job.name}: {duration(time.time() - started)}"


def how_far(run: Run, folder: Path, since: float) -> str:
    """Say step, loss, tokens a second and time left of `run`, whose records lie in `folder`.

    Rows written before the time `since` are not its own.
    """
    file = folder / "steps.csv"
    try:
        if file.stat().st_mtime < since:
            return "starting"
        text = file.read_text(encoding="utf-8", errors="replace")
        steps = pd.read_csv(io.StringIO(text[: text.rfind("\n") + 1]))
        step, losses, recent_s = int(steps.step.iloc[-1]), steps.loss.dropna(), steps.tail(100).step_s.mean()
        last = run.steps if step <= run.steps else run.most_steps
        loss = f"loss {losses.iloc[-1]:.3f}, " if len(losses) else ""
        rate, left = f"{run.batch_size * run.seq_len / recent_s:,.0f} tokens/s", duration((last - step) * recent_s)
    except (OSError, ValueError, LookupError, AttributeError, ArithmeticError):  # no row yet, or a damaged one
        return "starting"
    return f"step {step}/{last}{' at most' if last > run.steps else ''}, {loss}{rate}, {left} left"


def duration(seconds: float) -> str:
    """Return `seconds` as a person says them: 45 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
