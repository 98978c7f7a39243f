"""Measured criteria: each threshold judged on its own, and a criterion by the worst of its parts."""

import math
from typing import Any

import pandas as pd

from hybridlib.analysis import rules as r
from hybridlib.analysis import stats
from hybridlib.analysis.effects import METRICS, by_seed, effect
from hybridlib.analysis.load import Records, planned
from hybridlib.analysis.wording import estimate, p_is

PASS, FAIL, INCONCLUSIVE = "PASS", "FAIL", "INCONCLUSIVE"
PART_COLUMNS = ["criterion", "arm", "data", "metric", "label", "unit", *stats.Effect._fields, "threshold"]
PART_COLUMNS += ["acceptable", "stronger", "demand", "verdict", "grade", "why"]


def measured_parts(records: Records, rules: r.Rules) -> pd.DataFrame:
    """One row a measured part of a criterion, PART_COLUMNS; p is a ratio's against 1, a change's non-inferiority."""
    rows = [
        judged(part, records, rules.alpha) | {"criterion": name}
        for name, rule in rules.criteria.items()
        if isinstance(rule, r.Measured)
        for part in rule.parts
    ]
    return pd.DataFrame(rows, columns=PART_COLUMNS)


def judged(part: r.Part, records: Records, alpha: float) -> dict[str, Any]:
    """The verdict on one threshold, its estimate and a sentence that says why."""
    metric, runs = METRICS[part.metric], records.runs
    values = by_seed(runs, part.metric, part.arm, part.data)
    found = effect(runs, part.metric, part.arm, part.data, alpha)
    p = {"ratio": lambda: found.p, "change": lambda: stats.non_inferiority_p(values, part.threshold)}.get(metric.form)
    wanted = {run.seed for _, run, _ in planned(records.study) if (run.arm, run.data) == (part.arm, part.data)}
    row = dict(arm=part.arm, data=part.data, metric=part.metric, label=metric.label, unit=metric.unit)
    row |= found._asdict() | dict(p=p() if p else math.nan, threshold=part.threshold, demand=part.text, grade="")
    row |= {k: math.nan if v is None else v for k, v in (("acceptable", part.acceptable), ("stronger", part.exceeds))}
    what = f"{metric.label[0].upper()}{metric.label[1:]} of {part.arm} on {part.data}"
    if lacking := sorted(wanted - set(values.index)):
        why = f"no complete pair with the baseline for seed {', '.join(map(str, lacking))}"
        return row | dict(p=math.nan, verdict=INCONCLUSIVE, why=f"{what}: {why}.")
    if found.n < 2:
        return row | dict(
            p=math.nan, verdict=INCONCLUSIVE, why=f"{what}: {'one seed' if found.n else 'no run'}, two are needed."
        )
    met = part.meets(found.value, part.threshold)
    shown = p is None or row["p"] < alpha
    why = f"{what} is {estimate(found, metric.unit)} over {found.n} seeds; {part.text} is asked for"
    if p:
        why += f", {p_is(row['p'])} " + ("against 1" if metric.form == "ratio" else "for non-inferiority")
    if metric.form == "ratio" and (missed := int((values == 0).sum())):
        why += f"; {missed} of {found.n} seeds never reached the target"
    return row | dict(
        verdict=FAIL if not met else PASS if shown else INCONCLUSIVE,
        why=f"{why}.",
        grade=_grade(part, records, values, found, alpha) if shown or not met else "",
    )


def _grade(part: r.Part, records: Records, values: pd.Series, found: stats.Effect, alpha: float) -> str:
    runs = records.runs[records.runs.data == part.data]
    peers = [effect(runs, part.metric, arm, part.data).value for arm in runs.arm[runs.role == "peer"].unique()]
    exceeds = part.meets(found.value, part.exceeds)
    if exceeds and METRICS[part.metric].form == "change":
        exceeds = stats.non_inferiority_p(values, part.exceeds) < alpha
    if part.meets(found.value, part.threshold):
        beaten = part.exceeds_peers and bool(peers) and all(part.meets(found.value, peer) for peer in peers)
        return "exceeds" if exceeds or beaten else "met"
    return "acceptable" if part.meets(found.value, part.acceptable) else "missed"


def of_parts(parts: pd.DataFrame) -> dict[str, Any]:
    """A criterion from its parts: the worst verdict, shown by the part that decides it; p is the largest of theirs."""
    order = {FAIL: 0, INCONCLUSIVE: 1, PASS: 2}
    ranked = parts.assign(rank=parts.verdict.map(order)).sort_values(["rank", "p"], ascending=[True, False])
    first = ranked.iloc[0]
    strong = parts.grade == "exceeds"
    exceeds = strong.any() and strong[parts.stronger.notna()].all() and (parts.verdict == PASS).all()
    grade = "exceeds" if exceeds else first.grade.replace("exceeds", "met")
    unit = f"{first.unit} {first.label}".strip() if len(parts) > 1 else first.unit
    tested = parts.metric.map(lambda metric: METRICS[metric].form in ("ratio", "change"))
    return dict(
        verdict=first.verdict,
        grade=grade,
        value=first.value,
        low=first.low,
        high=first.high,
        unit=unit,
        p=float(parts.p[tested].max(skipna=False)),
        p_holm=math.nan,
        why=" ".join(ranked.why),
    )


def sources_with_power(records: Records, rule: r.Measured, control: str = "hold") -> pd.DataFrame:
    """Whether each data source can tell: `power` is yes if the control misses the criterion there, no if it passes,
    and not shown where it was not run or does neither. Columns: data, control, power, why."""
    rows = []
    for data in records.study.sources:
        parts = [
            judged(part.model_copy(update={"arm": control, "data": data}), records, stats.ALPHA) for part in rule.parts
        ]
        verdict = of_parts(pd.DataFrame(parts, columns=PART_COLUMNS))["verdict"]
        power = {PASS: "no", FAIL: "yes"}.get(verdict, "not shown")
        rows.append(dict(data=data, control=control, power=power, why=" ".join(p["why"] for p in parts)))
    return pd.DataFrame(rows)
