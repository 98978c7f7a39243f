"""Train recorded runs again on this machine, and say whether the same comes out: `run_all.py --reproduce`, `--verify`.

What is trained lies in `outputs/<study>/reproduced/`; the records stay as they are.
"""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hybridlib.study import provenance
from hybridlib.study.alone import train_alone
from hybridlib.study.parameters import OUTPUTS
from hybridlib.study.pipeline import known_times
from hybridlib.study.plan import Job, plan, training_s
from hybridlib.study.progress import WHOLE, run_folder, run_state, summarise, time_to_target_s
from hybridlib.study.progress_line import duration, live_line, progress_of
from hybridlib.study.records import RunFolder
from hybridlib.study.run import Run
from hybridlib.study.schema import Study
from hybridlib.study.storage import write_atomically

PAIR = "baseline", "hybrid"  # what the criteria of speed and quality compare
# Relative, of the final held-out loss, by the precision of a run's coarsest products; verdicts turn on percents of it.
# Between an AMD EPYC and an Intel Xeon fourteen runs in fp32 were apart by 2e-6 at most, five in bf16 by 4e-4.
SAME = {"fp32": 1e-4, "bf16": 1e-3}
BUSY = 2.0  # the slowdown (see `progress.pace`) from which on a machine had more to do than to train
TIMED = ["step_s", "jump_s", "peak_mb", "train_s"]


def coarsest(parameters: dict[str, Any]) -> str:
    """Return the precision of the coarsest products in a run of these `parameters`: torch's Muon multiplies in bf16."""
    told = parameters["precision"], (parameters.get("predictor") or {}).get("precision")
    return "bf16" if "bf16" in told or parameters["optimizer"]["name"] == "muon" else "fp32"


def pair(study: Study) -> list[Run]:
    """Return baseline and hybrid of the first seed of `study`. Raise `ValueError` for a study without them."""
    return [study.run(arm, study.judged, study.seeds[0], where="--reproduce") for arm in PAIR]


def recorded(runs: list[Run]) -> list[Run]:
    """Return those of the `runs` whose records are complete and current."""
    return [run for run in runs if run_state(run) in WHOLE]


def reproduce(study: Study, device: str, console: Console) -> bool:
    """Train the pair of `study` again on `device`, and return whether it agrees with its records, said on `console`."""
    runs = pair(study)
    if len(recorded(runs)) < len(runs):
        console.print("Nothing to reproduce: baseline and hybrid have no complete records yet; the plan trains them.")
        return True
    return judged(study, runs, [again(run) for run in runs], device, console)


def verify(study: Study, count: int, choice: int | None, device: str, console: Console) -> bool:
    """Do what `reproduce` does with `study`, `device` and `console` for `count` complete runs, to their nominal end.

    They are chosen at random, by the seed `choice` if it is given. Without any there is nothing that agrees.
    """
    there = recorded([job.run for job in plan(study, study.study, full=True) if job.run and not job.extends])
    if not there:
        console.print(f"Nothing to verify: no run of {study.study} is complete and made by today's parameters.")
        return False
    choice = random.randrange(10**6) if choice is None else choice
    runs = random.Random(choice).sample(there, min(count, len(there)))
    names = ", ".join(run.id for run in runs)
    console.print(f"{len(runs)} of {len(there)} complete runs, chosen by --choice {choice}: {names}.")
    return judged(study, runs, [again(run, extend=1.0) for run in runs], device, console)


def again(run: Run, **changes: Any) -> Run:
    """Return `run` with its records elsewhere, and with `changes` of its parameters."""
    return run.model_copy(update=dict(study=f"{run.study}/reproduced") | changes)


def judged(study: Study, runs: list[Run], copies: list[Run], device: str, console: Console) -> bool:
    """Train `copies` on `device`, and return whether they agree with the records of `runs`.

    What is found is written to the outputs of `study`, and said on `console`.
    """
    known = known_times(study.study)
    total = duration(sum(training_s(run, known) for run in runs))
    names = ", ".join(run.id for run in runs)
    console.print(f"Training {names} again, to compare with the records: about {total}.")
    kept = OUTPUTS / study.study / "reproduced" / "reproduced.json"
    train_again(copies, device, console, last_judged(kept))
    folders = [[RunFolder(run_folder(run)) for run in each] for each in (runs, copies)]
    rows = [compare(run.id, *both) for run, *both in zip(runs, *folders)]
    is_pair = [run.arm for run in runs] == [*PAIR]
    speeds = {where: speed(*each) for where, each in zip(("recorded", "here"), folders)} if is_pair else {}
    said = verdict(rows)
    facts = dict(study=study.study, made_at=provenance.now(), said=said, agree=agree(rows), runs=rows, speed=speeds)
    write_atomically(kept, json.dumps(facts, indent=1) + "\n")
    console.print(comparison_table(rows))
    for where, found in speeds.items():
        console.print(speed_in_words(where, found))
    console.print(f"[{'green' if agree(rows) else 'red'}]{said}[/]")
    return agree(rows)


