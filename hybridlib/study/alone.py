"""Work that goes on in a process of its own, which ends with this one: a run without a notebook, or a module."""

import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress

from hybridlib.study.provenance import end_with
from hybridlib.study.run import Run

PATIENCE_S = 30.0  # for a checkpoint, which takes a step's time and a write's


class CannotTrain(Exception):
    """A run that could not be trained; the message says which, and what was said last."""


def train_alone(run: Run, device: str, environment: Mapping[str, str] = os.environ) -> None:
    """Train `run` on `device` in a process with the variables of `environment`. Raise `CannotTrain`."""
    command = [sys.executable, "-m", "hybridlib.training.experiment", run.model_dump_json(), device, str(os.getpid())]
    options = dict(stderr=subprocess.PIPE, encoding="utf-8", errors="replace", start_new_session=True, env=environment)
    with subprocess.Popen(command, **options) as process:
        try:
            _, said = process.communicate()
        except KeyboardInterrupt:
            process.terminate()  # it makes a checkpoint
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=PATIENCE_S)
            process.kill()
            raise
    if process.returncode:
        raise CannotTrain(f"{run.id} could not be trained: {(said.strip().splitlines() or [process.returncode])[-1]}")


def beside(module: str, *options: str) -> int:
    """Run a `module` of hybridlib with `options` in a process that ends with this one; return its exit status."""
    me, command = os.getpid(), [sys.executable, "-m", f"hybridlib.{module}", *options]
    return subprocess.run(command, preexec_fn=lambda: end_with(me)).returncode
