"""What several chapters read out of `steps.csv`, and draw: phases on a line, smoothed curves, recovery from a fault."""

import altair as alt
import pandas as pd

from hybridlib.analysis.load import KEYS
from hybridlib.analysis.theme import (
    BLACK,
    BLUE,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    WIDTH,
    colour,
    drawn,
    in_order,
    on_top,
    small,
    thinned,
    zoomed,
)
from hybridlib.study.records import PHASES

BIN_STEPS = 25  # nominal steps that a smoothed curve's point stands for
LEVEL_STEPS = 50  # computed steps before a fault, whose mean loss is the level that recovery is held to
AFTER_STEPS = 150  # nominal steps after a fault within which recovery is looked for
EXPLODED, VANISHED = 10.0, 0.01  # times the baseline's median gradient norm
_CLOSE = alt.Scale(zero=False)


def phase_segments(steps: pd.DataFrame) -> pd.DataFrame:
    """Return the stretches of one phase in `steps`: KEYS, phase, start and end (half-open) in nominal steps."""
    ordered = steps.sort_values([*KEYS, "step"])
    change = (ordered[[*KEYS, "phase"]] != ordered[[*KEYS, "phase"]].shift()).any(axis=1).cumsum()
    grouped = ordered.groupby(change)
    first = grouped[[*KEYS, "phase"]].first()
    return first.assign(start=grouped.step.min() - 1, end=grouped.step.max()).reset_index(drop=True)


def phase_shares(steps: pd.DataFrame) -> pd.DataFrame:
    """Return each phase's shares of an arm's nominal `steps` and of their seconds: arm, phase, steps, seconds."""
    parts = steps.groupby(["arm", "phase"], sort=False).agg(steps=("step", "size"), seconds=("step_s", "sum"))
    return parts.div(parts.groupby("arm").transform("sum")).reset_index()


def smoothed(steps: pd.DataFrame, column: str, width: int, by: str = "mean") -> pd.DataFrame:
    """Return a `column` of the computed `steps`, aggregated `by` mean or median over bins of `width` nominal steps.

    The columns are KEYS, step (the bin's middle) and value.
    """
    real = steps[(steps.real == 1) & steps[column].notna()]
    middle = (real.step - 1) // width * width + (width + 1) / 2
    out = real.assign(step=middle).groupby([*KEYS, "step"], sort=False)[column].agg(by)
    return out.rename("value").reset_index()


def around_fault(steps: pd.DataFrame) -> pd.DataFrame:
    """Return the computed `steps` of a run from LEVEL_STEPS before its first fault to AFTER_STEPS after it.

    The columns are step, loss, event and level, the mean loss of the LEVEL_STEPS computed steps before the fault.
    """
    faults = steps[steps.event.str.contains("fault")]
    if faults.empty:
        return pd.DataFrame(columns=["step", "loss", "event", "level"])
    at = faults.step.iloc[0]
    real = steps[(steps.real == 1) & steps.loss.notna()]
    near = real[real.step.between(at - LEVEL_STEPS, at + AFTER_STEPS)]
    return near[["step", "loss", "event"]].assign(level=real[real.step < at].loss.tail(LEVEL_STEPS).mean())


@drawn
def smoothed_lines(
    steps: pd.DataFrame, column: str, title: str, scale: alt.Scale = _CLOSE, width: int = BIN_STEPS, by: str = "mean"
) -> alt.Chart:
    """Draw `smoothed(steps, column, width, by)`, one line a run; `title` and `scale` are the vertical axis's."""
    rows = small(thinned(smoothed(steps, column, width, by), KEYS))
    lines = alt.Chart(on_top(rows, "arm")[["arm", "seed", "step", "value"]]).mark_line(strokeWidth=1.3)
    y = alt.Y("value:Q", title=title, scale=scale)
    paint = colour("arm", in_order(rows, "arm"))
    x = alt.X("step:Q", title="nominal step", axis=alt.Axis(tickCount=5))
    return zoomed(lines.encode(x=x, y=y, color=paint, detail="seed:N"))


@drawn
def fault_recovery(near: pd.DataFrame) -> alt.TopLevelMixin:
    """Draw `near`, the training loss of `around_fault`; rules mark fault and answers, a dashed one the level before."""
    kinds = dict(fault=VERMILLION, loss_spike=SKY, skipped=PURPLE, rollback=ORANGE)
    x = alt.X("step:Q", title="nominal step", scale=alt.Scale(zero=False, nice=False))
    y = alt.Y("loss:Q", title="training loss (nats)", scale=alt.Scale(zero=False))
    rows = small(near, 5)
    line = alt.Chart(rows).mark_line(point=alt.OverlayMarkDef(size=14, color=BLUE), strokeWidth=1.2, color=BLUE)
    level = alt.Chart(rows.head(1)).mark_rule(strokeDash=[5, 4], color="#444444").encode(y="level:Q")
    events = rows.assign(what=rows.event.str.extract(f"({'|'.join(kinds)})", expand=False)).dropna(subset="what")
    paint = alt.Color("what:N", title=None, scale=alt.Scale(domain=list(kinds), range=list(kinds.values())))
    rules = alt.Chart(events[["step", "what"]]).mark_rule(strokeWidth=2).encode(x=x, color=paint)
    return alt.layer(rules, level, line.encode(x=x, y=y))


@drawn
def phase_timeline(steps: pd.DataFrame) -> alt.TopLevelMixin:
    """Draw the phases in `steps`, a strip a run; above, the loss of the computed steps, for those nominal steps alone
    that a reader has marked on the strips; below, each arm's shares of steps and of seconds.
    """
    segments = phase_segments(steps)
    segments["run"] = segments.arm + ", seed " + segments.seed.astype(str)
    phases, marked = colour("phase", list(PHASES)), alt.selection_interval(encodings=["x"])
    losses = small(steps[(steps.real == 1) & steps.loss.notna()])[["arm", "seed", "step", "loss"]]
    loss = alt.Chart(losses).mark_line(clip=True, strokeWidth=0.8, color=BLACK, opacity=0.7).encode(
        x=alt.X("step:Q", title=None, scale=alt.Scale(nice=False, domain=marked), axis=alt.Axis(tickCount=5)),
        y=alt.Y("loss:Q", title="training loss (nats)", scale=_CLOSE),
        detail=["arm:N", "seed:N"],
    )  # fmt: skip
    loss = loss.properties(width=WIDTH - 80, height=110)
    x = alt.X("start:Q", title="nominal step", scale=alt.Scale(nice=False), axis=alt.Axis(tickCount=5))
    strips = alt.Chart(segments[["run", "phase", "start", "end"]]).mark_bar(height=15)
    strips = strips.encode(x=x, x2="end:Q", y=alt.Y("run:N", title=None), color=phases).add_params(marked)
    shares = phase_shares(steps).melt(["arm", "phase"], ["steps", "seconds"], "of", "share")
    shares = shares.assign(row=shares.arm + ", " + shares.of, order=shares.phase.map(PHASES.index))
    x = alt.X("share:Q", title="share of the run", stack="normalize", axis=alt.Axis(format="%"))
    bars = alt.Chart(small(shares)).mark_bar(height=15)
    bars = bars.encode(x=x, order="order:O", y=alt.Y("row:N", title=None, sort=None), color=phases)
    rows = ((strips, segments.run.nunique()), (bars, shares.row.nunique()))
    parts = (chart.properties(width=WIDTH - 80, height=22 * count) for chart, count in rows)
    return alt.vconcat(*[loss] * (len(losses) > 0), *parts)
