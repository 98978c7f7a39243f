"""The sweeps of `params/research/` as tidy frames: tuning, what carries to other settings, ablations, trade-off."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hybridlib.analysis.alike import ALIKE, refuse_mixture
from hybridlib.analysis.load import BASELINE
from hybridlib.study import parameters, progress
from hybridlib.study.records import RunFolder
from hybridlib.study.run import Run
from hybridlib.study.schema import Study
from hybridlib.study.sweeps import COMPARED, YARDSTICK, runs, sweeps

TRIAL_COLUMNS = [
    "sweep", "trial", "about", "seed", "predictor", "steps", "real_steps", "predicted_share", "held_out_loss",
    "hold_loss", "steps_worth", "delta_pct", "hold_delta_pct", "target_ratio", "train_s", "equivalents", "speedup",
    "divergences", "jumps_rejected", "precision", "device",
]  # fmt: skip
TO_BASELINE = ["hold_loss", "steps_worth", "delta_pct", "hold_delta_pct", "target_ratio"]
REFERENCE = "ablation_reference"


@dataclass(frozen=True)
class Research:
    """All complete `trials` around a study, one row each (TRIAL_COLUMNS), and the names of the `missing` ones.

    Columns TO_BASELINE compare with the same seed's `baseline` of the sweep, or of the reference sweep where that has
    none. `hold_loss` is the baseline's at as many computed steps, which is what `hold` has, read between evaluations.
    `steps_worth` is the baseline's steps for the trial's loss, missing where the baseline never gets there.
    `equivalents` counts the trial's steps as computed ones, a jump at what it took. `target_ratio` is the baseline's
    steps over the equivalents until the trial has its final loss. `numerics` are those of the trials, which may be
    older than the study's runs.
    """

    trials: pd.DataFrame
    missing: list[str]
    numerics: frozenset[int] = frozenset()

    def of(self, prefix: str) -> pd.DataFrame:
        """Return the trials of all sweeps that begin with `prefix`; the rest of the name then tells them apart."""
        mine = self.trials[self.trials.sweep.str.startswith(prefix)]
        return mine.assign(sweep=mine.sweep.str.removeprefix(prefix))

    def predicted(self, prefix: str) -> pd.DataFrame:
        """Return the trials of `of(prefix)` without plain training."""
        mine = self.of(prefix)
        return mine[mine.predictor.notna()]

    def reference(self, trial: str) -> float:
        """Return the held-out loss of a `trial` of the reference sweep, on the pilot seed; NaN where it was not run."""
        found = self.trials[(self.trials.sweep == REFERENCE) & (self.trials.trial == trial)]
        return float(found.held_out_loss.iloc[0]) if len(found) else np.nan


def read_research(study: Study, outputs: Path | None = None) -> Research:
    """Return all complete trials around `study` in the folder `outputs`, by default the project's.

    Raise `ValueError` if trials that are compared were not made alike.
    """
    rows, evals, missing, asked = [], {}, [], sweeps(study)
    for name, sweep in asked.items():
        alone = BASELINE in sweep.trials() or REFERENCE not in asked
        group = "yardsticks" if name.startswith((YARDSTICK, COMPARED)) else name if alone else REFERENCE
        for run in runs(study, name, sweep):
            folder = RunFolder((outputs or parameters.OUTPUTS) / run.study / "runs" / run.id)
            facts = folder.facts
            if facts is None or progress.other_parameters(run, facts["parameters"]):
                missing.append(f"{name}: {run.id}")
                continue
            evals[name, run.arm, run.seed] = folder.evals()
            beside = dict(arm=run.arm, data=group)  # with whose trials it is compared
            rows.append(_row(name, run, facts["summary"]) | beside | {k: facts[k] for k in ALIKE})
    trials = pd.DataFrame(rows, columns=list(dict.fromkeys([*TRIAL_COLUMNS, "arm", "data", *ALIKE])))
    refuse_mixture(trials)
    return Research(with_baselines(trials[TRIAL_COLUMNS], evals), missing, frozenset(trials.numerics))


def _row(sweep: str, run: Run, summary: dict[str, Any]) -> dict[str, Any]:
    real = summary["real_steps"]
    equivalents = real + summary["predict_s"] / summary["real_step_median_s"]
    named = dict(sweep=sweep, trial=run.arm, about=run.about, seed=run.seed)
    named |= dict(predictor=run.predictor.name if run.predictor else None, steps=run.steps, real_steps=real)
    named |= dict(precision=run.precision)
    cost = dict(equivalents=equivalents, speedup=run.steps / equivalents)
    cost |= dict(predicted_share=summary["phase_share"]["predict"])
    return named | cost | {k: summary[k] for k in ("held_out_loss", "train_s", "divergences", "jumps_rejected")}


def with_baselines(trials: pd.DataFrame, evals: dict[tuple, pd.DataFrame]) -> pd.DataFrame:
    """Return `trials` with TO_BASELINE; missing where the baseline is not there, or is the trial itself.

    `evals` maps (sweep, trial, seed) to its held-out losses.
    """
    rows = []
    for row in trials.itertuples():
        baseline = evals.get((row.sweep, BASELINE, row.seed))
        if baseline is None and not row.sweep.startswith("carry"):
            baseline = evals.get((REFERENCE, BASELINE, row.seed))
        known = baseline is not None and row.trial != BASELINE
        rows.append(_to_baseline(row, baseline, evals.get((row.sweep, row.trial, row.seed))) if known else {})
    return trials.assign(**pd.DataFrame(rows, columns=TO_BASELINE, index=trials.index, dtype=float))


def _to_baseline(trial: Any, baseline: pd.DataFrame, own: pd.DataFrame | None) -> dict[str, float]:
    target, last = baseline.held_out_loss.iloc[-1], baseline.step.iloc[-1]
    final = target if last == trial.steps else np.nan
    hold = np.interp(trial.real_steps, baseline.real_steps, baseline.held_out_loss, right=np.nan)
    out = dict(hold_loss=hold, hold_delta_pct=100 * (hold / final - 1))
    out |= dict(delta_pct=100 * (trial.held_out_loss / final - 1))
    if len(reached := baseline[baseline.held_out_loss <= trial.held_out_loss]):
        out["steps_worth"] = reached.real_steps.iloc[0]
    if own is not None and len(there := own[own.held_out_loss <= target]):
        out["target_ratio"] = last / (trial.equivalents * there.real_steps.iloc[0] / trial.real_steps)
    return out
