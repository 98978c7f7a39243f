"""What an arm did to a figure, against the same data's baseline: one value a seed, an estimate with interval, its picture."""

from collections.abc import Iterable
from dataclasses import dataclass

import altair as alt
import pandas as pd

from hybridlib.analysis import statistics
from hybridlib.analysis.load import BASELINE, BATCH, SAME
from hybridlib.analysis.theme import BLACK, WIDTH, colour, drawn, in_order, panels, small


@dataclass(frozen=True)
class Metric:
    """How a column of `runs` becomes an effect; `form` is ratio (×), change (%), share (%), difference or rate."""

    label: str
    unit: str
    form: str
    column: str
    against: str  # the baseline's column
    axis: str = ""  # its title in a figure
    inverse: bool = False  # a time: less is faster, so the baseline's is divided by the arm's
    same: tuple[str, ...] = tuple(SAME)  # what must be equal for two runs to be compared


ROW_PX = 24
PLAIN = {"ratio": 1.0, "share": 100.0}  # a form's value where nothing has changed; 0 of any other
TARGET = dict(inverse=True, same=tuple(BATCH))
METRICS = {
    "speedup": Metric("throughput", "×", "ratio", *2 * ["nominal_tokens_per_s"], "throughput ÷ baseline's (×)"),
    "steady_speedup": Metric("throughput at a steady pace", "×", "ratio", *2 * ["steady_tokens_per_s"]),
    "time_to_target": Metric(
        "time to target", "×", "ratio", *2 * ["time_to_target_s"], "baseline's time to target ÷ arm's (×)", **TARGET
    ),
    "steady_time_to_target": Metric(
        "time to target at a steady pace", "×", "ratio", *2 * ["steady_time_to_target_s"], **TARGET
    ),
    "delta_loss_pct": Metric("Δloss", "%", "change", "held_out_loss", "held_out_loss", "Δloss (%)"),
    "delta_perplexity_pct": Metric("Δperplexity", "%", "change", "perplexity", "perplexity", "Δperplexity (%)"),
    "delta_train_loss_pct": Metric("Δtraining loss, last 100 steps", "%", "change", *2 * ["train_loss_last_100"]),
    "delta_loss_nats": Metric("Δloss", "nats", "difference", "held_out_loss", "held_out_loss"),
    "peak_memory_pct": Metric("peak memory", "%", "share", "peak_mb_run", "peak_mb_run", "peak memory (%)"),
    "predict_memory_pct": Metric(
        "memory in Predict", "%", "share", "peak_mb_predict", "peak_mb_run", "memory in Predict (%)"
    ),
    "divergences_per_1000": Metric("divergences per 1000 steps", "", "rate", "divergences", "nominal_steps"),
}


def by_seed(runs: pd.DataFrame, metric: str, arm: str, data: str, against: str = BASELINE) -> pd.Series:
    """Return the metric's value a seed, (n_seeds,), for the seeds that both arms have in the same shape.

    A ratio with a time that was never reached is 0. A rate needs no second arm. Raise KeyError for an unknown metric.
    """
    m = METRICS[metric]
    ours, theirs = (
        runs[(runs.arm == name) & (runs.data == data)].set_index(["seed", *m.same]).sort_index()
        for name in (arm, against)
    )
    if m.form == "rate":
        return (1000.0 * ours[m.column] / ours[m.against]).droplevel(m.same)
    pairs = pd.concat([ours[m.column].rename("ours"), theirs[m.against].rename("theirs")], axis=1, join="inner")
    x, reference = (pairs.dropna().droplevel(m.same)[side].astype(float) for side in ("ours", "theirs"))
    if m.form == "ratio":
        return reference / x if m.inverse else x / reference
    if m.form == "difference":
        return x - reference
    return 100.0 * (x / reference - (m.form == "change"))


def effect(
    runs: pd.DataFrame, metric: str, arm: str, data: str, alpha: float = statistics.ALPHA, against: str = BASELINE
) -> statistics.Effect:
    """Return the metric over the seeds, with its interval."""
    values = by_seed(runs, metric, arm, data, against)
    form = METRICS[metric].form
    if values.empty:
        return statistics.NOTHING
    if form == "ratio":
        return statistics.ratio_effect(values, alpha)
    if form == "rate":
        mine = runs[(runs.arm == arm) & (runs.data == data)]
        return statistics.rate_effect(mine.divergences, mine.nominal_steps / 1000.0, alpha)
    found = statistics.mean_effect(values, alpha)
    return found._replace(p=float("nan")) if form == "share" else found  # "against 0" says nothing of a share


