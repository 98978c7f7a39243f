"""The sweeps of `params/research/` as tidy frames: tuning, what carries to other settings, ablations, trade-off."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from hybridlib.analysis.load import refuse_mixture
from hybridlib.config import Study
from hybridlib.records import RunFolder
from hybridlib.studies import OUTPUTS
from hybridlib.sweeps import runs, sweeps

COLUMNS = [
    "sweep", "trial", "about", "seed", "predictor", "steps", "real_steps", "predicted_share", "held_out_loss", "hold_loss",
    "steps_worth", "delta_pct", "hold_delta_pct", "target_ratio", "train_s", "equivalents", "speedup", "divergences", "jumps_rejected", "parameters",
]  # fmt: skip
REFERENCE = "ablation_reference"


@dataclass(frozen=True)
class Research:
    """`trials` has one row a complete trial (COLUMNS), `evals` its held-out losses; `missing` names the others.

    Ratios are against the same seed's `baseline` of the sweep, or of the reference sweep where that has none. `hold_loss`
    is the baseline's at as many real steps, which is what `hold` has, bit for bit; `steps_worth` the baseline's steps for
    the trial's loss, missing where the baseline never gets there. `equivalents` counts the trial's steps as real ones, a
    jump at what it took; `target_ratio` is the baseline's steps over the equivalents until the trial has its final loss.
    """

    trials: pd.DataFrame
    evals: pd.DataFrame
    missing: list[str]

    def of(self, prefix: str) -> pd.DataFrame:
        """The trials of all sweeps whose names begin so, which the rest of the name then tells apart."""
        mine = self.trials[self.trials.sweep.str.startswith(prefix)]
        return mine.assign(sweep=mine.sweep.str.removeprefix(prefix))


def read(study: Study) -> Research:
    """Every complete trial around a study. Raises `ValueError` if trials come from different training code."""
    rows, evals, missing = [], {}, []
    for name, sweep in sweeps(study).items():
        for run in runs(study, name, sweep):
            folder = RunFolder(OUTPUTS / run.study / "runs" / run.id)
            facts = folder.facts
            if facts is None or facts["parameters_sha256"] != run.sha256:
                missing.append(f"{name}: {run.id}")
                continue
            summary = facts["summary"]
            key = (name, run.arm, run.seed)
            evals[key] = folder.evals()
            real = summary["real_steps"]
            equivalents = real + summary["predict_s"] / summary["real_step_median_s"]
            rows.append(
                dict(sweep=name, trial=run.arm, about=sweep.about, seed=run.seed)
                | dict(predictor=run.predictor.name if run.predictor else None, steps=run.steps, real_steps=real)
                | dict(predicted_share=summary["phase_share"]["predict"], held_out_loss=summary["held_out_loss"])
                | dict(train_s=summary["train_s"], equivalents=equivalents, speedup=run.steps / equivalents)
                | {k: summary[k] for k in ("divergences", "jumps_rejected")}
                | dict(parameters=facts["parameters"], code=facts["code"]["training_sha256"], data=run.data, arm=run.arm)
                | {k: facts[k] for k in ("device", "corpus_sha256", "predictor_sha256")}
            )
    trials = pd.DataFrame(rows, columns=[*COLUMNS, "code", "data", "arm", "device", "corpus_sha256", "predictor_sha256"])
    one_code = trials.assign(training_sha256=trials.code, data=trials.sweep, arm=trials.predictor.fillna("none"))
    refuse_mixture(one_code)
    return Research(with_baselines(trials[COLUMNS], evals), stacked(evals), missing)


def with_baselines(trials: pd.DataFrame, evals: dict[tuple, pd.DataFrame]) -> pd.DataFrame:
    """Adds each trial's ratios to its baseline; missing where that is not there, or is the trial itself."""
    out = trials.copy()
    for at, row in out.iterrows():
        baseline = evals.get((row.sweep, "baseline", row.seed))
        if baseline is None and not row.sweep.startswith("carry"):
            baseline = evals.get((REFERENCE, "baseline", row.seed))
        if baseline is None or row.trial == "baseline":
            continue
        target, last = baseline.held_out_loss.iloc[-1], baseline.step.iloc[-1]
        final = target if last == row.steps else np.nan
        hold = np.interp(row.real_steps, baseline.real_steps, baseline.held_out_loss, right=np.nan)
        reached = baseline[baseline.held_out_loss <= row.held_out_loss]
        out.loc[at, "hold_loss"] = hold
        out.loc[at, "delta_pct"] = 100 * (row.held_out_loss / final - 1)
        out.loc[at, "hold_delta_pct"] = 100 * (hold / final - 1)
        there = own[own.held_out_loss <= target] if (own := evals.get((row.sweep, row.trial, row.seed))) is not None else ()
        if len(there):
            out.loc[at, "target_ratio"] = last / (row.equivalents * there.real_steps.iloc[0] / row.real_steps)
        out.loc[at, "steps_worth"] = reached.real_steps.iloc[0] if len(reached) else np.nan
    numbers = ["hold_loss", "steps_worth", "delta_pct", "hold_delta_pct", "target_ratio"]
    return out.astype(dict.fromkeys(numbers, float))


def stacked(evals: dict[tuple, pd.DataFrame]) -> pd.DataFrame:
    """All held-out losses with their sweep, trial and seed."""
    names = ["sweep", "trial", "seed"]
    frames = [frame.assign(**dict(zip(names, key))) for key, frame in evals.items()]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*names, "step", "held_out_loss"])
