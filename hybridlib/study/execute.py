"""Executes jobs, each a notebook with its parameters in a fresh kernel, and keeps what became of them. papermill does the work."""

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import papermill
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError, strip_color

from hybridlib.study import chapters, progress
from hybridlib.study.chapters import source, stamp
from hybridlib.study.parameters import OUTPUTS, ROOT
from hybridlib.study.plan import STAGES, Job, plan
from hybridlib.study.provenance import end_with
from hybridlib.study.records import RunFolder, write_atomically
from hybridlib.study.schema import Study

PATIENCE_S = 30.0  # for a checkpoint, which takes a step's time and a write's


class Kernel(AsyncKernelManager):
    """A kernel without a log: errors of cells reach the notebook, the noise of an interrupted process nobody.

    It outlives neither its work nor this process.
    """

    async def start_kernel(self, **options: Any) -> None:
        me = os.getpid()
        await super().start_kernel(stderr=subprocess.DEVNULL, preexec_fn=lambda: end_with(me), **options)

    async def shutdown_kernel(self, now: bool = False, restart: bool = False) -> None:
        """Asks first: a kernel that trains makes a checkpoint then, any other ends at once."""
        if self.provisioner is not None:
            await self.provisioner.terminate()
            until_s = time.monotonic() + PATIENCE_S
            while await self.provisioner.poll() is None and time.monotonic() < until_s:
                await asyncio.sleep(0.05)
        await super().shutdown_kernel(now=now, restart=restart)


class JobFailed(Exception):
    """A notebook that did not run to its end; the message says where, and where the traceback lies."""


def executed(job: Job, study: str) -> Path:
    """Where a job's executed notebook lies."""
    return progress.folder(job.run) / "run.ipynb" if job.run else chapters.executed(job, study)


def from_root(path: Path) -> Path:
    """A path as records may keep it: from the project's root, wherever that lies; one outside it stays whole."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def check(jobs: list[Job]) -> None:
    """Raises `ValueError` where a job gives its notebook a parameter that its `parameters` cell does not have."""
    known: dict[str, set[str]] = {}
    for job in jobs:
        if job.notebook not in known:
            if not source(job).is_file():
                raise ValueError(f"{source(job)}: no such notebook")
            known[job.notebook] = parameters_of(source(job))
        if unknown := sorted(set(job.parameters) - known[job.notebook]):
            has = ", ".join(sorted(known[job.notebook])) or "none"
            raise ValueError(f"{source(job)}: no parameter {unknown[0]!r}: its parameters cell has {has}")


def parameters_of(notebook: Path) -> set[str]:
    """Names in a notebook's `parameters` cell. Raises `ValueError` for a file that is no notebook."""
    try:
        return set(papermill.inspect_notebook(notebook))
    except Exception as error:  # of many kinds, for a file may be broken in many ways
        raise ValueError(f"{notebook}: not a notebook: {' '.join(str(error).split())[:300]}") from None


def state(job: Job, study: str) -> str:
    """A run's state as its records tell it, a chapter's as its executed copy does."""
    return progress.state(job.run) if job.run else chapters.state(job, study)


def why_stale(job: Job, study: str) -> str:
    """Say in one sentence why what a stale job made is not what it would make today."""
    if job.run is None:
        return chapters.why_stale(job, study)
    return progress.why_stale(job.run, RunFolder(progress.folder(job.run)).facts or {})


def execute(job: Job, study: str) -> None:
    """Runs the job's notebook and keeps the executed copy, with the error in it if there was one.

    Raises `JobFailed`. On `KeyboardInterrupt` the kernel is shut down before the exception goes on.
    """
    out = executed(job, study)
    out.parent.mkdir(parents=True, exist_ok=True)
    made_by = {} if job.run else dict(made_by=chapters.made_by(job))
    os.environ["HYBRIDLIB_PIPELINE"] = (
        job.notebook
    )  # its kernel inherits this: a chapter that is run by hand writes nothing
    try:
        kernel = dict(kernel_manager_class=Kernel, shutdown_kernel="immediate")  # its records are on disk: no farewell
        papermill.execute_notebook(source(job), out, job.parameters, progress_bar=False, **kernel)
    except PapermillExecutionError as error:
        said = strip_color(f"{error.ename}: {error.evalue}")
        line = error.source.strip().splitlines()[0]
        raise JobFailed(f"{said}\n  in cell {error.exec_count} of {from_root(out)}, which begins: {line}") from None
    except DeadKernelError:
        raise JobFailed(
            f"the kernel died, as it does when memory runs out; executed so far: {from_root(out)}"
        ) from None
    except (RuntimeError, OSError) as error:
        raise JobFailed(f"the notebook could not be executed: {error}") from None
    else:
        stamp(out, **made_by)
    finally:
        stamp(out)


def tidy(job: Job, study: str) -> None:
    """Deletes the checkpoint of a run that is complete: it was kept for an extension, which then was not needed."""
    if job.run and state(job, study) == "complete":
        progress.checkpoint_path(job.run).unlink(missing_ok=True)


def forget(job: Job, study: str) -> None:
    """Deletes what the job made, so that it starts from nothing."""
    shutil.rmtree(progress.folder(job.run), ignore_errors=True) if job.run else executed(job, study).unlink(True)


COLUMNS = ["job", "stage", "status", "seconds", "message"]


@dataclass
class Pipeline:
    """Outcomes of this start by job, over those of earlier starts that are still true."""

    study: Study
    name: str  # as the notebooks are given it
    full: bool = False
    outcomes: dict[str, tuple[str, float, str]] = field(default_factory=dict)

    def add(self, job: Job, status: str, seconds: float, message: str = "") -> None:
        self.outcomes[job.name] = (status, round(seconds, 1), " ".join(message.split()))

    def went_well(self, name: str) -> bool:
        """Whether a job did not fail in this start."""
        return self.outcomes.get(name, ("complete",))[0] == "complete"

    def write(self, stages: Iterable[str] = STAGES) -> pd.DataFrame:
        """Writes, and returns, one row a job of the study's whole plan: complete, failed or missing."""
        file = OUTPUTS / self.study.study / "results" / "pipeline.csv"
        earlier = pd.read_csv(file, keep_default_na=False).set_index("job") if file.exists() else pd.DataFrame()
        rows = []
        for job in plan(self.study, self.name, only=stages, full=self.full):
            was = earlier.loc[job.name].to_dict() if job.name in earlier.index else {}
            now = self.outcomes.get(job.name) or self._from_records(job, was)
            rows.append(dict(zip(COLUMNS, (job.name, job.stage, *now))))
        file.parent.mkdir(parents=True, exist_ok=True)
        table = pd.DataFrame(rows, columns=COLUMNS)
        write_atomically(file, table.to_csv(index=False))
        return table

    def _from_records(self, job: Job, was: dict) -> tuple[str, float | str, str]:
        found = state(job, self.study.study)
        if found in (
            "complete",
            "extendable",
            "reads",
        ):  # a chapter that reads was executed to its end by an earlier start
            return "complete", was.get("seconds", ""), ""
        if was.get("status") == "failed":
            return "failed", was["seconds"], was["message"]
        return "missing", "", "" if found == "missing" else found


def known_times(study: str) -> dict[tuple[str, str], float]:
    """Mean training seconds of the complete runs of a study, by (arm, data)."""
    facts = [RunFolder(path.parent).facts for path in (OUTPUTS / study).glob("runs/*/run.json")]
    times = pd.DataFrame([(f["arm"], f["data"], f["summary"]["train_s"]) for f in facts], columns=["arm", "data", "s"])
    return times.groupby(["arm", "data"]).s.mean().to_dict()