def train_again(runs: list[Run], device: str, console: Console, judged_at: str = "") -> None:
    """Train `runs` on `device`, and show progress on `console`; those that an interrupted start completed are kept.

    A copy that ended by `judged_at`, when copies were judged last, is an earlier start's: it is set aside.
    """
    for run in runs:
        facts = RunFolder(run_folder(run)).facts
        if facts and facts["ended_at"] <= judged_at:
            aside = provenance.from_root(RunFolder(run_folder(run)).set_aside())
            console.print(escape(f"{run.id} was trained again before: that copy is kept in {aside}."))
    for at, run in enumerate(runs, start=1):
        if run_state(run) != "complete":
            with live_line(progress_of(Job("", "", {}, run), f"[again {at}/{len(runs)}]"), console):
                said = train_alone(run, device)
            console.print(escape(said), style="yellow", end="\n" * bool(said))


def last_judged(file: Path) -> str:
    """Return when the comparison in `file` was written; empty where there is none that can be read."""
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["made_at"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def compare(name: str, then: RunFolder, now: RunFolder) -> dict[str, Any]:
    """Return the largest relative differences of the records `then` and `now` of the run `name`, as far as both go.

    `weights_equal` is None where the runs end at different steps.
    """
    facts = [folder.facts for folder in (then, now)]
    last = [each["last_step"] for each in facts]
    steps = [upto(min(last), folder.steps()) for folder in (then, now)]
    evals = [upto(min(last), folder.evals()) for folder in (then, now)]
    weights = facts[0]["weights_sha256"] == facts[1]["weights_sha256"] if last[0] == last[1] else None
    return dict(
        run=name,
        step_losses=largest(*(table.loss for table in steps)),
        held_out_losses=largest(*(table.held_out_loss for table in evals)),
        allowed=SAME[coarsest(facts[0]["parameters"])],
        final_loss=largest(*(pd.Series([each["summary"]["held_out_loss"]]) for each in facts)),
        equal=all(one.equals(other) for one, other in (steps, evals)) and weights is not False,
        weights_equal=weights,
        recorded_on=facts[0]["device"],
        here=facts[1]["device"],
    )


def upto(last: int, table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `table` up to step `last`, by step, without what no two starts share."""
    return table[table.step <= last].set_index("step").drop(columns=TIMED, errors="ignore")


def largest(then: pd.Series, now: pd.Series) -> float:
    """Return the largest relative difference of `now` from `then`; infinite where only one of them has a number."""
    then, now = then.align(now)
    apart = ((now - then).abs() / then.abs()).where(then != now, 0.0)
    return float(apart.mask(then.isna() & now.isna(), 0.0).fillna(np.inf).max())


def speed(baseline: RunFolder, hybrid: RunFolder) -> dict[str, float]:
    """Return how many times as fast `hybrid` is as `baseline`, in throughput and in time to the baseline's final loss.

    `slowdown` is the larger of the two runs' (see `progress.pace`).
    """
    both = (baseline, hybrid)
    facts = [folder.facts["summary"] for folder in both]
    times = [time_to_target_s(folder.evals(), facts[0]["held_out_loss"]) for folder in both]
    paces = [summarise(f.steps(), f.evals(), of["nominal_steps"], 1)["slowdown"] for f, of in zip(both, facts)]
    rates = [of["nominal_tokens_per_s"] for of in facts]
    return dict(speedup=rates[1] / rates[0], time_to_target=times[0] / times[1], slowdown=max(paces))


def speed_in_words(where: str, found: dict[str, float]) -> str:
    """Say what `speed` has `found` in the runs made `where`."""
    reached = f"in 1/{found['time_to_target']:.2f} of the time" if found["time_to_target"] else "never"
    said = f"{where}: hybrid is {found['speedup']:.2f}× as fast, and reaches the baseline's final loss {reached}"
    if found["slowdown"] <= BUSY:
        return said
    slow = f"steps took up to {found['slowdown']:.1f} times as long as others"
    return f"{said}; but {slow}, so the machine was busy and times say little"


def agree(rows: list[dict[str, Any]]) -> bool:
    """Return whether the final losses of all compared runs, the `rows`, are the same."""
    return all(row["final_loss"] <= row["allowed"] for row in rows)


def verdict(rows: list[dict[str, Any]]) -> str:
    """Say in one sentence whether the compared runs, the `rows`, were reproduced."""
    if all(row["equal"] for row in rows):
        return "Reproduced: equal to the last digit, times and memory apart."
    worst = max(rows, key=lambda row: row["final_loss"] / row["allowed"])
    by = f"{worst['final_loss']:.1e}"
    if not agree(rows):
        which = f"the final held-out loss of {worst['run']}"
        return f"DO NOT AGREE: {which} differs by {by} of it, more than {worst['allowed']:.0e}."
    why = "on the same processor, so other packages or kernels rounded differently"
    if any(row["recorded_on"] != row["here"] for row in rows):
        why = "another processor rounds differently"
    return f"Reproduced: final held-out losses agree to {by} of them ({why})."


def comparison_table(rows: list[dict[str, Any]]) -> Table:
    """Return the compared runs, the `rows`, as a table."""
    columns = ["run", "step losses", "held-out losses", "final loss", "weights", "recorded on", "here"]
    table = Table(*columns, title="Trained again: largest relative differences", title_justify="left")
    weights = {True: "equal", False: "differ", None: "end elsewhere"}
    for row in rows:
        values = [row[key] for key in ("step_losses", "held_out_losses", "final_loss")]
        numbers = ["phases differ" if np.isinf(value) else f"{value:.1e}" if value else "0" for value in values]
        table.add_row(row["run"], *numbers, weights[row["weights_equal"]], row["recorded_on"], row["here"])
    return table
