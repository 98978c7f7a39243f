"""A polite kill (SIGTERM, as a scheduler sends it before it takes a machine away) becomes a checkpoint, and then the end."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Self


class Preemption:
    """While entered, SIGTERM only sets `asked`, for a loop to see between two steps.

    A process that was asked ends by that signal when this is left, as if nothing had caught it. Outside the main thread,
    where Python handles no signals, nothing is caught.
    """

    asked = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before)
        if self.asked:
            os.kill(os.getpid(), signal.SIGTERM)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
