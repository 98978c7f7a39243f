"""What an arm did to a figure, against the same data's baseline: a value a seed, an estimate, and their picture."""

from collections.abc import Iterable
from dataclasses import dataclass

import altair as alt
import pandas as pd

from hybridlib.analysis import statistics
from hybridlib.analysis.load import BASELINE, BATCH, SHAPE
from hybridlib.analysis.theme import BLACK, WIDTH, colour, drawn, in_order, panels, small
from hybridlib.analysis.wording import estimate

ROW_PX = 24
PLAIN = {"ratio": 1.0, "share": 100.0}  # a form's value where nothing has changed; 0 of any other
TESTED = ("ratio", "change")  # forms whose verdict needs a p
FAR = 4.0  # times as far from 0 as any other arm's: such a change is written instead of drawn


@dataclass(frozen=True)
class Metric:
    """How a `column` of the runs becomes an effect `against` a column of the baseline's.

    `form` is ratio (×), change (%), share (%), difference or rate. `label` and `unit` name the metric in tables,
    `axis` in figures. A time is `inverse`: less is faster, so the baseline's is divided by the arm's. Two runs are
    compared where the columns `same` are equal.
    """

    label: str
    unit: str
    form: str
    column: str
    against: str
    axis: str = ""
    inverse: bool = False
    same: tuple[str, ...] = tuple(SHAPE)


def _target(label: str, column: str, axis: str = "") -> Metric:
    return Metric(label, "×", "ratio", column, column, axis, inverse=True, same=tuple(BATCH))


def _change(label: str, column: str, axis: str = "") -> Metric:
    return Metric(label, "%", "change", column, column, axis)


METRICS = {
    "speedup": Metric("throughput", "×", "ratio", *2 * ["nominal_tokens_per_s"], "throughput ÷ baseline's (×)"),
    "steady_speedup": Metric("throughput at a steady pace", "×", "ratio", *2 * ["steady_tokens_per_s"]),
    "time_to_target": _target("time to target", "time_to_target_s", "baseline's time to target ÷ arm's (×)"),
    "steady_time_to_target": _target("time to target at a steady pace", "steady_time_to_target_s"),
    "delta_loss_pct": _change("Δloss", "held_out_loss", "Δloss (%)"),
    "delta_perplexity_pct": _change("Δperplexity", "perplexity", "Δperplexity (%)"),
    "delta_train_loss_pct": _change("Δtraining loss, last 100 steps", "train_loss_last_100"),
    "delta_loss_nats": Metric("Δloss", "nats", "difference", *2 * ["held_out_loss"]),
    "peak_memory_pct": Metric("peak memory", "%", "share", *2 * ["peak_mb_run"], "peak memory (%)"),
    "predict_memory_pct": Metric(
        "memory in Predict", "%", "share", "peak_mb_predict", "peak_mb_run", "memory in Predict (%)"
    ),
    "divergences_per_1000": Metric("divergences per 1000 nominal steps", "", "rate", "divergences", "nominal_steps"),
}


