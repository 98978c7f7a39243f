"""Two records of one run: how far apart they are, and whether that is rounding."""

from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from hybridlib.study.records import RunFolder
from hybridlib.study.summary import summarise, time_to_target_s

# Relative, of the final held-out loss. Verdicts turn on whole percents of it, of which this is a hundredth; what another
# processor rounds otherwise stays below it, where a seed or a setting of its own moves the loss by more.
SAME = 1e-4
BUSY = 2.0  # a run whose slowest tenth of real steps takes so many times the fastest's time had the machine not to itself
TIMED = ["step_s", "jump_s", "peak_mb", "train_s"]


def compare(name: str, then: RunFolder, now: RunFolder) -> dict[str, Any]:
    """Return how far two records of one run differ, as far as both go: the largest relative difference of their losses."""
    facts = [folder.facts for folder in (then, now)]
    last = min(each["last_step"] for each in facts)
    steps, evals = ([upto(last, table) for table in both] for both in ((then.steps(), now.steps()), (then.evals(), now.evals())))
    ends = [each["summary"]["held_out_loss"] for each in facts]
    weights = facts[0]["weights_sha256"] == facts[1]["weights_sha256"] if facts[0]["last_step"] == facts[1]["last_step"] else None
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
    paces = [summarise(f.steps(), f.evals(), f.facts["summary"]["nominal_steps"], 1)["slowdown"] for f in (baseline, hybrid)]
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
    why = "another processor rounds differently" if other else "on the same processor, so other packages or kernels rounded differently"
    return f"Reproduced: final held-out losses agree to {worst['final_loss']:.1e} of them ({why})."


def shown(rows: list[dict[str, Any]]) -> Table:
    table = Table("run", "step losses", "held-out losses", "final loss", "weights", "recorded on", "here", title_justify="left",
                  title="Trained again: largest relative differences")  # fmt: skip
    for row in rows:
        numbers = ["phases differ" if np.isinf(x := row[key]) else f"{x:.1e}" if x else "0" for key in ("step_losses", "held_out_losses", "final_loss")]
        weights = {True: "equal", False: "differ", None: "end elsewhere"}[row["weights_equal"]]
        table.add_row(row["run"], *numbers, weights, row["recorded_on"], row["here"])
    return table
