"""What became of a study's jobs: each is executed and said, and outcomes are kept from one start to the next."""

import json
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hybridlib.study import export
from hybridlib.study.cluster.blocks import NoCluster
from hybridlib.study.execute import JobFailed, execute, executed, job_state, tidy
from hybridlib.study.parameters import OUTPUTS
from hybridlib.study.plan import STAGES, Job, estimated_s, plan
from hybridlib.study.progress import WHOLE
from hybridlib.study.progress_line import duration, live_line, progress_of
from hybridlib.study.records import RunFolder
from hybridlib.study.schema import Study
from hybridlib.study.storage import StorageError, write_atomically

COLUMNS = ["job", "stage", "status", "seconds", "message"]


@dataclass
class Pipeline:
    """The jobs of `study`, which the notebooks know as `name`, on `device`, said on `console`.

    `full` includes what `--full` adds.

    `outcomes` holds status, seconds and message of this start's jobs by name; those of earlier starts are kept while
    they are true.
    """

    study: Study
    name: str
    console: Console
    full: bool = False
    device: str = "auto"
    outcomes: dict[str, tuple[str, float, str]] = field(default_factory=dict)

    def attempt(self, job: Job, label: str) -> bool:
        """Execute `job`, which `label` numbers; say, and keep, how it went, and return whether it went well."""
        study, started, message = self.study.study, time.monotonic(), ""
        try:
            with live_line(progress_of(job, label), self.console):
                if job.stage == "report":
                    self.write(STAGES[:-1])  # the report judges the pipeline: all of it but itself
                execute(job, study, self.console)
                if job.stage == "report":
                    export.export(OUTPUTS / study, executed(job, study))
        except (JobFailed, export.ExportFailed, StorageError) as error:
            message = str(error)
        self.say(job, label, time.monotonic() - started, message)
        return not message

    def train_elsewhere(self, scheduler: str, jobs: list[Job], device: str, fresh: bool, keep_going: bool) -> bool:
        """Train what is to do of `jobs` on `device` of the workers of a Dask `scheduler`; return whether to go on.

        Runs on the same data with the same seed are a block: one machine trains them. `fresh` and `keep_going` are what
        `--force` and `--keep-going` say; `jobs` are all of the plan's. Raise `NoCluster`.
        """
        from hybridlib.study.cluster import notebook
        from hybridlib.study.cluster.blocks import Task, block_of
        from hybridlib.study.cluster.connect import connected, dashboard
        from hybridlib.study.cluster.crew import Crew
        from hybridlib.study.cluster.order import Orders

        known, by_pair = known_times(self.study.study), defaultdict(list)
        labels = {job.name: f"[{at}/{len(jobs)}]" for at, job in enumerate(jobs, start=1)}
        for job in (job for job in jobs if job.run):
            by_pair[job.run.data, job.run.seed].append(Task(job.run, job, estimated_s(job, known)))
        blocks = [block_of(f"{data}, seed {seed}", tasks) for (data, seed), tasks in by_pair.items()]

        def ended(task: Task, message: str, seconds: float) -> bool:
            self.say(task.job, labels[task.job.name], seconds, message)
            return keep_going or not message

        with connected(scheduler) as client:
            self.console.print(f"Training on the workers of {dashboard(client)}.")
            Crew(client, Orders(device, self.study, fresh), self.console, notebook.work).train(blocks, ended)
        return keep_going or all(self.went_well(name) for name in labels)

    def say(self, job: Job, label: str, seconds: float, message: str) -> None:
        """Keep, and say, that `job`, which `label` numbers, ended after `seconds`; with a `message` if it failed."""
        status = "failed" if message else "complete"
        self.add(job, status, seconds, message)
        self.console.print(f"{label} {job.stage}: {job.name}: {status}, {duration(seconds)}")
        if message:
            self.console.print(f"[red]{escape(message)}[/]")

    def add(self, job: Job, status: str, seconds: float, message: str = "") -> None:
        """Keep the `status` of `job`, the `seconds` that it took and its `message`."""
        self.outcomes[job.name] = (status, round(seconds, 1), " ".join(message.split()))

    def went_well(self, name: str) -> bool:
        """Return whether the job `name` did not fail in this start."""
        return self.outcomes.get(name, ("complete",))[0] == "complete"

    def write(self, stages: Iterable[str] = STAGES) -> pd.DataFrame:
        """Write to `results/pipeline.csv`, and return, a row for each job of `stages`: complete, failed or missing."""
        file, rows = OUTPUTS / self.study.study / "results" / "pipeline.csv", []
        earlier = self._earlier(file)
        for job in plan(self.study, self.name, only=stages, full=self.full, device=self.device):
            outcome = self._outcome(job, earlier.get(job.name, {}))
            rows.append(dict(zip(COLUMNS, (job.name, job.stage, *outcome))))
        table = pd.DataFrame(rows, columns=COLUMNS)
        write_atomically(file, table.to_csv(index=False))
        return table

    def conclude(self, jobs: list[Job], seconds: float) -> int:
        """Write outcomes, print verdicts, files and which of `jobs` failed in `seconds`; return the exit status."""
        outcome, folder, say = self.write().set_index("job"), OUTPUTS / self.study.study, self.console.print
        try:
            say(verdict_table(json.loads((folder / "results.json").read_text(encoding="utf-8"))))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, LookupError, AttributeError):
            say(f"[red]{escape(str(folder / 'results.json'))} is damaged: --only report writes it again.[/]")
        for name in ("report.pdf", "report.html", export.MARKDOWN):
            if (folder / name).exists():
                say(escape(str(folder / name)))
        for job in jobs:
            tidy(job, self.study.study)
        status = {job.name: self._outcome(job, {})[0] for job in jobs} | outcome.status.to_dict()
        wrong = [job for job in jobs if status[job.name] != "complete"]
        for job in wrong:
            say(f"[red]{status[job.name]}: {job.name}[/]")
        say(f"{len(jobs) - len(wrong)} of {len(jobs)} jobs complete, {duration(seconds)}.")
        return 1 if wrong else 0

    def _earlier(self, file: Path) -> dict[str, dict]:
        """Return the rows of earlier starts by job."""
        try:
            table = pd.read_csv(file, keep_default_na=False)[COLUMNS]
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError):
            self.console.print(f"{escape(str(file))} is damaged: what it said of earlier starts is lost.")
            return {}
        return {row["job"]: row for row in table.to_dict("records")}

    def _outcome(self, job: Job, was: dict) -> tuple[str, float | str, str]:
        """Return what became of `job`: in this start or, where that did not execute it, by what it `was` before."""
        if job.name in self.outcomes:
            return self.outcomes[job.name]
        found = job_state(job, self.study.study)
        if was.get("status") == "failed" and found not in WHOLE:  # a report that was executed, and not typeset, too
            return "failed", was["seconds"], was["message"]
        if found in (*WHOLE, "reads"):  # a chapter that reads was executed by an earlier start
            return "complete", was.get("seconds", ""), ""
        return "missing", "", "" if found == "missing" else found


