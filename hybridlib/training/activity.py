"""Says what takes long before training starts: one line redrawn on a terminal, a plain line now and then elsewhere."""

import multiprocessing
import time
from types import TracebackType
from typing import Self

from rich.console import Console

from hybridlib.study.progress_line import live_line

QUIET_S = 2.0  # what is done sooner says nothing
PLAIN_EVERY_S = 30.0  # where there is no terminal to redraw a line on


class Activity:
    """While its block runs, shows `label`, what was last given to `say`, and the seconds so far, on stderr."""

    def __init__(self, label: str) -> None:
        self.label, self.doing, self.started = label, "", time.monotonic()
        # Workers side by side share their parent's terminal, where their lines would overwrite one another.
        terminal = None if multiprocessing.parent_process() is None else False
        console = Console(stderr=True, highlight=False, soft_wrap=True, force_terminal=terminal)
        self._line = live_line(self._text, console, QUIET_S, PLAIN_EVERY_S)

    def say(self, doing: str) -> None:
        """Show `doing` from now on."""
        self.doing = doing

    def __enter__(self) -> Self:
        self._line.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._line.__exit__(kind, error, trace)

    def _text(self) -> str:
        return f"{self.label}: {self.doing}, {time.monotonic() - self.started:.0f} s"
