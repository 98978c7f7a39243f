"""The report's sentences that state a result: computed from the records, never typed. All return Markdown."""

import math

import numpy as np
import pandas as pd

from hybridlib.analysis import stats
from hybridlib.analysis.effects import by_seed, effect
from hybridlib.analysis.load import BASELINE, Records, devices
from hybridlib.analysis.measured import FAIL, INCONCLUSIVE, PASS
from hybridlib.analysis.rules import Part
from hybridlib.analysis.wording import estimate, listed, number, with_unit


def tally(verdicts: pd.DataFrame) -> str:
    """How many criteria pass, fail and are inconclusive, by name."""
    named = {v: verdicts.criterion[verdicts.verdict == v].tolist() for v in (PASS, FAIL, INCONCLUSIVE)}
    said = [
        f"{len(names)} {what} ({listed(names)})" if names else f"none {what}"
        for what, names in zip(("pass", "fail", "are inconclusive"), named.values())
    ]
    return f"Of {len(verdicts)} criteria, {said[0]}, {said[1]} and {said[2]}."


def per_criterion(verdicts: pd.DataFrame) -> str:
    """One bullet a criterion: the verdict, its grade and why."""
    graded = [f", {v.grade}" if v.grade in ("exceeds", "acceptable") else "" for v in verdicts.itertuples()]
    return "\n".join(
        f"- **{v.criterion}: {v.verdict}{g}.** {v.about}. {v.why}" for v, g in zip(verdicts.itertuples(), graded)
    )


def answer(records: Records, verdicts: pd.DataFrame, main: Part) -> str:
    """The study's question, answered by the rules: yes needs C2 and C3 exceeded and H1 passed."""
    runs, by_name = records.runs, verdicts.set_index("criterion")
    three = by_name.loc[["C2", "C3", "H1"]]
    failed = three.index[three.verdict == FAIL].tolist()
    if failed:
        said = f"By the rules fixed beforehand the answer is **no**: {listed(failed)} did not pass."
    elif (three.verdict == PASS).all():
        full = (by_name.grade[["C2", "C3"]] == "exceeds").all()
        said = (
            "The answer is **yes**: at least 2× faster, less than 1 % of the loss, the target in half the time."
            if full
            else "The answer is **yes by the brief's thresholds**, but not to the full claim of 2× and 1 %."
        )
    else:
        said = f"The answer is **open**: {listed(three.index[three.verdict == INCONCLUSIVE])} could not be decided."
    figures = {m: effect(runs, m, main.arm, main.data) for m in ("speedup", "delta_loss_pct", "time_to_target")}
    if not figures["speedup"].n:
        return f"{said} No pair of runs of {main.arm} and {BASELINE} on {main.data} is complete."
    target = figures["time_to_target"]
    reached = "that most seeds never reached" if target.value == 0 else f"shorter by a factor of {estimate(target, '')}"
    return (
        f"On `{main.data}`, over {figures['speedup'].n} seeds, `{main.arm}` had "
        f"{estimate(figures['speedup'], '×')} the nominal throughput of `{BASELINE}`, a held-out loss changed by "
        f"{estimate(figures['delta_loss_pct'], '%')}, and a time to the baseline's final held-out loss "
        f"{reached if target.n else 'that was not measured'}. {said}"
    )


def recovered(records: Records, main: Part, control: str = "hold") -> str:
    """What skipping alone cost, and which part of it the prediction won back."""
    cost = by_seed(records.runs, "delta_loss_nats", control, main.data)
    left = by_seed(records.runs, "delta_loss_nats", main.arm, main.data)
    both = pd.concat([cost.rename("cost"), left.rename("left")], axis=1).dropna()
    if both.empty or not (both.cost > 0).all():
        return f"What skipping alone costs is not known: `{control}` on `{main.data}` has no runs, or lost nothing."
    share = stats.mean_effect(100.0 * (1.0 - both.left / both.cost))
    return (
        f"Skipping alone (`{control}`) cost {estimate(stats.mean_effect(both.cost), 'nats')} of held-out loss; the "
        f"prediction won back {estimate(share, '%')} of that, over {len(both)} seeds."
    )


def speed_bound(records: Records, main: Part) -> str:
    """The speedup that the schedule and the cost of a predicted step allow: S = 1 / (1 − p (1 − c))."""
    runs = records.runs[(records.runs.arm == main.arm) & (records.runs.data == main.data)]
    measured = effect(records.runs, "speedup", main.arm, main.data)
    if runs.empty or not measured.n:
        return f"`{main.arm}` was not run on `{main.data}`, so the bound on its speedup has no measured cost."
    p = runs.phase_share_predict.mean()
    c = (runs.predict_s / (runs.phase_share_predict * runs.nominal_steps) / runs.real_step_median_s).mean()
    return (
        f"With {number(100 * p)} % of the steps predicted and a predicted step costing {number(100 * c)} % of a real "
        f"one, the speedup is bounded by S = 1 / (1 − p (1 − c)) = {number(1 / (1 - p * (1 - c)))}×; "
        f"{estimate(measured, '×')} was measured."
    )


