"""Verdicts on what is measured: on one threshold, and on a criterion that is made of several."""

import math
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from hybridlib.analysis import rules as r
from hybridlib.analysis import statistics
from hybridlib.analysis.effects import METRICS, TESTED, Metric, by_seed, effect
from hybridlib.analysis.load import BASELINE, Records, planned_seeds
from hybridlib.analysis.wording import estimate, listed, p_is

PASS, FAIL, INCONCLUSIVE = "PASS", "FAIL", "INCONCLUSIVE"
WORST_FIRST = (FAIL, INCONCLUSIVE, PASS)
GRADES = {PASS: "met", FAIL: "missed"}


@dataclass(frozen=True)
class PartVerdict:
    """The `verdict` on one threshold of `part` on `data`, with its `grade` and a sentence `why`.

    The p of `found` is a ratio's against 1, or a change's for non-inferiority; NaN where no test is made. The grade is
    exceeds, met, acceptable (the brief's minimum) or missed; empty where nothing is shown.
    """

    part: r.Part
    data: str
    found: statistics.Effect
    verdict: str
    grade: str
    why: str

    @classmethod
    def judge(cls, part: r.Part, records: Records, alpha: float, data: str) -> "PartVerdict":
        """Return the verdict on `part` from the `records` on `data`, tested at level `alpha`."""
        metric, values = METRICS[part.metric], by_seed(records.runs, part.metric, part.arm, data)
        found = effect(records.runs, part.metric, part.arm, data, alpha)
        what = f"{metric.label[0].upper()}{metric.label[1:]} of {part.arm} on {data}"
        untested = found._replace(p=math.nan)
        if why := cls._too_little(part, records, data, values):
            return cls(part, data, untested, INCONCLUSIVE, "", f"{what}: {why}.")
        tests = {"ratio": lambda: found.p, "change": lambda: statistics.non_inferiority_p(values, part.threshold)}
        tested = untested._replace(p=tests.get(metric.form, lambda: math.nan)())
        met, shown = part.meets(found.value, part.threshold), metric.form not in TESTED or tested.p < alpha
        grade = _grade(part, records.runs, data, values, found.value, alpha) if shown or not met else ""
        verdict = FAIL if not met else PASS if shown else INCONCLUSIVE
        return cls(part, data, tested, verdict, grade, f"{what}: {_said(part, metric, tested, values)}.")

    @staticmethod
    def _too_little(part: r.Part, records: Records, data: str, values: pd.Series) -> str:
        """Say why the values do not suffice for a verdict; empty if they do."""
        wanted = planned_seeds(records.study, part.arm, data)
        if wanted and METRICS[part.metric].form != "rate" and not planned_seeds(records.study, BASELINE, data):
            return f"no {BASELINE} is planned on {data}, so there is nothing to compare it with"
        if lacking := sorted(wanted - set(values.index)):
            seeds = f"seed{'s' * (len(lacking) > 1)} {listed(lacking)}"
            metric = METRICS[part.metric]
            what = "time to target was measured" if metric.inverse else "complete pair with the baseline"
            return f"no {'complete run' if metric.form == 'rate' else what} for {seeds}"
        return {0: "no run, two are needed", 1: "one seed, two are needed"}.get(len(values), "")

    def row(self, criterion: str) -> dict[str, Any]:
        """Return it as a row of a table, a part of `criterion`."""
        part, metric = self.part, METRICS[self.part.metric]
        of = dict(criterion=criterion, arm=part.arm, data=self.data, metric=part.metric, label=metric.label)
        of |= dict(unit=metric.unit) | self.found._asdict() | dict(threshold=part.threshold)
        of |= dict(acceptable=part.acceptable, stronger=part.exceeds, demand=part.demand)
        return of | dict(verdict=self.verdict, grade=self.grade, why=self.why)


