"""Work that goes on in a process of its own, which ends with this one: a run without a notebook, or a module."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress

from hybridlib.study.provenance import end_with
from hybridlib.study.run import Run

PATIENCE_S = 30.0  # for a checkpoint, which takes a step's time and a write's


class CannotTrain(Exception):
    """A run that could not be trained; the message says which, and what was said last."""


def train_alone(run: Run, device: str, environment: Mapping[str, str] = os.environ) -> str:
    """Train `run` on `device` in a process with the variables of `environment`; return its warnings, a line each.

    Raise `CannotTrain`.
    """
    command = [sys.executable, "-m", "hybridlib.training.experiment", run.model_dump_json(), device, str(os.getpid())]
    options = dict(stderr=subprocess.PIPE, encoding="utf-8", errors="replace", start_new_session=True, env=environment)
    with subprocess.Popen(command, **options) as process:
        said = said_by(process)
    lines = warnings_in(said)
    if process.returncode < 0:
        ended = signal.Signals(-process.returncode).name
        lines.append(f"its process was ended by {ended}" + ", as where memory runs out" * (ended == "SIGKILL"))
    if process.returncode:
        raise CannotTrain(f"{run.id} could not be trained: {(lines or [process.returncode])[-1]}")
    return "\n".join(lines)


def warnings_in(text: str) -> list[str]:
    """Return the lines of `text`, written to stderr, warnings without their place in the code."""
    lines = (line for line in text.splitlines() if line.strip() and not line.startswith("  "))  # as code under one does
    return [re.sub(r"^.*?:\d+: \w*Warning: ", "", line) for line in lines]


def beside(module: str, *options: str) -> int:
    """Run a `module` of hybridlib with `options` in a process that ends with this one; return its exit status."""
    me, command = os.getpid(), [sys.executable, "-m", f"hybridlib.{module}", *options]
    guarded = dict(preexec_fn=lambda: end_with(me), start_new_session=True)
    with subprocess.Popen(command, **guarded) as process:
        said_by(process)
    return process.returncode


def said_by(process: subprocess.Popen) -> str | None:
    """Wait for `process`, and return what it wrote to a pipe as stderr.

    On `KeyboardInterrupt` tell it to end, which takes a checkpoint, and kill it when PATIENCE_S have passed.
    """
    try:
        return process.communicate()[1]
    except KeyboardInterrupt:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=PATIENCE_S)
        process.kill()
        raise


def interrupt_at_signals() -> None:
    """Have SIGINT and SIGTERM raise `KeyboardInterrupt`; its argument is the number of the signal."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt(number)
