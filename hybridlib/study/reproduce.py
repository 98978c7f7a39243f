"""Trains recorded runs again on this machine and says whether the same comes out: `run_all.py --reproduce`, `--verify`.

What is trained lies in `outputs/<study>/reproduced/`; the records stay as they are.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from typing import Any

from rich.console import Console

from hybridlib.study import progress, provenance
from hybridlib.study.comparison import agree, compare, in_words, shown, speed, verdict
from hybridlib.study.run import Run
from hybridlib.study.progress_line import ProgressLine, duration
from hybridlib.study.orphans import end_with
from hybridlib.study.pipeline import known_times
from hybridlib.study.plan import Job, estimated_s, plan
from hybridlib.study.records import RunFolder, write_atomically
from hybridlib.study.parameters import OUTPUTS
from hybridlib.study.schema import Study

PAIR, DATA = ("baseline", "hybrid"), "text"  # what the criteria of speed and quality compare, and on which source
PATIENCE_S = 30.0  # for a checkpoint


class CannotTrain(Exception):
    """A run that could not be trained again; the message says which, and what was said last."""


def pair(study: Study) -> list[Run]:
    """Return baseline and hybrid of the study's first seed. Raises `ValueError` for a study without them."""
    return [study.run(arm, DATA, study.seeds[0], where="--reproduce") for arm in PAIR]


def recorded(runs: list[Run]) -> list[Run]:
    """Return those of the runs whose records are complete and current."""
    return [run for run in runs if progress.state(run) in ("complete", "extendable")]


def reproduce(study: Study, device: str, console: Console) -> bool:
    """Train the pair again, compare it with its records, print and write what was found; False if they do not agree."""
    runs = pair(study)
    if len(recorded(runs)) < len(runs):
        console.print("Nothing to reproduce: baseline and hybrid have no complete records yet; the plan trains them.")
        return True
    return judged(study, runs, [again(run) for run in runs], device, console)


def verify(study: Study, count: int, choice: int | None, device: str, console: Console) -> bool:
    """The same for complete runs chosen at random, to their nominal steps."""
    there = recorded([job.run for job in plan(study, study.study, full=True) if job.run and not job.extends])
    choice = random.randrange(10**6) if choice is None else choice
    runs = random.Random(choice).sample(there, min(count, len(there)))
    console.print(f"{len(runs)} of {len(there)} complete runs, chosen by --choice {choice}: {', '.join(run.id for run in runs)}.")
    return judged(study, runs, [again(run, extend=1.0) for run in runs], device, console) if runs else True


def again(run: Run, **changes: Any) -> Run:
    """The run with its records elsewhere."""
    return run.model_copy(update=dict(study=f"{run.study}/reproduced") | changes)


def judged(study: Study, runs: list[Run], copies: list[Run], device: str, console: Console) -> bool:
    known = known_times(study.study)
    total = sum(estimated_s(Job("", "", {}, run), known) for run in runs)
    console.print(f"Training {', '.join(run.id for run in runs)} again, to compare with the records: about {duration(total)}.")
    train_again(copies, device, console)
    folders = [[RunFolder(progress.folder(run)) for run in each] for each in (runs, copies)]
    rows = [compare(run.id, *both) for run, *both in zip(runs, *folders)]
    speeds = {where: speed(*each) for where, each in zip(("recorded", "here"), folders)} if [r.arm for r in runs] == [*PAIR] else {}
    said = verdict(rows)
    facts = dict(study=study.study, made_at=provenance.now(), said=said, agree=agree(rows), runs=rows, speed=speeds)
    write_atomically(OUTPUTS / study.study / "reproduced" / "reproduced.json", json.dumps(facts, indent=1) + "\n")
    console.print(shown(rows))
    for where, found in speeds.items():
        console.print(in_words(where, found))
    console.print(f"[{'green' if agree(rows) else 'red'}]{said}[/]")
    return agree(rows)


def train_again(runs: list[Run], device: str, console: Console) -> None:
    """Train the runs, one after the other, each in a process of its own: those that an interrupted start left, or all anew."""
    if all(progress.state(run) == "complete" for run in runs):
        for run in runs:
            shutil.rmtree(progress.folder(run))
    for at, run in enumerate(runs, start=1):
        if progress.state(run) != "complete":
            with ProgressLine(Job("reproduce", "", {}, run), f"[again {at}/{len(runs)}]", console):
                train_alone(run, device)


def train_alone(run: Run, device: str) -> None:
    """Train a run in a process that ends with this one. Raises `CannotTrain`."""
    me, command = os.getpid(), [sys.executable, "-m", "hybridlib.training.experiment", run.model_dump_json(), device]
    options = dict(stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=lambda: end_with(me))
    with subprocess.Popen(command, **options) as process:
        try:
            _, said = process.communicate()
        except KeyboardInterrupt:
            process.terminate()  # it makes a checkpoint
            try:
                process.communicate(timeout=PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    if process.returncode:
        raise CannotTrain(f"{run.id} could not be trained: {(said.strip().splitlines() or [process.returncode])[-1]}")