def _said(part: r.Part, metric: Metric, found: statistics.Effect, values: pd.Series) -> str:
    """Say what a part's estimate is, what is asked for, and with which p."""
    text = f"{estimate(found, metric.unit)} over {found.n} seeds; {part.demand} is asked for"
    if metric.form in TESTED:
        text += f", {p_is(found.p)} " + ("against 1" if metric.form == "ratio" else "for non-inferiority")
    if metric.form == "ratio" and (missed := int((values == 0).sum())):
        text += f"; {missed} of {found.n} seeds never reached the target"
    return text


def _beats(part: r.Part, runs: pd.DataFrame, data: str, peer: str, alpha: float) -> bool:
    """Return whether a part's arm is better than `peer`, over the seeds that both have."""
    found, even = effect(runs, part.metric, part.arm, data, alpha, peer), METRICS[part.metric].form == "ratio"
    return part.meets(found.value, float(even)) and found.p < alpha


def _grade(part: r.Part, runs: pd.DataFrame, data: str, values: pd.Series, value: float, alpha: float) -> str:
    on_data = runs[runs.data == data]
    peers = on_data.arm[on_data.role == "peer"].unique()
    exceeds = part.meets(value, part.exceeds)
    if exceeds and METRICS[part.metric].form == "change":
        exceeds = statistics.non_inferiority_p(values, part.exceeds) < alpha
    if part.meets(value, part.threshold):
        beaten = part.exceeds_peers and len(peers) > 0 and all(_beats(part, runs, data, peer, alpha) for peer in peers)
        return "exceeds" if exceeds or beaten else "met"
    return "acceptable" if part.meets(value, part.acceptable) else "missed"


@dataclass(frozen=True)
class CriterionVerdict:
    """The `verdict` on a criterion with its `grade`, its `value` from `low` to `high` in `unit`, and a sentence `why`.

    `p_holm` is `p` after Holm's correction over the family; NaN outside it.
    """

    verdict: str
    grade: str
    value: float
    low: float
    high: float
    unit: str
    p: float
    p_holm: float
    why: str

    @classmethod
    def of_parts(cls, parts: list[PartVerdict]) -> "CriterionVerdict":
        """Return the worst verdict of the `parts`, shown by the part that decides it; p is the largest of theirs."""
        last = [(WORST_FIRST.index(p.verdict), math.isnan(p.found.p), -p.found.p) for p in parts]
        ranked = [parts[at] for at in sorted(range(len(parts)), key=last.__getitem__)]
        first, metric = ranked[0], METRICS[ranked[0].part.metric]
        strong = [p.grade == "exceeds" for p in parts]
        asked = all(is_strong for p, is_strong in zip(parts, strong) if p.part.exceeds is not None)
        exceeds = any(strong) and asked and all(p.verdict == PASS for p in parts)
        unit = f"{metric.unit} {metric.label}".strip() if len(parts) > 1 else metric.unit
        p_values = [p.found.p for p in parts if METRICS[p.part.metric].form in TESTED]
        largest = float(pd.Series(p_values, dtype=float).max(skipna=False))
        grade = "exceeds" if exceeds else first.grade.replace("exceeds", "met")
        return cls(first.verdict, grade, *first.found[:3], unit, largest, math.nan, " ".join(p.why for p in ranked))

    @classmethod
    def counted(cls, verdict: str, value: float, unit: str, why: str) -> "CriterionVerdict":
        """Return `verdict`, and `why`, on a count `value` in `unit`, which has no interval and no test."""
        return cls(verdict, GRADES.get(verdict, ""), value, math.nan, math.nan, unit, math.nan, math.nan, why)

    def corrected(self, p_holm: float, alpha: float) -> "CriterionVerdict":
        """Return it with Holm's `p_holm`: a PASS whose p is lifted to `alpha` or above becomes INCONCLUSIVE."""
        why = self.why + (f" After Holm's correction, {p_is(p_holm)}." if math.isfinite(p_holm) else "")
        lost = dict(verdict=INCONCLUSIVE, grade="") if self.verdict == PASS and not p_holm < alpha else {}
        return replace(self, p_holm=p_holm, why=why, **lost)
