"""Train recorded runs again on this machine, and say whether the same comes out: `run_all.py --reproduce`, `--verify`.

What is trained lies in `outputs/<study>/reproduced/`; the records stay as they are.
"""

import json
import random
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from hybridlib.study import provenance
from hybridlib.study.agreement import agree, compare, comparison_table, verdict
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
BUSY = 2.0  # the slowdown (see `progress.pace`) from which on a machine had more to do than to train


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
