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

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from hybridlib.study import progress, provenance
from hybridlib.study.execute import known_times
from hybridlib.study.parameters import OUTPUTS
from hybridlib.study.plan import Job, estimated_s, plan
from hybridlib.study.progress import summarise, time_to_target_s
from hybridlib.study.progress_line import ProgressLine, duration
from hybridlib.study.provenance import end_with
from hybridlib.study.records import RunFolder, write_atomically
from hybridlib.study.run import Run
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
    console.print(
        f"{len(runs)} of {len(there)} complete runs, chosen by --choice {choice}: {', '.join(run.id for run in runs)}."
    )
    return judged(study, runs, [again(run, extend=1.0) for run in runs], device, console) if runs else True


def again(run: Run, **changes: Any) -> Run:
    """The run with its records elsewhere."""
    return run.model_copy(update=dict(study=f"{run.study}/reproduced") | changes)


def judged(study: Study, runs: list[Run], copies: list[Run], device: str, console: Console) -> bool:
    known = known_times(study.study)
    total = sum(estimated_s(Job("", "", {}, run), known) for run in runs)
    console.print(
        f"Training {', '.join(run.id for run in runs)} again, to compare with the records: about {duration(total)}."
    )
    train_again(copies, device, console)
    folders = [[RunFolder(progress.folder(run)) for run in each] for each in (runs, copies)]
    rows = [compare(run.id, *both) for run, *both in zip(runs, *folders)]
    speeds = (
        {where: speed(*each) for where, each in zip(("recorded", "here"), folders)}
        if [r.arm for r in runs] == [*PAIR]
        else {}
    )
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


# Relative, of the final held-out loss. Verdicts turn on whole percents of it, of which this is a hundredth; what another
# processor rounds otherwise stays below it, where a seed or a setting of its own moves the loss by more.
SAME = 1e-4
BUSY = (
    2.0  # a run whose slowest tenth of real steps takes so many times the fastest's time had the machine not to itself
)
TIMED = ["step_s", "jump_s", "peak_mb", "train_s"]


def compare(name: str, then: RunFolder, now: RunFolder) -> dict[str, Any]:
    """Return how far two records of one run differ, as far as both go: the largest relative difference of their losses."""
    facts = [folder.facts for folder in (then, now)]
    last = min(each["last_step"] for each in facts)
    steps, evals = (
        [upto(last, table) for table in both] for both in ((then.steps(), now.steps()), (then.evals(), now.evals()))
    )
    ends = [each["summary"]["held_out_loss"] for each in facts]
    weights = (
        facts[0]["weights_sha256"] == facts[1]["weights_sha256"]
        if facts[0]["last_step"] == facts[1]["last_step"]
        else None
    )
    return dict(
        run=name,
        step_losses=largest(*(table.loss for table in steps)),
        held_out_losses=largest(*(table.held_out_loss for table in evals)),
        final_loss=largest(*(pd.Series([end]) for end in ends)),
        equal=all(one.equals(other) for one, other in (steps, evals)) and weights is not False,
        weights_equal=weights,
        recorded_on=facts[0]["device"],
        here=facts[1]["device"],
    )


def upto(last: int, table: pd.DataFrame) -> pd.DataFrame:
    """The rows up to a step, by step, without what no two starts share."""
    return table[table.step <= last].set_index("step").drop(columns=TIMED, errors="ignore")


def largest(then: pd.Series, now: pd.Series) -> float:
    """Return the largest relative difference of two series; infinite where one has a number and the other none."""
    then, now = then.align(now)
    apart = ((now - then).abs() / then.abs()).where(then != now, 0.0)
    return float(apart.mask(then.isna() & now.isna(), 0.0).fillna(np.inf).max())


def speed(baseline: RunFolder, hybrid: RunFolder) -> dict[str, float]:
    """Return the ratio of throughputs, that of the times to the baseline's final held-out loss, and the runs' worst slowdown."""
    rates = [folder.facts["summary"]["nominal_tokens_per_s"] for folder in (hybrid, baseline)]
    target = baseline.facts["summary"]["held_out_loss"]
    times = [time_to_target_s(folder.evals(), target) for folder in (baseline, hybrid)]
    paces = [
        summarise(f.steps(), f.evals(), f.facts["summary"]["nominal_steps"], 1)["slowdown"] for f in (baseline, hybrid)
    ]
    return dict(speedup=rates[0] / rates[1], time_to_target=times[0] / times[1], slowdown=max(paces))


def in_words(where: str, found: dict[str, float]) -> str:
    """Say what `speed` found."""
    reached = f"in 1/{found['time_to_target']:.2f} of the time" if found["time_to_target"] else "never"
    said = f"{where}: hybrid is {found['speedup']:.2f}× as fast, and reaches the baseline's final loss {reached}"
    if found["slowdown"] <= BUSY:
        return said
    return f"{said}; but steps took up to {found['slowdown']:.1f} times as long as others, so the machine was busy and times say little"


def agree(rows: list[dict[str, Any]]) -> bool:
    return all(row["final_loss"] <= SAME for row in rows)


def verdict(rows: list[dict[str, Any]]) -> str:
    """Say in one sentence whether the records were reproduced."""
    if all(row["equal"] for row in rows):
        return "Reproduced: equal to the last digit, times and memory apart."
    worst = max(rows, key=lambda row: row["final_loss"])
    if not agree(rows):
        return f"DO NOT AGREE: the final held-out loss of {worst['run']} differs by {worst['final_loss']:.1e} of it, more than {SAME:.0e}."
    other = any(row["recorded_on"] != row["here"] for row in rows)
    why = (
        "another processor rounds differently"
        if other
        else "on the same processor, so other packages or kernels rounded differently"
    )
    return f"Reproduced: final held-out losses agree to {worst['final_loss']:.1e} of them ({why})."


def shown(rows: list[dict[str, Any]]) -> Table:
    table = Table("run", "step losses", "held-out losses", "final loss", "weights", "recorded on", "here", title_justify="left",
                  title="Trained again: largest relative differences")  # fmt: skip
    for row in rows:
        numbers = [
            "phases differ" if np.isinf(x := row[key]) else f"{x:.1e}" if x else "0"
            for key in ("step_losses", "held_out_losses", "final_loss")
        ]
        weights = {True: "equal", False: "differ", None: "end elsewhere"}[row["weights_equal"]]
        table.add_row(row["run"], *numbers, weights, row["recorded_on"], row["here"])
    return table