def steadiness(records: Records, main: Part, tolerated: float = 1.2) -> str:
    """Which runs did not keep one pace, and what the main arm's speed is without that."""
    runs = records.runs[records.runs.data == main.data]
    measured, steady = (effect(records.runs, metric, main.arm, main.data) for metric in ("speedup", "steady_speedup"))
    if not steady.n:
        return f"`{main.arm}` was not run on `{main.data}`, so there is no pace to judge."
    slow = runs[runs.slowdown > tolerated]
    if slow.empty:
        return f"Every run on `{main.data}` kept its pace: no slowest tenth of real steps took {number(tolerated)} times the fastest's time."
    named = [f"`{run.arm}` with seed {run.seed} ({with_unit(run.slowdown, '×')})" for run in slow.itertuples()]
    return (
        f"Not every run kept its pace: the slowest tenth of real steps took more than {number(tolerated)} times the fastest's "
        f"time in {listed(named)}. Had every run kept the pace of its fastest tenth, `{main.arm}` would have had "
        f"{estimate(steady, '×')} the throughput of `{BASELINE}`, where {estimate(measured, '×')} was measured."
    )


def over_sources(records: Records, metric: str, arm: str, unit: str) -> str:
    """Interquartile mean of a metric over all data sources and seeds, with a bootstrap stratified by source."""
    columns = [by_seed(records.runs, metric, arm, data) for data in records.study.sources]
    table = (
        pd.concat([c for c in columns if len(c)], axis=1).dropna().to_numpy()
        if any(map(len, columns))
        else np.empty((0, 0))
    )
    if table.shape[0] < 2:
        return (
            f"No interquartile mean over the data sources: fewer than two seeds of `{arm}` are complete on all of them."
        )
    low, high = stats.stratified_bootstrap(table, stats.interquartile_mean, np.random.default_rng(0))
    found = stats.Effect(stats.interquartile_mean(table), low, high, math.nan, table.shape[0])
    return (
        f"Over {table.shape[1]} data sources and {table.shape[0]} seeds the interquartile mean for `{arm}` is "
        f"{estimate(found, unit)} (bootstrap stratified by source)."
    )


def missing(records: Records) -> str:
    """Which planned runs the records lack, and which complete runs were left out."""
    count = len(records.missing)
    if not count:
        said = "No planned run is missing."
    else:
        groups = [
            f"{why}: {len(part)} ({listed(sorted(set(part.arm + ' on ' + part.data)))})"
            for why, part in records.missing.groupby("why")
        ]
        said = f"{count} planned runs are missing. " + "; ".join(groups) + "."
    if records.left_out:
        said += f" Left out, because they do not belong to the study as it stands: {listed(records.left_out)}."
    return said


def provenance(records: Records) -> str:
    """Device, code and model of the records."""
    runs = records.runs
    if runs.empty:
        return "There are no records."
    commits = listed(sorted({c[:12] or "no repository" for c in runs.commit}))
    dirty = int(runs.dirty.astype(bool).sum())
    return (
        f"{len(runs)} runs, made between {runs.started_at.min()[:16]} and {runs.ended_at.max()[:16]} UTC on "
        f"{devices(runs)}; {number(runs.model_parameters.iloc[0] / 1e6)} million parameters; "
        f"NUMERICS {listed(map(str, sorted(runs.numerics.unique())))}, code of commit {commits}"
        + (f", {dirty} of the runs with uncommitted changes." if dirty else ".")
    )


def environment(records: Records) -> str:
    """Packages and corpora of the records, the latter by their hash."""
    runs = records.runs
    corpora = runs[["data", "corpus_sha256"]].drop_duplicates().dropna().astype(str)
    named = listed(corpora.data + " " + corpora.corpus_sha256.str[:12])
    return f"Packages: {'; '.join(sorted(set(runs.versions))) or 'none recorded'}. Corpora: {named}."


def limitations(records: Records, sources: pd.DataFrame, power: pd.DataFrame) -> str:
    """Bullets: what these records cannot show, and why."""
    runs, study = records.runs, records.study
    weak = sources[sources.power != "yes"]
    thin = power[pd.to_numeric(power.power, errors="coerce") < 0.8]
    said = [
        f"{len(study.seeds)} seeds: an effect counts only if every seed shows it alike. "
        + (
            "Below a power of 0.8 at the measured spread: " + listed(thin.criterion + " " + thin.metric) + "."
            if len(thin)
            else "Every test made had a power of at least 0.8 at the measured spread."
        ),
        f"One model size ({study.model.n_layer} layers, {study.model.n_embd} wide), {study.steps} steps, "
        f"{study.batch_size} × {study.seq_len} tokens a step, one kind of device. Nothing here says what larger models "
        "or longer training would do.",
    ]
    if len(weak):
        said.append(
            "Data sources that cannot tell a good prediction from none, or were not asked: "
            + listed(weak.data + " (" + weak.power + ")")
            + "."
        )
    if not (runs.role == "peer").any():
        said.append(
            "No peer (a tuned optimizer at the same wall-clock) was run: a speedup against a constant learning "
            "rate may shrink against a tuned, decayed one."
        )
    if len(records.missing):
        said.append(missing(records))
    return "\n".join(f"- {s}" for s in said)


def health(gradients: pd.DataFrame) -> str:
    """The largest share of exploding and vanishing gradients, and whose it is; frame of `series.gradient_health`."""
    if gradients.empty:
        return "No gradient norms are recorded."
    worst = gradients.loc[gradients.explosion_pct.fillna(-1).idxmax()]
    faint = gradients.vanishing_pct.max()
    return (
        f"At most {with_unit(worst.explosion_pct, '%')} of an arm's real steps had a gradient norm above 10 × the "
        f"baseline's median (`{worst.arm}` on `{worst['data']}`), and at most {with_unit(faint, '%')} one below 0.01 ×."
    )
