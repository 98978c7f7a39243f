"""Execute a job: its notebook, with its parameters, in a fresh kernel of this very Python. papermill does the work."""

import ast
import asyncio
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import papermill
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError, strip_color
from rich.console import Console
from rich.markup import escape

from hybridlib.method.settings import instead, problem
from hybridlib.study import chapters, progress
from hybridlib.study.alone import PATIENCE_S, warnings_in
from hybridlib.study.chapters import source, stamp
from hybridlib.study.plan import PIPELINE, Job
from hybridlib.study.provenance import ROOT, from_root
from hybridlib.study.storage import locked, part_of, remove_checkpoints, writing

OUTPUT_S = 60  # that a cell's last output may take to arrive, as on a machine that has much else to do


class Kernel(AsyncKernelManager):
    """A kernel of the Python that runs this process, whatever kernels and IPython profile its user has.

    It has no log: errors of cells reach the notebook, the noise of an interrupted process nobody. ipykernel ends it
    when this process has ended.
    """

    @property
    def kernel_spec(self) -> KernelSpec:
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="Python", language="python")

    async def start_kernel(self, **options: Any) -> None:
        """Start it with a profile of the project's own; `options` are the base class's."""
        own = os.environ | {"IPYTHONDIR": str(ROOT / ".cache" / "ipython")}
        await super().start_kernel(stderr=subprocess.DEVNULL, env=own, **options)

    async def shutdown_kernel(self, now: bool = False, restart: bool = False) -> None:
        """Ask it to end first: one that trains makes a checkpoint then. `now` and `restart` are the base class's."""
        if self.provisioner is not None:
            await self.provisioner.terminate()
            until_s = time.monotonic() + PATIENCE_S
            while await self.provisioner.poll() is None and time.monotonic() < until_s:
                await asyncio.sleep(0.05)
        await super().shutdown_kernel(now=now, restart=restart)


class JobFailed(Exception):
    """A notebook that did not run to its end; the message says where, and where the traceback lies."""


def executed(job: Job, study: str) -> Path:
    """Return where the executed notebook of `job` lies in the outputs of `study`."""
    return progress.run_folder(job.run) / "run.ipynb" if job.run else chapters.chapter_path(job, study)


def check(jobs: list[Job]) -> None:
    """Raise `ValueError` if one of `jobs` gives its notebook a parameter that its `parameters` cell cannot take."""
    known: dict[str, dict[str, Any]] = {}
    for job in jobs:
        if job.notebook not in known:
            if not source(job).is_file():
                raise ValueError(f"{source(job)}: no such notebook")
            known[job.notebook] = parameters_of(source(job))
        for name, value in job.parameters.items():
            if name not in known[job.notebook]:
                has = f"{instead(name, known[job.notebook])} Its parameters cell has {', '.join(known[job.notebook])}"
                raise ValueError(f"{source(job)}: no parameter {name!r}: {has}")
            if said := other_kind(value, known[job.notebook][name]):
                raise ValueError(f"{source(job)}: parameter {name}: {value!r}: {said}")


def other_kind(value: Any, default: Any) -> str:
    """Return what would be right where `value` is of another kind than the `default` of a parameter; else nothing."""
    if not isinstance(default, list):
        return problem(value, type(default))  # of None's type nothing is asked
    if not isinstance(value, list):
        return f"must be a list like {default}"
    return next(filter(None, (other_kind(each, default[0]) for each in value)), "") if default else ""


def parameters_of(notebook: Path) -> dict[str, Any]:
    """Return the values in the `parameters` cell of `notebook` by name; None for one that is no literal.

    Raise `ValueError` for a file that is no notebook.
    """
    try:
        found = papermill.inspect_notebook(literal(notebook))
    except Exception as error:  # of many kinds, for a file may be broken in many ways
        raise ValueError(f"{notebook}: not a notebook: {' '.join(str(error).split())[:300]}") from None
    values = {}
    for name, about in found.items():
        try:
            values[name] = ast.literal_eval(about["default"])
        except (ValueError, SyntaxError):
            values[name] = None
    return values


def literal(path: Path) -> str:
    """Return `path` for papermill, which takes what stands in braces for a parameter's name."""
    return str(path).replace("{", "{{").replace("}", "}}")


def job_state(job: Job, study: str) -> str:
    """Return how far `job` of `study` is, as the records of a run tell it, or the executed copy of a chapter."""
    return progress.run_state(job.run) if job.run else chapters.chapter_state(job, study)


def why_again(job: Job, study: str) -> str:
    """Say in one sentence why what `job` made in `study` is damaged, or not what it would make today."""
    return progress.why_run_again(job.run) if job.run else chapters.why_chapter_stale(job, study)


def execute(job: Job, study: str, console: Console) -> None:
    """Execute the notebook of `job` as `execute_into` does, on `console`, and keep the copy in its place in `study`."""
    execute_into(executed(job, study), job, console)


def execute_into(out: Path, job: Job, console: Console) -> None:
    """Execute the notebook of `job`, and keep the executed copy as `out`, with the error in it if there was one.

    It replaces the copy of an earlier start when it is whole. Warnings of its cells appear on `console` at once. Raise
    `JobFailed` and `StorageError`. On `KeyboardInterrupt` the kernel is shut down before the exception goes on.
    """
    part = part_of(out).with_suffix(".part.ipynb")
    os.environ[PIPELINE] = job.notebook  # its kernel inherits this
    said = SimpleNamespace(write=partial(show_warnings, console), flush=lambda: None)  # a file for stderr
    options = dict(kernel_manager_class=Kernel, shutdown_kernel="immediate", progress_bar=False)
    options |= dict(stderr_file=said, iopub_timeout=OUTPUT_S)
    try:
        facts = {} if job.run else dict(made_by=chapters.made_by(job))
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            paths = literal(source(job)), literal(part)
            try:
                papermill.execute_notebook(*paths, job.parameters, **options)
            except CellTimeoutError:  # an `OSError`, but no file's
                raise JobFailed(f"a cell's output had not come {OUTPUT_S} s after the cell had ended") from None
        stamp(part, out, **facts)
    except PapermillExecutionError as error:
        stamp(part, out)
        what, line = strip_color(f"{error.ename}: {error.evalue}"), error.source.strip().splitlines()[0]
        where = f"in cell {error.exec_count} of {from_root(out)}, which begins: {line}"
        raise JobFailed(f"{what}\n  {where}") from None
    except DeadKernelError:
        stamp(part, out)
        where = f"executed so far: {from_root(out)}"
        raise JobFailed(f"the kernel died, as it does when memory runs out; {where}") from None
    except (RuntimeError, ValueError) as error:
        raise JobFailed(f"the notebook could not be executed: {error}") from None
    finally:
        with suppress(OSError):  # where the folder is none, which has been said
            part.unlink()


def show_warnings(console: Console, text: str) -> None:
    """Print on `console` the lines of `text`, which cells wrote to stderr: warnings without their place in the code."""
    for line in warnings_in(text):
        console.print(escape(line))


def tidy(job: Job, study: str) -> None:
    """Delete the checkpoints of `job` in `study` if it is complete, and no baseline yet to come may extend it."""
    if job.run and not progress.awaits_target(job.run) and job_state(job, study) == "complete":
        remove_checkpoints(progress.run_folder(job.run))


def forget(job: Job, study: str) -> None:
    """Delete what `job` made in `study`, so that it starts from nothing. Raise `InUse` while a process trains it."""
    if not job.run:
        executed(job, study).unlink(missing_ok=True)
    elif (folder := progress.run_folder(job.run)).exists():
        with locked(folder, "deletes it"):
            shutil.rmtree(folder)