def effects(runs: pd.DataFrame, metrics: Iterable[str], arms: Iterable[str] | None = None) -> pd.DataFrame:
    """Return one row an arm, data source and metric: arm, data, metric, label, unit, value, low, high, p, n."""
    arms = list(dict.fromkeys(runs.arm[runs.arm != BASELINE])) if arms is None else list(arms)
    rows = []
    for data in dict.fromkeys(runs.data):
        for arm in arms:
            for metric in metrics:
                found = effect(runs, metric, arm, data)
                if found.n:
                    m = METRICS[metric]
                    names = dict(arm=arm, data=data, metric=metric, label=m.label, unit=m.unit)
                    rows.append(names | found._asdict())
    return pd.DataFrame(rows, columns=["arm", "data", "metric", "label", "unit", *statistics.Effect._fields])


def seed_values(runs: pd.DataFrame, metrics: Iterable[str], arms: Iterable[str] | None = None) -> pd.DataFrame:
    """Return one row a seed beneath `effects`: arm, data, metric, label, seed, value."""
    table = effects(runs, metrics, arms)
    parts = [
        by_seed(runs, row.metric, row.arm, row.data)
        .rename("value")
        .rename_axis("seed")
        .reset_index()
        .assign(arm=row.arm, data=row.data, metric=row.metric, label=row.label)
        for row in table.itertuples()
    ]
    columns = ["arm", "data", "metric", "label", "seed", "value"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


@drawn
def effect_panels(effects: pd.DataFrame, seeds: pd.DataFrame, order: list[str] | None = None) -> alt.TopLevelMixin:
    """Draw estimates (frame of `effects`) with intervals, seeds (of `seed_values`) as open dots; one panel a metric and data
    source, one row an arm. An arm that never reached its target is written, not drawn."""
    arms = order or in_order(effects, "arm")
    metrics, sources = (list(dict.fromkeys(effects[column])) for column in ("metric", "data"))
    width, charts = (WIDTH - 75) // len(metrics) - 12, []
    for data in sources:
        there = effects[effects.data == data]
        rows = [arm for arm in arms if arm in set(there.arm)]
        for metric in metrics:
            dots = seeds[(seeds.data == data) & (seeds.metric == metric)]
            first = metric == metrics[0]
            panel = _panel(there[there.metric == metric], dots, rows, metric, arms, alt.Axis(labels=first))
            title = {"title": data} if len(sources) > 1 and first else {}
            charts.append(panel.properties(width=width, height=ROW_PX * len(rows), **title))
    return panels(charts, len(metrics))


def _panel(
    effects: pd.DataFrame, dots: pd.DataFrame, rows: list[str], metric: str, arms: list[str], axis: alt.Axis
) -> alt.LayerChart:
    m, paint = METRICS[metric], colour("arm", arms, legend=False)
    ratio, plain = m.form == "ratio", PLAIN.get(m.form, 0.0)
    scale = alt.Scale(type="log", nice=False, padding=12) if ratio else alt.Scale(zero=False, padding=12)
    x = alt.X("value:Q", title=m.axis, scale=scale, axis=alt.Axis(tickCount=5))
    y = alt.Y("arm:N", title=None, sort=rows, scale=alt.Scale(domain=rows), axis=axis)
    reached = small(effects[effects.value > 0] if ratio else effects)
    each = alt.Chart(small(dots[dots.value > 0] if ratio else dots)).mark_point(size=26, strokeWidth=1)
    low = alt.X("low:Q", title=m.axis, scale=scale)
    intervals = alt.Chart(reached.dropna(subset="low")).mark_rule(strokeWidth=3, opacity=0.5)
    points = alt.Chart(reached).mark_point(filled=True, size=70, opacity=1, stroke=BLACK, strokeWidth=0.5)
    layers = [alt.Chart(pd.DataFrame({"value": [plain]})).mark_rule(color="#888888").encode(x=x)]
    layers += [intervals.encode(x=low, x2="high:Q", y=y, color=paint)]
    layers += [part.encode(x=x, y=y, color=paint) for part in (each, points)]
    if ratio and len(missed := effects[effects.value == 0]):
        words = alt.Chart(missed.assign(value=plain, said="target not reached")[["arm", "value", "said"]])
        layers.append(words.mark_text(align="left", dx=6, fontSize=11).encode(x=x, y=y, text="said:N"))
    return alt.layer(*layers)
