"""Figures of effects: estimates with 95% intervals and every seed, against thresholds."""

from operator import attrgetter

import altair as alt
import numpy as np
import pandas as pd

from hybridlib.analysis.effects import METRICS
from hybridlib.analysis.theme import BLACK, WIDTH, colour, drawn, in_order, panels, small

AXES = {
    "speedup": "throughput ÷ baseline's (×)",
    "time_to_target": "baseline's time to target ÷ arm's (×)",
    "delta_loss_pct": "Δloss (%)",
    "delta_perplexity_pct": "Δperplexity (%)",
    "peak_memory_pct": "peak memory (%)",
    "predict_memory_pct": "memory in Predict (%)",
}
ROW_PX = 24


@drawn
def effect_panels(effects: pd.DataFrame, seeds: pd.DataFrame, order: list[str] | None = None) -> alt.TopLevelMixin:
    """Estimates (frame of `effects.effects`) with intervals, seeds (of `effects.seed_values`) as open dots; one panel
    a metric and data source, one row an arm. An arm that never reached its target is written, not drawn."""
    arms = order or in_order(effects, "arm")
    metrics = list(dict.fromkeys(effects.metric))
    sources = list(dict.fromkeys(effects.data))
    charts = []
    for data in sources:
        for metric in metrics:
            mine = effects[(effects.data == data) & (effects.metric == metric)]
            dots = seeds[(seeds.data == data) & (seeds.metric == metric)]
            rows = [arm for arm in arms if arm in set(effects[effects.data == data].arm)]
            axis = alt.Axis(labels=metric == metrics[0])
            panel = _panel(mine, dots, rows, metric, arms, axis)
            width = (WIDTH - 75) // len(metrics) - 12
            title = {"title": data} if len(sources) > 1 and metric == metrics[0] else {}
            charts.append(panel.properties(width=width, height=ROW_PX * len(rows), **title))
    return panels(charts, len(metrics))


def _panel(
    effects: pd.DataFrame, dots: pd.DataFrame, rows: list[str], metric: str, arms: list[str], axis: alt.Axis
) -> alt.LayerChart:
    ratio = METRICS[metric].form == "ratio"
    scale = alt.Scale(type="log", nice=False, padding=12) if ratio else alt.Scale(zero=False, padding=12)
    x = alt.X("value:Q", title=AXES[metric], scale=scale, axis=alt.Axis(tickCount=5))
    y = alt.Y("arm:N", title=None, sort=rows, scale=alt.Scale(domain=rows), axis=axis)
    drawn = effects[effects.value > 0] if ratio else effects
    paint = colour("arm", arms, legend=False)
    neutral = {"ratio": 1.0, "share": 100.0}.get(METRICS[metric].form, 0.0)
    rule = alt.Chart(pd.DataFrame({"value": [neutral]})).mark_rule(color="#888888").encode(x=x)
    intervals = (
        alt.Chart(small(drawn.dropna(subset="low")))
        .mark_rule(strokeWidth=3, opacity=0.5)
        .encode(x=alt.X("low:Q", title=AXES[metric], scale=scale), x2="high:Q", y=y, color=paint)
    )
    points = (
        alt.Chart(small(drawn))
        .mark_point(filled=True, size=70, opacity=1, stroke=BLACK, strokeWidth=0.5)
        .encode(x=x, y=y, color=paint)
    )
    each = (
        alt.Chart(small(dots[dots.value > 0] if ratio else dots))
        .mark_point(size=26, strokeWidth=1)
        .encode(x=x, y=y, color=paint)
    )
    layers = [rule, intervals, each, points]
    if ratio and len(missed := effects[effects.value == 0]):
        layers.append(
            alt.Chart(missed.assign(value=neutral, said="target not reached")[["arm", "value", "said"]])
            .mark_text(align="left", dx=6, fontSize=11)
            .encode(x=x, y=y, text="said:N")
        )
    return alt.layer(*layers)


def verdict_overview(parts: pd.DataFrame) -> alt.TopLevelMixin:
    """Forest plot of the measured criteria (frame of `criteria.measured_parts`): estimate and interval, coloured and
    shaped by verdict, against the threshold as a tick; ratios, changes and shares of memory each on their own axis."""
    unreached = (parts.metric == "time_to_target") & (parts.value == 0)
    return _forest(parts[parts.value.notna() & ~unreached])


@drawn
def _forest(parts: pd.DataFrame) -> alt.TopLevelMixin:
    shown = parts.assign(row=parts.criterion + "  " + parts.arm + ", " + parts.label)
    titles = {
        "ratio": "ratio to the baseline (×)",
        "change": "change against the baseline (%)",
        "share": "memory, % of the baseline's peak",
    }
    verdicts = ["PASS", "FAIL", "INCONCLUSIVE"]
    charts = []
    for form, title in titles.items():
        mine = shown[shown.metric.map(METRICS).map(attrgetter("form")) == form]
        if mine.empty:
            continue
        scale = alt.Scale(type="log", nice=False, padding=12) if form == "ratio" else alt.Scale(zero=False, padding=12)
        base = alt.Chart(small(mine[["row", "value", "low", "high", "threshold", "verdict"]].replace(np.nan, None)))
        y = alt.Y("row:N", title=None, sort=list(mine.row), axis=alt.Axis(labelLimit=260))
        paint = colour("verdict", verdicts)
        layers = [
            base.mark_tick(color=BLACK, thickness=2.5, size=18).encode(
                x=alt.X("threshold:Q", title=title, scale=scale, axis=alt.Axis(tickCount=6)), y=y
            ),
            base.mark_rule(strokeWidth=3, opacity=0.5).encode(
                x=alt.X("low:Q", title=title), x2="high:Q", y=y, color=paint
            ),
            base.mark_point(filled=True, size=75, opacity=1).encode(
                x=alt.X("value:Q", title=title),
                y=y,
                color=paint,
                shape=alt.Shape("verdict:N", scale=alt.Scale(domain=verdicts, range=["circle", "cross", "diamond"])),
            ),
        ]
        charts.append(alt.layer(*layers).properties(width=WIDTH - 180, height=ROW_PX * mine.row.nunique()))
    return alt.vconcat(*charts).resolve_scale(color="shared", shape="shared")
