"""What one run's records amount to: pure functions of `steps.csv` and `evals.csv`, used by training and by analysis."""

import math
from typing import Any

import numpy as np
import pandas as pd

from hybridlib.study.records import PHASES

TENTHS = 10  # of a run's real steps, by which its pace is judged
UNTIMED_STEPS = 3  # a run's first steps are off the clock: lazy initialisation, allocation, caches


def summarise(steps: pd.DataFrame, evals: pd.DataFrame, nominal_steps: int, tokens_per_step: int) -> dict[str, Any]:
    """A run's figures at its last nominal step; rows after it belong to the extension for time to target.

    `train_s` and the rates leave out the first UNTIMED_STEPS steps. Raises `ValueError` if the run is shorter
    than its nominal steps.
    """
    nominal = steps[steps.step <= nominal_steps]
    if len(nominal) < nominal_steps:
        raise ValueError(f"the records hold {len(nominal)} of {nominal_steps} nominal steps")
    timed = nominal[nominal.step > UNTIMED_STEPS]
    train_s, real = timed.step_s.sum(), nominal[nominal.real == 1]
    slowdown, drift_s = pace(timed[timed.real == 1].step_s.to_numpy())
    final = evals[evals.step <= nominal_steps].held_out_loss.iloc[-1]
    peaks = nominal.groupby("phase").peak_mb.max()
    events = nominal.event.str.split("+").explode().value_counts()
    return dict(
        nominal_steps=nominal_steps,
        real_steps=len(real),
        train_s=float(train_s),
        nominal_tokens_per_s=float(len(timed) * tokens_per_step / train_s),
        steady_tokens_per_s=float(len(timed) * tokens_per_step / (train_s - drift_s)),
        slowdown=slowdown,
        trained_tokens_per_s=float((timed.real == 1).sum() * tokens_per_step / train_s),
        real_step_median_s=float(timed[timed.real == 1].step_s.median()),
        predict_s=float(timed[timed.real == 0].step_s.sum()),
        held_out_loss=float(final),
        perplexity=math.exp(min(final, 700.0)),
        train_loss_last_100=float(real[real.step > nominal_steps - 100].loss.mean()),
        grad_norm_mean=float(real.grad_norm.mean()),
        grad_norm_sd=float(real.grad_norm.std()),
        peak_mb={phase: float(peaks[phase]) for phase in PHASES if phase in peaks} | {"run": float(peaks.max())},
        phase_share={p: float((nominal.phase == p).mean()) for p in PHASES},
        jumps_accepted=int(events.get("jump", 0)),
        jumps_rejected=int(events.get("rejected", 0)),
        high=int(events.get("high", 0)),
        skipped=int(events.get("skipped", 0)),
        divergences=int(events.get("rollback", 0)),
    )


def pace(step_s: np.ndarray) -> tuple[float, float]:
    """(n_real_steps,) seconds -> how many times as slow the slowest tenth is as the fastest, by their medians, and the
    seconds that all tenths took beyond the fastest's pace.

    A machine at rest with steps of one cost gives 1 and about 0. What one run shows and another of its arm does not is
    either the machine's doing or its own numbers': gradients that underflow to subnormal numbers, which some processors
    multiply many times as slowly.
    """
    tenths = np.array_split(step_s, min(TENTHS, len(step_s)))
    medians = np.array([np.median(part) for part in tenths])
    return float(medians.max() / medians.min()), float(np.dot([len(part) for part in tenths], medians - medians.min()))


def time_to_target_s(evals: pd.DataFrame, target_loss: float) -> float:
    """Seconds on the run's clock when the held-out loss is first at or below the target; infinite if it never is."""
    reached = evals[evals.held_out_loss <= target_loss]
    return float(reached.train_s.iloc[0]) if len(reached) else math.inf
