"""What figures and stress tests read out of `steps.csv`: jumps, phases on a line, smoothed curves, a fault."""

import numpy as np
import pandas as pd

from hybridlib.analysis.load import KEYS

NEAR_STEPS = 5  # a loss "before" or "after" is a mean over this many real steps, since one batch is noisy
JUMP_COLUMNS = [*KEYS, "step", "accepted", "loss_before", "loss_after_jump", "loss_after_correct"]


def jumps(steps: pd.DataFrame) -> pd.DataFrame:
    """One row a jump, JUMP_COLUMNS: the mean training loss of the last real steps before it and at the end of the
    Correct phase after it, and the probe right after it. A rejected jump is undone before Correct."""
    rows = []
    for key, run in steps.groupby(KEYS, sort=False):
        run = run.sort_values("step")
        real = run[run.real == 1]
        jumped = run[run.event.str.contains("jump|rejected")]
        for row in jumped.itertuples():
            before = real[real.step < row.step].loss.tail(NEAR_STEPS)
            after = real[real.step > row.step]
            ended = (after.phase != "correct").to_numpy().nonzero()[0]
            correct = after.iloc[: ended[0] if len(ended) else len(after)].loss.tail(NEAR_STEPS)
            rows.append([*key, row.step, "jump" in row.event.split("+"), before.mean(), row.loss, correct.mean()])
    return pd.DataFrame(rows, columns=JUMP_COLUMNS)


def phase_segments(steps: pd.DataFrame) -> pd.DataFrame:
    """Runs of equal phases on the line of nominal steps: KEYS, phase, start, end (half-open)."""
    ordered = steps.sort_values([*KEYS, "step"])
    change = (ordered[[*KEYS, "phase"]] != ordered[[*KEYS, "phase"]].shift()).any(axis=1).cumsum()
    grouped = ordered.groupby(change)
    first = grouped[[*KEYS, "phase"]].first()
    return first.assign(start=grouped.step.min() - 1, end=grouped.step.max()).reset_index(drop=True)


def smoothed(steps: pd.DataFrame, column: str, width: int, by: str = "mean") -> pd.DataFrame:
    """Mean (or median) of a column over bins of `width` nominal steps, real steps only: KEYS, step (the bin's middle), value."""
    real = steps[(steps.real == 1) & steps[column].notna()]
    middle = (real.step - 1) // width * width + (width + 1) / 2
    out = real.assign(step=middle).groupby([*KEYS, "step"], sort=False)[column].agg(by)
    return out.rename("value").reset_index()


def around_fault(steps: pd.DataFrame, window: int = 50) -> pd.DataFrame:
    """The real steps of a run from `window` before its first fault to 150 after: step, loss, running_mean, event.

    `running_mean` is the mean loss of the `window` real steps before the fault, the level that recovery is held to.
    """
    faults = steps[steps.event.str.contains("fault")]
    if faults.empty:
        return pd.DataFrame(columns=["step", "loss", "running_mean", "event"])
    at = faults.step.iloc[0]
    real = steps[(steps.real == 1) & steps.loss.notna()]
    level = real[real.step < at].loss.tail(window).mean()
    near = real[real.step.between(at - window, at + 150)]
    return near[["step", "loss", "event"]].assign(running_mean=level)


def gradient_health(steps: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Gradient norms of each arm on each data source over real steps: mean, sd, share of outliers, explosions (above
    10 × the baseline's median) and vanishing (below 0.01 ×), in %. An outlier is over 3 interquartile ranges out."""
    real = steps[(steps.real == 1) & steps.grad_norm.notna()]
    rows = []
    for (data, arm), part in real.groupby(["data", "arm"], sort=False):
        reference = real[(real.data == data) & (real.arm == baseline)].grad_norm.median()
        low, high = np.quantile(part.grad_norm, [0.25, 0.75])
        outside = (part.grad_norm > high + 3 * (high - low)) | (part.grad_norm < low - 3 * (high - low))
        shares = dict(
            outliers_pct=outside,
            explosion_pct=part.grad_norm > 10 * reference,
            vanishing_pct=part.grad_norm < 0.01 * reference,
        )
        known = {key: 100.0 * mask.mean() for key, mask in shares.items()}
        if np.isnan(reference):
            known |= dict(explosion_pct=np.nan, vanishing_pct=np.nan)
        rows.append(dict(data=data, arm=arm, mean=part.grad_norm.mean(), sd=part.grad_norm.std(), **known))
    return pd.DataFrame(rows, columns=["data", "arm", "mean", "sd", "outliers_pct", "explosion_pct", "vanishing_pct"])
