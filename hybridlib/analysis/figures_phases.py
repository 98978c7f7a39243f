"""Figures of the phases: when each is on, what it costs in time and memory, and what each jump did to the loss."""

import altair as alt
import pandas as pd

from hybridlib.analysis.load import BASELINE
from hybridlib.analysis.series import phase_segments
from hybridlib.analysis.theme import BLUE, VERMILLION, WIDTH, colour, drawn, in_order, small
from hybridlib.records import PHASES

NAMES = list(PHASES)


@drawn
def memory_by_phase(runs: pd.DataFrame) -> alt.TopLevelMixin:
    """Peak memory of each phase, bars are means over the seeds of an arm, dots the seeds; dashed: baseline's peak."""
    columns = {f"peak_mb_{phase}": phase for phase in PHASES}
    long = runs.melt(["arm", "seed"], list(columns), "phase", "peak_mb").replace({"phase": columns}).dropna()
    arms = in_order(long, "arm")
    base = alt.Chart(small(long)).encode(
        x=alt.X("phase:N", title=None, sort=NAMES, axis=alt.Axis(labelAngle=0)), xOffset=alt.XOffset("arm:N", sort=arms)
    )
    bars = base.mark_bar(opacity=0.75).encode(
        y=alt.Y("mean(peak_mb):Q", title="peak memory above the process's floor (MB)"), color=colour("arm", arms)
    )
    dots = base.mark_point(size=14, color="black", filled=True).encode(y="peak_mb:Q")
    peak = pd.DataFrame({"peak": [runs[runs.arm == BASELINE].peak_mb_run.mean()]}).dropna()
    rule = alt.Chart(peak).mark_rule(strokeDash=[5, 4], strokeWidth=1.5).encode(y="peak:Q")
    return (bars + dots + rule).properties(width=WIDTH)


@drawn
def phase_timeline(steps: pd.DataFrame) -> alt.TopLevelMixin:
    """Which phase is on at which nominal step, one strip a run; below, each arm's shares of steps and of seconds."""
    segments = phase_segments(steps)
    segments["run"] = segments.arm + ", seed " + segments.seed.astype(str)
    phases = colour("phase", NAMES)
    strips = (
        alt.Chart(segments[["run", "phase", "start", "end"]])
        .mark_bar(height=15)
        .encode(
            x=alt.X("start:Q", title="nominal step", scale=alt.Scale(nice=False)),
            x2="end:Q",
            y=alt.Y("run:N", title=None),
            color=phases,
        )
        .properties(width=WIDTH - 80, height=22 * segments.run.nunique())
    )
    shares = phase_shares(steps).melt(["arm", "phase"], ["steps", "seconds"], "of", "share")
    shares["row"] = shares.arm + ", " + shares.of
    shares["order"] = shares.phase.map(NAMES.index)
    bars = (
        alt.Chart(small(shares))
        .mark_bar(height=15)
        .encode(
            x=alt.X("share:Q", title="share of the run", stack="normalize", axis=alt.Axis(format="%")),
            order="order:O",
            y=alt.Y("row:N", title=None, sort=None),
            color=phases,
            tooltip=["arm", "of", "phase", "share"],
        )
        .properties(width=WIDTH - 80, height=22 * shares.row.nunique())
    )
    return alt.vconcat(strips, bars)


def phase_shares(steps: pd.DataFrame) -> pd.DataFrame:
    """Each phase's shares of an arm's nominal steps and of its seconds: arm, phase, steps, seconds."""
    parts = steps.groupby(["arm", "phase"], sort=False).agg(steps=("step", "size"), seconds=("step_s", "sum"))
    return parts.div(parts.groupby("arm").transform("sum")).reset_index()


@drawn
def jump_effects(jumps: pd.DataFrame) -> alt.TopLevelMixin:
    """What each jump did to the training loss (frame of `series.jumps`): right after it, and at the end of Correct,
    against the loss before it; a rejected jump is a cross. Every seed."""
    moments = {"loss_after_jump": "right after the jump", "loss_after_correct": "after Correct"}
    gains = jumps.assign(
        **{key: jumps[key] - jumps.loss_before for key in moments},
        outcome=jumps.accepted.map({True: "accepted", False: "rejected"}),
    )
    long = (
        gains.melt(["step", "seed", "outcome"], list(moments), "moment", "change").replace({"moment": moments}).dropna()
    )
    outcomes = ["accepted", "rejected"]
    points = (
        alt.Chart(small(long))
        .mark_point(size=30, strokeWidth=1.4)
        .encode(
            x=alt.X("step:Q", title="nominal step of the jump"),
            y=alt.Y("change:Q", title="change of the training loss (nats)"),
            color=alt.Color(
                "moment:N", title=None, scale=alt.Scale(domain=list(moments.values()), range=[VERMILLION, BLUE])
            ),
            shape=alt.Shape("outcome:N", title=None, scale=alt.Scale(domain=outcomes, range=["circle", "cross"])),
        )
    )
    zero = alt.Chart(pd.DataFrame({"zero": [0]})).mark_rule(color="#444444").encode(y="zero:Q")
    return zero + points
