"""The sweeps of `params/research/` as tidy frames: tuning, what carries to other settings, ablations, trade-off."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from hybridlib.analysis.load import refuse_mixture
from hybridlib.study import parameters, progress
from hybridlib.study.records import RunFolder
from hybridlib.study.schema import Study
from hybridlib.study.sweeps import runs, sweeps

COLUMNS = [
    "sweep", "trial", "about", "seed", "predictor", "steps", "real_steps", "predicted_share", "held_out_loss", "hold_loss",
    "steps_worth", "delta_pct", "hold_delta_pct", "target_ratio", "train_s", "equivalents", "speedup", "divergences",
    "jumps_rejected",
]  # fmt: skip
RATIOS = ["hold_loss", "steps_worth", "delta_pct", "hold_delta_pct", "target_ratio"]
REFERENCE = "ablation_reference"


@dataclass(frozen=True)
class Research:
    """`trials` has one row a complete trial (COLUMNS); `missing` names the others.

    Ratios are against the same seed's `baseline` of the sweep, or of the reference sweep where that has none. `hold_loss`
    is the baseline's at as many real steps, which is what `hold` has, bit for bit; `steps_worth` the baseline's steps for
    the trial's loss, missing where the baseline never gets there. `equivalents` counts the trial's steps as real ones, a
    jump at what it took; `target_ratio` is the baseline's steps over the equivalents until the trial has its final loss.
    """

    trials: pd.DataFrame
    missing: list[str]
    numerics: frozenset[int] = (
        frozenset()
    )  # under which they were made, which may be older than that of the study's runs

    def of(self, prefix: str) -> pd.DataFrame:
        """Return the trials of all sweeps whose names begin so, which the rest of the name then tells apart."""
        mine = self.trials[self.trials.sweep.str.startswith(prefix)]
        return mine.assign(sweep=mine.sweep.str.removeprefix(prefix))

    def predicted(self, prefix: str) -> pd.DataFrame:
        """Return the same without plain training."""
        mine = self.of(prefix)
        return mine[mine.predictor.notna()]

    def reference(self, trial: str) -> float:
        """Return the held-out loss of the frozen settings, or of the baseline, on the pilot seed; NaN where it was not run."""
        found = self.trials[(self.trials.sweep == REFERENCE) & (self.trials.trial == trial)]
        return float(found.held_out_loss.iloc[0]) if len(found) else np.nan


def read_research(study: Study) -> Research:
    """Return every complete trial around a study. Raise `ValueError` if trials that are compared were not made alike."""
    rows, evals, missing = [], {}, []
    asked = sweeps(study)
    for name, sweep in asked.items():
        alone = "baseline" in sweep.trials() or REFERENCE not in asked
        beside = name if alone else REFERENCE  # whose trials they are compared with
        for run in runs(study, name, sweep):
            folder = RunFolder(parameters.OUTPUTS / run.study / "runs" / run.id)
            facts = folder.facts
            if facts is None or progress.other_parameters(run, facts["parameters"]):
                missing.append(f"{name}: {run.id}")
                continue
            summary = facts["summary"]
            evals[name, run.arm, run.seed] = folder.evals()
            real = summary["real_steps"]
            equivalents = real + summary["predict_s"] / summary["real_step_median_s"]
            rows.append(
                dict(sweep=name, trial=run.arm, about=sweep.about, seed=run.seed)
                | dict(predictor=run.predictor.name if run.predictor else None, steps=run.steps, real_steps=real)
                | dict(predicted_share=summary["phase_share"]["predict"], held_out_loss=summary["held_out_loss"])
                | dict(train_s=summary["train_s"], equivalents=equivalents, speedup=run.steps / equivalents)
                | {k: summary[k] for k in ("divergences", "jumps_rejected")}
                | dict(arm=run.arm, data=beside)
                | {k: facts[k] for k in ("numerics", "device", "corpus_sha256")}
            )
    made = ["numerics", "device", "corpus_sha256"]
    trials = pd.DataFrame(rows, columns=[*COLUMNS, "arm", "data", *made])
    refuse_mixture(trials)  # what a sweep is compared with stands for the data
    return Research(with_baselines(trials[COLUMNS], evals), missing, frozenset(trials.numerics))


def with_baselines(trials: pd.DataFrame, evals: dict[tuple, pd.DataFrame]) -> pd.DataFrame:
    """Add each trial's RATIOS to its baseline; missing where that is not there, or is the trial itself.

    `evals` has the held-out losses of a sweep's trial and seed.
    """
    rows = []
    for row in trials.itertuples():
        baseline = evals.get((row.sweep, "baseline", row.seed))
        if baseline is None and not row.sweep.startswith("carry"):
            baseline = evals.get((REFERENCE, "baseline", row.seed))
        known = baseline is not None and row.trial != "baseline"
        rows.append(ratios(row, baseline, evals.get((row.sweep, row.trial, row.seed))) if known else {})
    return trials.assign(**pd.DataFrame(rows, columns=RATIOS, index=trials.index, dtype=float))


def ratios(trial: Any, baseline: pd.DataFrame, own: pd.DataFrame | None) -> dict[str, float]:
    """Return a trial's RATIOS from the baseline's held-out losses and its own."""
    target, last = baseline.held_out_loss.iloc[-1], baseline.step.iloc[-1]
    final = target if last == trial.steps else np.nan
    hold = np.interp(trial.real_steps, baseline.real_steps, baseline.held_out_loss, right=np.nan)
    out = dict(
        hold_loss=hold, hold_delta_pct=100 * (hold / final - 1), delta_pct=100 * (trial.held_out_loss / final - 1)
    )
    if len(reached := baseline[baseline.held_out_loss <= trial.held_out_loss]):
        out["steps_worth"] = reached.real_steps.iloc[0]
    if own is not None and len(there := own[own.held_out_loss <= target]):
        out["target_ratio"] = last / (trial.equivalents * there.real_steps.iloc[0] / trial.real_steps)
    return out
