"""Says what takes long before training starts: one line redrawn on a terminal, a plain line now and then elsewhere."""

import multiprocessing
import sys
import time

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from hybridlib.study.progress_line import BackgroundLine

QUIET_S = 2.0  # what is done sooner says nothing
PLAIN_EVERY_S = 30.0  # where there is no terminal to redraw a line on


class Activity(BackgroundLine):
    """While its block runs, shows the label, what was last given to `say`, and the seconds so far, on stderr."""

    def __init__(self, label: str) -> None:
        self.label, self.doing, self.started = label, "", time.monotonic()
        super().__init__()

    def say(self, doing: str) -> None:
        self.doing = doing

    def show(self) -> None:
        console = Console(stderr=True)
        # Workers side by side share their parent's terminal, where their lines would overwrite one another.
        if console.is_terminal and multiprocessing.parent_process() is None:
            if not self.done.wait(QUIET_S):
                with Status(escape(self._text()), console=console, refresh_per_second=1) as status:
                    while not self.done.wait(0.5):
                        status.update(escape(self._text()))
        else:
            while not self.done.wait(PLAIN_EVERY_S):
                print(self._text(), file=sys.stderr, flush=True)

    def _text(self) -> str:
        return f"{self.label}: {self.doing}, {time.monotonic() - self.started:.0f} s"
