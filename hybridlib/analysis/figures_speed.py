"""Figures of speed: who is timed against whom, where a step's time goes, how it grows."""

import altair as alt
import pandas as pd

from hybridlib.analysis.theme import BLUE, ORANGE, WIDTH, colour, drawn, in_order, small

ROW_PX = 26


@drawn
def contenders(times: pd.DataFrame) -> alt.TopLevelMixin:
    """Milliseconds a step, a mark a round, one row a contender; the line is the median."""
    shown = times.assign(step_ms=1000 * times.seconds)[["contender", "step_ms"]]
    order = list(shown.groupby("contender").step_ms.median().sort_values().index)
    x = alt.X("step_ms:Q", title="time of a step (ms)", scale=alt.Scale(zero=False, padding=12))
    y = alt.Y("contender:N", title=None, sort=order, axis=alt.Axis(labelLimit=260))
    base = alt.Chart(small(shown, 5)).encode(y=y)
    dots = base.mark_point(size=36, color=BLUE, strokeWidth=1.2).encode(x=x)
    medians = base.mark_tick(color=ORANGE, thickness=3, size=ROW_PX * 0.7).encode(x=alt.X("median(step_ms):Q", title="time of a step (ms)"))
    return (dots + medians).properties(width=WIDTH - 200, height=ROW_PX * len(order))


@drawn
def anatomy(parts: pd.DataFrame) -> alt.TopLevelMixin:
    """Share of a step's time by its parts, one bar a size."""
    shown = parts.assign(share_pct=100 * parts.seconds / parts.groupby("study").seconds.transform("sum"))
    x = alt.X("share_pct:Q", title="share of a step's time (%)")
    y = alt.Y("part:N", title=None, sort=in_order(shown, "part"), axis=alt.Axis(labelLimit=260))
    bars = alt.Chart(small(shown[["part", "share_pct", "study"]], 4)).mark_bar().encode(
        x=x, y=y, color=colour("study", in_order(shown, "study")), yOffset="study:N")
    return bars.properties(width=WIDTH - 200, height=ROW_PX * 1.4 * shown.part.nunique())


@drawn
def growth(scaling: pd.DataFrame, over: str) -> alt.TopLevelMixin:
    """Time of a step against parameters or tokens, both on logarithmic axes."""
    titles = dict(parameters="parameters", tokens="tokens a step")
    shown = scaling[scaling.over == over].assign(step_ms=lambda frame: 1000 * frame.seconds)
    x = alt.X(f"{over}:Q", title=titles[over], scale=alt.Scale(type="log"))
    y = alt.Y("step_ms:Q", title="time of a step (ms)", scale=alt.Scale(type="log"))
    base = alt.Chart(small(shown[[over, "step_ms"]], 5)).encode(x=x, y=y)
    return (base.mark_line(color=BLUE) + base.mark_point(filled=True, color=BLUE, size=60, opacity=1)).properties(width=WIDTH, height=220)


@drawn
def ladder(rungs: pd.DataFrame) -> alt.TopLevelMixin:
    """Nominal steps a second over plain training's, with quartiles, one row a rung, a colour a size."""
    x = alt.X("speedup:Q", title="nominal steps a second, over plain training in fp32 (×)", scale=alt.Scale(zero=False, padding=12))
    y = alt.Y("rung:N", title=None, sort=in_order(rungs, "rung"), axis=alt.Axis(labelLimit=260))
    paint = colour("study", in_order(rungs, "study"))
    base = alt.Chart(small(rungs[["rung", "speedup", "low", "high", "study"]], 4)).encode(y=y, color=paint, yOffset="study:N")
    one = alt.Chart(pd.DataFrame({"speedup": [1.0]})).mark_rule(color="#888888").encode(x=x)
    spread = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=""), x2="high:Q")
    return (one + spread + base.mark_point(filled=True, size=60, opacity=1).encode(x=x)).properties(
        width=WIDTH - 200, height=ROW_PX * 1.4 * rungs.rung.nunique())