def reach(scheduler: str) -> None:
    """Raise `NoCluster` unless the `scheduler` answers: before anything is begun, not hours later."""
    try:
        from hybridlib.study.cluster.connect import connected
    except ImportError as error:
        raise NoCluster(f"--scheduler needs Dask ({error}): make setup, or pip install distributed") from None
    with connected(scheduler):
        pass


def verdict_table(results: dict) -> Table:
    """Return the criteria of `results` as a table."""
    table = Table("", "verdict", "value", "why", title="Verdicts", title_justify="left")
    for name, found in results["criteria"].items():
        colour = {"PASS": "green", "FAIL": "red"}.get(found["verdict"], "yellow")
        number = "" if found.get("value") is None else f"{found['value']:.4g} {found.get('unit') or ''}".strip()
        table.add_row(name, f"[{colour}]{found['verdict']}[/]", number, escape(str(found.get("why", ""))))
    return table


def known_times(study: str) -> dict[tuple[str, str], float]:
    """Return the mean seconds that a nominal token took in the complete runs of `study`, by (arm, data)."""
    found = [RunFolder(path.parent).facts for path in (OUTPUTS / study).glob("runs/*/run.json")]
    rows = [(facts["arm"], facts["data"], 1 / facts["summary"]["nominal_tokens_per_s"]) for facts in found if facts]
    return pd.DataFrame(rows, columns=["arm", "data", "s"]).groupby(["arm", "data"]).s.mean().to_dict()
