"""What an arm did to a figure, against the same data's baseline: one value a seed, then an estimate with interval."""

from dataclasses import dataclass
from typing import Iterable

import pandas as pd

from hybridlib.analysis import stats
from hybridlib.analysis.load import BASELINE, BATCH, SAME


@dataclass(frozen=True)
class Metric:
    """How a column of `runs` becomes an effect; `form` is ratio (×), change (%), share (%), difference or rate."""

    label: str
    unit: str
    form: str
    column: str
    against: str  # the baseline's column
    inverse: bool = False  # a time: less is faster, so the baseline's is divided by the arm's
    same: tuple[str, ...] = tuple(SAME)  # what must be equal for two runs to be compared


METRICS = {
    "speedup": Metric("throughput", "×", "ratio", "nominal_tokens_per_s", "nominal_tokens_per_s"),
    "steady_speedup": Metric("throughput at a steady pace", "×", "ratio", "steady_tokens_per_s", "steady_tokens_per_s"),
    "time_to_target": Metric(
        "time to target", "×", "ratio", "time_to_target_s", "time_to_target_s", inverse=True, same=tuple(BATCH)
    ),
    "steady_time_to_target": Metric(
        "time to target at a steady pace", "×", "ratio", *2 * ["steady_time_to_target_s"], inverse=True, same=tuple(BATCH)
    ),
    "delta_loss_pct": Metric("Δloss", "%", "change", "held_out_loss", "held_out_loss"),
    "delta_perplexity_pct": Metric("Δperplexity", "%", "change", "perplexity", "perplexity"),
    "delta_train_loss_pct": Metric(
        "Δtraining loss, last 100 steps", "%", "change", "train_loss_last_100", "train_loss_last_100"
    ),
    "delta_loss_nats": Metric("Δloss", "nats", "difference", "held_out_loss", "held_out_loss"),
    "peak_memory_pct": Metric("peak memory", "%", "share", "peak_mb_run", "peak_mb_run"),
    "predict_memory_pct": Metric("memory in Predict", "%", "share", "peak_mb_predict", "peak_mb_run"),
    "divergences_per_1000": Metric("divergences per 1000 steps", "", "rate", "divergences", "nominal_steps"),
}


def by_seed(runs: pd.DataFrame, metric: str, arm: str, data: str, against: str = BASELINE) -> pd.Series:
    """The metric's value a seed, (n_seeds,), for the seeds that both arms have in the same shape.

    A ratio with a time that was never reached is 0. A rate needs no second arm. Raises KeyError for an unknown metric.
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
    runs: pd.DataFrame, metric: str, arm: str, data: str, alpha: float = stats.ALPHA, against: str = BASELINE
) -> stats.Effect:
    """The metric over the seeds, with its interval."""
    values = by_seed(runs, metric, arm, data, against)
    form = METRICS[metric].form
    if values.empty:
        return stats.NOTHING
    if form == "ratio":
        return stats.ratio_effect(values, alpha)
    if form == "rate":
        mine = runs[(runs.arm == arm) & (runs.data == data)]
        return stats.rate_effect(mine.divergences, mine.nominal_steps / 1000.0, alpha)
    found = stats.mean_effect(values, alpha)
    return found._replace(p=float("nan")) if form == "share" else found  # "against 0" says nothing of a share


def effects(runs: pd.DataFrame, metrics: Iterable[str], arms: Iterable[str] | None = None) -> pd.DataFrame:
    """One row an arm, data source and metric: arm, data, metric, label, unit, value, low, high, p, n."""
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
    return pd.DataFrame(rows, columns=["arm", "data", "metric", "label", "unit", *stats.Effect._fields])


def seed_values(runs: pd.DataFrame, metrics: Iterable[str], arms: Iterable[str] | None = None) -> pd.DataFrame:
    """One row a seed beneath `effects`: arm, data, metric, label, seed, value."""
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
