"""What chapters read out of `steps.csv`: jumps, phases on a line, smoothed curves, a fault; and the figures that they share."""

import altair as alt
import numpy as np
import pandas as pd

from hybridlib.analysis.load import BASELINE, KEYS
from hybridlib.analysis.theme import (
    BLUE,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    WIDTH,
    colour,
    drawn,
    in_order,
    small,
    thinned,
)
from hybridlib.study.records import PHASES

BIN_STEPS = 25  # nominal steps that a smoothed curve's point stands for
LEVEL_STEPS = 50  # real steps before a fault, whose mean loss is the level that recovery is held to
EXPLODED, VANISHED, OUTLYING = 10.0, 0.01, 3.0  # times the baseline's median; interquartile ranges beyond the quartiles
NEAR_STEPS = 5  # a loss "before" or "after" is a mean over this many real steps, since one batch is noisy
JUMP_COLUMNS = [*KEYS, "step", "accepted", "loss_before", "loss_after_jump", "loss_after_correct"]


def jumps(steps: pd.DataFrame) -> pd.DataFrame:
    """Return one row a jump, JUMP_COLUMNS: the mean training loss of the last real steps before it and at the end of the
    Correct phase after it, and the probe right after it. A rejected jump is undone before Correct."""
    rows = []
    for key, run in steps.sort_values("step", kind="stable").groupby(KEYS, sort=False):
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
    """Return runs of equal phases on the line of nominal steps: KEYS, phase, start, end (half-open)."""
    ordered = steps.sort_values([*KEYS, "step"])
    change = (ordered[[*KEYS, "phase"]] != ordered[[*KEYS, "phase"]].shift()).any(axis=1).cumsum()
    grouped = ordered.groupby(change)
    first = grouped[[*KEYS, "phase"]].first()
    return first.assign(start=grouped.step.min() - 1, end=grouped.step.max()).reset_index(drop=True)


def smoothed(steps: pd.DataFrame, column: str, width: int, by: str = "mean") -> pd.DataFrame:
    """Return the mean (or median) of a column over bins of `width` nominal steps, real steps only: KEYS, step (the bin's middle), value."""
    real = steps[(steps.real == 1) & steps[column].notna()]
    middle = (real.step - 1) // width * width + (width + 1) / 2
    out = real.assign(step=middle).groupby([*KEYS, "step"], sort=False)[column].agg(by)
    return out.rename("value").reset_index()


def around_fault(steps: pd.DataFrame, window: int = LEVEL_STEPS) -> pd.DataFrame:
    """Return the real steps of a run from `window` before its first fault to 150 after: step, loss, running_mean, event.

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


def gradient_health(steps: pd.DataFrame) -> pd.DataFrame:
    """Return each arm's gradient norms on each data source over real steps: mean, sd, and shares in %. Explosions are above
    EXPLODED × the baseline's median, what vanished is below VANISHED ×, an outlier is over OUTLYING interquartile ranges out."""
    real = steps[(steps.real == 1) & steps.grad_norm.notna()]
    rows = []
    for (data, arm), part in real.groupby(["data", "arm"], sort=False):
        norm, reference = part.grad_norm, real[(real.data == data) & (real.arm == BASELINE)].grad_norm.median()
        low, high = np.quantile(norm, [0.25, 0.75])
        reach = OUTLYING * (high - low)
        shares = dict(
            outliers_pct=100.0 * ((norm > high + reach) | (norm < low - reach)).mean(),
            explosion_pct=np.nan,
            vanishing_pct=np.nan,
        )
        if not np.isnan(reference):
            beyond, below = norm > EXPLODED * reference, norm < VANISHED * reference
            shares |= dict(explosion_pct=100.0 * beyond.mean(), vanishing_pct=100.0 * below.mean())
        rows.append(dict(data=data, arm=arm, mean=norm.mean(), sd=norm.std()) | shares)
    return pd.DataFrame(rows, columns=["data", "arm", "mean", "sd", "outliers_pct", "explosion_pct", "vanishing_pct"])


