"""Whether a run that was trained again is the recorded one: how far losses are apart, and what that may be due to."""

from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from hybridlib.study.records import RunFolder

# Relative, of the final held-out loss, by the precision of a run's coarsest products; verdicts turn on percents of it.
# Between an AMD EPYC and an Intel Xeon fourteen runs of the cpu study in fp32 were apart by 2e-6 at most, five in bf16
# by 4e-4. At GPT-2 Small's size rounding grows until paths part: `hybrid` of seed 43 by 2e-5 after 20 steps, by 3e-2 at
# the end.
SAME = {"fp32": 1e-4, "bf16": 1e-3}
EARLY_STEPS = 20  # in which rounding has not grown yet, in any study here
TIMED = ["step_s", "jump_s", "peak_mb", "train_s"]


def coarsest(parameters: dict[str, Any]) -> str:
    """Return the precision of the coarsest products in a run of these `parameters`: torch's Muon multiplies in bf16."""
    told = parameters["precision"], (parameters.get("predictor") or {}).get("precision")
    return "bf16" if "bf16" in told or parameters["optimizer"]["name"] == "muon" else "fp32"


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
        early_losses=largest(*(table.loss[table.index <= EARLY_STEPS] for table in steps)),
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


def agree(rows: list[dict[str, Any]]) -> bool:
    """Return whether the final losses of all compared runs, the `rows`, are the same, or rounding may have parted them.

    It may on another kind of processor, where the losses of the first steps, before rounding has grown, are the same.
    """
    return not any(map(contradicted, rows))


def contradicted(row: dict[str, Any]) -> bool:
    """Return whether neither the final losses nor, on another processor, the first ones of a `row` are the same."""
    judged = row["early_losses"] if row["recorded_on"] != row["here"] else row["final_loss"]
    return not same(row) and judged > row["allowed"]


def same(row: dict[str, Any]) -> bool:
    """Return whether both final losses of a `row` of `compare` are the same."""
    return row["final_loss"] <= row["allowed"]


def verdict(rows: list[dict[str, Any]]) -> str:
    """Say in one sentence whether the compared runs, the `rows`, were reproduced."""
    if all(row["equal"] for row in rows):
        return "Reproduced: equal to the last digit, times and memory apart."
    wrong = list(filter(contradicted, rows))
    worst = max(wrong or rows, key=lambda row: row["final_loss"] / row["allowed"])
    by = f"{worst['final_loss']:.1e}"
    if wrong:
        which = f"the final held-out loss of {worst['run']}"
        return f"DO NOT AGREE: {which} differs by {by} of it, more than {worst['allowed']:.0e}."
    if not same(worst):
        early = f"the losses of its first {EARLY_STEPS} steps agree to {worst['early_losses']:.1e} of them"
        return f"Not contradicted: another processor rounds {worst['run']} to an end that differs by {by}; {early}."
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
