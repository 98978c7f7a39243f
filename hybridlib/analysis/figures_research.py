"""Figures of the sweeps: tuning, ablations, what carries elsewhere, and the trade-off of speed against loss."""

import altair as alt
import pandas as pd

from hybridlib.analysis.theme import BLACK, BLUE, GREY, ORANGE, WIDTH, colour, drawn, in_order, small

ROW_PX = 20
PAIR = ["hybrid", "hold"]  # of each setting, told apart by colour and shape
SHAPE = alt.Shape("arm:N", scale=alt.Scale(domain=PAIR, range=["square", "circle"]), legend=alt.Legend(title=None), sort=PAIR)
BRIEF = dict(speedup=1.5, delta_pct=2.0)  # the brief's box: at least so fast, at most so much worse


@drawn
def tuning(trials: pd.DataFrame) -> alt.TopLevelMixin:
    """Held-out loss of every trial of tuning, one row an arm, every seed a mark; filled: the best in the mean over seeds."""
    shown = trials[["sweep", "trial", "held_out_loss"]]
    arms = in_order(shown, "sweep")
    means = shown.groupby(["sweep", "trial"]).held_out_loss.transform("mean")
    first = shown[means == means.groupby(shown.sweep).transform("min")]
    base = alt.Chart(small(shown, 5))
    x = alt.X("held_out_loss:Q", title="held-out loss (nats a token)", scale=alt.Scale(zero=False, padding=10))
    y = alt.Y("sweep:N", title=None, sort=arms)
    paint = colour("sweep", arms, legend=False)
    every = base.mark_point(size=36, strokeWidth=1.2).encode(x=x, y=y, color=paint, tooltip=["trial", "held_out_loss"])
    best = alt.Chart(small(first, 5)).mark_point(filled=True, size=70, opacity=1)
    return (every + best.encode(x=x, y=y, color=paint)).properties(width=WIDTH - 80, height=ROW_PX * 1.4 * len(arms))


@drawn
def carried(found: pd.DataFrame, titles: dict[str, str]) -> alt.TopLevelMixin:
    """Change of held-out loss against the baseline of each setting: the hybrid's, and that of as many computed steps."""
    shown = found.assign(setting=found.sweep.map(titles).fillna(found.sweep)).dropna(subset="delta_pct")
    long = shown.melt(["setting", "seed"], ["delta_pct", "hold_delta_pct"], var_name="arm", value_name="change_pct")
    long["arm"] = long.arm.map(dict(delta_pct="hybrid", hold_delta_pct="hold"))
    order = list(dict.fromkeys(shown.setting))
    base = alt.Chart(small(long))
    x = alt.X("change_pct:Q", title="Δ held-out loss against the baseline (%)", scale=alt.Scale(padding=12))
    y = alt.Y("setting:N", title=None, sort=order, axis=alt.Axis(labelLimit=260))
    zero = alt.Chart(pd.DataFrame({"change_pct": [0.0]})).mark_rule(color="#888888").encode(x=x)
    dots = base.mark_point(size=60, strokeWidth=1.8).encode(
        x=x, y=y, color=colour("arm", PAIR), shape=SHAPE)
    return (zero + dots).properties(width=WIDTH - 190, height=ROW_PX * 1.4 * len(order))


@drawn
def by_size(gains: pd.DataFrame) -> alt.TopLevelMixin:
    """Change of held-out loss against the number of parameters, on a logarithmic axis; every seed a mark."""
    x = alt.X("parameters:Q", title="parameters", scale=alt.Scale(type="log", nice=False, padding=30), axis=alt.Axis(format="~s"))
    y = alt.Y("delta_pct:Q", title="Δ held-out loss against the baseline (%)", scale=alt.Scale(padding=12))
    zero = alt.Chart(pd.DataFrame({"delta_pct": [0.0]})).mark_rule(color="#888888").encode(y=y)
    dots = alt.Chart(small(gains[["parameters", "arm", "seed", "delta_pct"]])).mark_point(size=60, strokeWidth=1.8)
    return (zero + dots.encode(x=x, y=y, color=colour("arm", PAIR), shape=SHAPE)).properties(width=WIDTH, height=230)


@drawn
def ablations(trials: pd.DataFrame, frozen: float, baseline: float, worst_pct: float = 8.0) -> alt.TopLevelMixin:
    """Held-out loss with one setting changed, grouped by what it is; lines for the frozen settings and the baseline.

    A point more than `worst_pct` above the frozen settings is drawn there, as an open mark.
    """
    groups = list(dict.fromkeys(trials.sweep))
    x = alt.X("held_out_loss:Q", title="held-out loss (nats a token)", scale=alt.Scale(zero=False, padding=10))
    edge = frozen * (1 + worst_pct / 100)
    rows = trials.assign(row=trials.sweep + ": " + trials.trial, held_out_loss=trials.held_out_loss.clip(upper=edge))
    y = alt.Y("row:N", title=None, sort=list(rows.row), axis=alt.Axis(labelLimit=300))
    lines = pd.DataFrame({"held_out_loss": [frozen, baseline], "of": ["hybrid, frozen", "baseline"]})
    ink = alt.Color("of:N", scale=alt.Scale(domain=list(lines.of), range=[BLUE, BLACK]), legend=alt.Legend(title=None))
    rules = alt.Chart(small(lines, 5)).mark_rule(strokeWidth=1.5, strokeDash=[5, 3]).encode(x=x, color=ink)
    every = rows[["row", "held_out_loss"]]
    inside, beyond = every[trials.held_out_loss <= edge], every[trials.held_out_loss > edge]
    dots = alt.Chart(small(inside, 5)).mark_point(filled=True, size=60, color=ORANGE, opacity=1)
    outside = alt.Chart(small(beyond, 5)).mark_point(size=60, color=ORANGE, opacity=1)
    return (rules + dots.encode(x=x, y=y) + outside.encode(x=x, y=y)).properties(width=WIDTH - 210, height=ROW_PX * len(rows) + 4 * len(groups))


@drawn
def tradeoff(trials: pd.DataFrame, worst_pct: float = 30.0) -> alt.TopLevelMixin:
    """Change of loss against speedup, a line a predictor, a point a predicted share; shaded: what the brief asks.

    A point above `worst_pct` is drawn at the upper edge.
    """
    shown = trials.assign(shown_pct=trials.delta_pct.clip(upper=worst_pct), share=trials.trial)
    names = in_order(shown, "sweep")
    x = alt.X("speedup:Q", title="speedup (×)", scale=alt.Scale(zero=False, padding=14))
    y = alt.Y("shown_pct:Q", title="Δ held-out loss (%)", scale=alt.Scale(padding=10))
    edge = float(shown.speedup.max()) * 1.05
    box = pd.DataFrame([dict(speedup=BRIEF["speedup"], end=edge, shown_pct=BRIEF["delta_pct"], low=shown.shown_pct.min() - 1)])
    asked = alt.Chart(box).mark_rect(color=GREY, opacity=0.25).encode(x=x, x2="end:Q", y=y, y2="low:Q")
    base = alt.Chart(small(shown[["sweep", "share", "speedup", "shown_pct"]]))
    paint = colour("sweep", names)
    lines = base.mark_line(strokeWidth=1.5).encode(x=x, y=y, color=paint)
    dots = base.mark_point(filled=True, size=45, opacity=1).encode(
        x=x, y=y, color=paint, shape=alt.Shape("sweep:N", legend=None), tooltip=["sweep", "share", "speedup", "shown_pct"])
    return (asked + lines + dots).properties(width=WIDTH, height=300)