@drawn
def smoothed_lines(
    steps: pd.DataFrame,
    column: str,
    title: str,
    scale: alt.Scale | None = None,
    width: int = BIN_STEPS,
    by: str = "mean",
) -> alt.Chart:
    """Draw a column of the real steps, a mean (or median) over `width` nominal steps, one line a run."""
    rows = small(thinned(smoothed(steps, column, width, by), KEYS))
    lines = alt.Chart(rows[["arm", "seed", "step", "value"]]).mark_line(strokeWidth=1.3)
    y = alt.Y("value:Q", title=title, scale=scale or alt.Scale(zero=False))
    paint = colour("arm", in_order(rows, "arm"))
    return lines.encode(x=alt.X("step:Q", title="nominal step"), y=y, color=paint, detail="seed:N")


@drawn
def fault_recovery(near: pd.DataFrame) -> alt.TopLevelMixin:
    """Draw the training loss around a fault, from `around_fault`; the fault and the answers as rules, dashed: the level."""
    kinds = dict(fault=VERMILLION, high=SKY, skipped=PURPLE, rollback=ORANGE)
    x = alt.X("step:Q", title="nominal step", scale=alt.Scale(zero=False, nice=False))
    y = alt.Y("loss:Q", title="training loss (nats)", scale=alt.Scale(zero=False))
    rows = small(near, 5)
    line = alt.Chart(rows).mark_line(point=alt.OverlayMarkDef(size=14, color=BLUE), strokeWidth=1.2, color=BLUE)
    level = alt.Chart(rows.head(1)).mark_rule(strokeDash=[5, 4], color="#444444").encode(y="running_mean:Q")
    events = rows.assign(what=rows.event.str.extract(f"({'|'.join(kinds)})", expand=False)).dropna(subset="what")
    paint = alt.Color("what:N", title=None, scale=alt.Scale(domain=list(kinds), range=list(kinds.values())))
    rules = alt.Chart(events[["step", "what"]]).mark_rule(strokeWidth=2).encode(x=x, color=paint)
    return alt.layer(rules, level, line.encode(x=x, y=y))


def phase_shares(steps: pd.DataFrame) -> pd.DataFrame:
    """Return each phase's shares of an arm's nominal steps and of its seconds: arm, phase, steps, seconds."""
    parts = steps.groupby(["arm", "phase"], sort=False).agg(steps=("step", "size"), seconds=("step_s", "sum"))
    return parts.div(parts.groupby("arm").transform("sum")).reset_index()


@drawn
def phase_timeline(steps: pd.DataFrame) -> alt.TopLevelMixin:
    """Draw which phase is on at which nominal step, a strip a run; below, each arm's shares of steps and of seconds."""
    segments = phase_segments(steps)
    segments["run"] = segments.arm + ", seed " + segments.seed.astype(str)
    phases = colour("phase", list(PHASES))
    x = alt.X("start:Q", title="nominal step", scale=alt.Scale(nice=False))
    strips = alt.Chart(segments[["run", "phase", "start", "end"]]).mark_bar(height=15)
    strips = strips.encode(x=x, x2="end:Q", y=alt.Y("run:N", title=None), color=phases)
    shares = phase_shares(steps).melt(["arm", "phase"], ["steps", "seconds"], "of", "share")
    shares = shares.assign(row=shares.arm + ", " + shares.of, order=shares.phase.map(PHASES.index))
    x = alt.X("share:Q", title="share of the run", stack="normalize", axis=alt.Axis(format="%"))
    bars = alt.Chart(small(shares)).mark_bar(height=15)
    bars = bars.encode(x=x, order="order:O", y=alt.Y("row:N", title=None, sort=None), color=phases)
    rows = ((strips, segments.run.nunique()), (bars, shares.row.nunique()))
    return alt.vconcat(*(chart.properties(width=WIDTH - 80, height=22 * count) for chart, count in rows))