def by_seed(runs: pd.DataFrame, metric: str, arm: str, data: str, against: str = BASELINE) -> pd.Series:
    """Return the `metric` of `arm` on `data`, a value a seed, (n_seeds,), from the seeds that both arms have.

    `runs` has a row a run; the other arm is `against`. A ratio with a time that was never reached is 0. A rate needs
    no other arm.
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
    """Return the estimate of `by_seed(runs, metric, arm, data, against)` with its 1 − `alpha` interval."""
    values = by_seed(runs, metric, arm, data, against)
    form = METRICS[metric].form
    if values.empty:
        return statistics.NO_ESTIMATE
    if form == "ratio":
        return statistics.ratio_effect(values, alpha)
    if form == "rate":
        mine = runs[(runs.arm == arm) & (runs.data == data)]
        return statistics.rate_effect(mine.divergences, mine.nominal_steps / 1000.0, alpha)
    found = statistics.mean_effect(values, alpha)
    return found._replace(p=float("nan")) if form == "share" else found  # "against 0" says nothing of a share


def effect_table(runs: pd.DataFrame, metrics: Iterable[str], arms: Iterable[str] | None = None) -> pd.DataFrame:
    """Return one row for each of `arms`, data source and one of `metrics`: arm, data, metric, and an Effect's fields.

    Without `arms`, take all in `runs` but the baseline.
    """
    arms = [arm for arm in dict.fromkeys(runs.arm) if arm != BASELINE] if arms is None else arms
    keys = [(arm, data, metric) for data in dict.fromkeys(runs.data) for arm in arms for metric in metrics]
    rows = [(*key, *effect(runs, key[2], *key[:2])) for key in keys]
    table = pd.DataFrame(rows, columns=["arm", "data", "metric", *statistics.Effect._fields])
    return table[table.n > 0]


def seed_values(runs: pd.DataFrame, effects: pd.DataFrame) -> pd.DataFrame:
    """Return what is beneath `effects` (of `effect_table`), from the same `runs`: arm, data, metric, seed, value."""
    rows = [
        (row.arm, row.data, row.metric, seed, value)
        for row in effects.itertuples()
        for seed, value in by_seed(runs, row.metric, row.arm, row.data).items()
    ]
    return pd.DataFrame(rows, columns=["arm", "data", "metric", "seed", "value"])


def effects_figure(runs: pd.DataFrame, metrics: list[str], arms: list[str] | None = None) -> alt.TopLevelMixin:
    """Draw the estimates of `metrics` with intervals, and the seeds as open dots; one row for each of `arms`.

    There is one panel a metric and data source in `runs`. What cannot be drawn beside the others is written.
    """
    return _effects_drawn(effect_table(runs, metrics, arms), runs, arms)


@drawn
def _effects_drawn(effects: pd.DataFrame, runs: pd.DataFrame, order: list[str] | None) -> alt.TopLevelMixin:
    arms, seeds = order or in_order(effects, "arm"), seed_values(runs, effects)
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
    said = _written(effects, m)
    reached = small(effects.drop(said.index))
    each = small(dots[dots.value > 0] if ratio else dots[dots.arm.isin(reached.arm)])
    low = alt.X("low:Q", title=m.axis, scale=scale)
    intervals = reached.dropna(subset="low")  # a single seed has none
    layers = [alt.Chart(pd.DataFrame({"value": [plain]})).mark_rule(color="#888888").encode(x=x)]
    if len(intervals):
        rules = alt.Chart(intervals).mark_rule(strokeWidth=3, opacity=0.5)
        layers.append(rules.encode(x=low, x2="high:Q", y=y, color=paint))
    if len(reached):  # a layer without rows has no extent, of which a browser would complain
        seeds = alt.Chart(each).mark_point(size=26, strokeWidth=1)
        points = alt.Chart(reached).mark_point(filled=True, size=70, opacity=1, stroke=BLACK, strokeWidth=0.5)
        layers += [part.encode(x=x, y=y, color=paint) for part in (seeds, points)]
    if len(said):
        words = alt.Chart(effects.loc[said.index].assign(value=plain, said=said)[["arm", "value", "said"]])
        layers.append(words.mark_text(align="left", dx=6, fontSize=11).encode(x=x, y=y, text="said:N"))
    return alt.layer(*layers)


def _written(effects: pd.DataFrame, m: Metric) -> pd.Series:
    """Return what is written of those `effects` that are not drawn, at their index: of a target that was never reached,
    and of a change so far from 0 that the others could not be told apart."""
    if m.form == "ratio":
        return effects.value[effects.value == 0].map(lambda _: "target not reached")
    if m.form != "change" or len(effects) < 3:
        return pd.Series(dtype=object)
    away = effects.value.abs()
    far = effects[away > FAR * away.nlargest(2).iloc[-1]]
    found = [statistics.Effect(*row) for row in far[list(statistics.Effect._fields)].itertuples(index=False)]
    return pd.Series([f"{estimate(one, m.unit)}, not drawn" for one in found], far.index, dtype=object)
