"""The verdicts C1…C9, H1 and H2: PASS, FAIL or INCONCLUSIVE, from the records by the rules and by nothing else."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import pandas as pd

from hybridlib.analysis import rules as r
from hybridlib.analysis import statistics
from hybridlib.analysis.effects import METRICS, Metric, by_seed, effect
from hybridlib.analysis.load import Records, planned
from hybridlib.analysis.wording import estimate, p_is
from hybridlib.study.records import PHASES, RunFolder

PASS, FAIL, INCONCLUSIVE = "PASS", "FAIL", "INCONCLUSIVE"
WORST_FIRST = (FAIL, INCONCLUSIVE, PASS)
GRADES = {PASS: "met", FAIL: "missed"}
PART_COLUMNS = ["criterion", "arm", "data", "metric", "label", "unit", *statistics.Effect._fields, "threshold"]
PART_COLUMNS += ["acceptable", "stronger", "demand", "verdict", "grade", "why"]


@dataclass(frozen=True)
class PartVerdict:
    """One threshold, judged. The p of `found` is a ratio's against 1, a change's for non-inferiority; NaN where none is made."""

    part: r.Part
    found: statistics.Effect
    verdict: str
    grade: str  # exceeds, met, acceptable (the brief's minimum), missed; empty where nothing is shown
    why: str

    @classmethod
    def judge(cls, part: r.Part, records: Records, alpha: float) -> "PartVerdict":
        """Return the verdict on one threshold, its estimate and a sentence that says why."""
        metric, values = METRICS[part.metric], by_seed(records.runs, part.metric, part.arm, part.data)
        found = effect(records.runs, part.metric, part.arm, part.data, alpha)
        wanted = {run.seed for _, run, _ in planned(records.study) if (run.arm, run.data) == (part.arm, part.data)}
        what = f"{metric.label[0].upper()}{metric.label[1:]} of {part.arm} on {part.data}"
        untested = found._replace(p=math.nan)
        if lacking := sorted(wanted - set(values.index)):
            why = f"{what}: no complete pair with the baseline for seed {', '.join(map(str, lacking))}."
            return cls(part, untested, INCONCLUSIVE, "", why)
        if found.n < 2:
            return cls(
                part, untested, INCONCLUSIVE, "", f"{what}: {'one seed' if found.n else 'no run'}, two are needed."
            )
        tests = {"ratio": lambda: found.p, "change": lambda: statistics.non_inferiority_p(values, part.threshold)}
        tested = untested._replace(p=tests.get(metric.form, lambda: math.nan)())
        met, shown = part.meets(found.value, part.threshold), metric.form not in tests or tested.p < alpha
        grade = grade_of(part, records, values, found, alpha) if shown or not met else ""
        verdict = FAIL if not met else PASS if shown else INCONCLUSIVE
        return cls(part, tested, verdict, grade, f"{what} is {said(part, metric, tested, values)}.")

    @property
    def tested(self) -> bool:
        return METRICS[self.part.metric].form in ("ratio", "change")

    def row(self, criterion: str) -> dict[str, Any]:
        """Return it as a row of PART_COLUMNS."""
        part, metric = self.part, METRICS[self.part.metric]
        of = dict(
            criterion=criterion, arm=part.arm, data=part.data, metric=part.metric, label=metric.label, unit=metric.unit
        )
        asked = dict(threshold=part.threshold, acceptable=part.acceptable, stronger=part.exceeds, demand=part.text)
        return of | self.found._asdict() | asked | dict(verdict=self.verdict, grade=self.grade, why=self.why)


def said(part: r.Part, metric: Metric, found: statistics.Effect, values: pd.Series) -> str:
    """Say what a part's estimate is, what is asked for, and with which p."""
    text = f"{estimate(found, metric.unit)} over {found.n} seeds; {part.text} is asked for"
    if metric.form in ("ratio", "change"):
        text += f", {p_is(found.p)} " + ("against 1" if metric.form == "ratio" else "for non-inferiority")
    if metric.form == "ratio" and (missed := int((values == 0).sum())):
        text += f"; {missed} of {found.n} seeds never reached the target"
    return text


def grade_of(part: r.Part, records: Records, values: pd.Series, found: statistics.Effect, alpha: float) -> str:
    runs = records.runs[records.runs.data == part.data]
    peers = [effect(runs, part.metric, arm, part.data).value for arm in runs.arm[runs.role == "peer"].unique()]
    exceeds = part.meets(found.value, part.exceeds)
    if exceeds and METRICS[part.metric].form == "change":
        exceeds = statistics.non_inferiority_p(values, part.exceeds) < alpha
    if part.meets(found.value, part.threshold):
        beaten = part.exceeds_peers and bool(peers) and all(part.meets(found.value, peer) for peer in peers)
        return "exceeds" if exceeds or beaten else "met"
    return "acceptable" if part.meets(found.value, part.acceptable) else "missed"


@dataclass(frozen=True)
class Verdict:
    """A criterion, judged; `p_holm` is its p after Holm's correction over the family, NaN outside it."""

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
    def of_parts(cls, parts: list[PartVerdict]) -> "Verdict":
        """Return the worst of the parts' verdicts, shown by the part that decides it; p is the largest of theirs."""
        last = [(WORST_FIRST.index(p.verdict), math.isnan(p.found.p), -p.found.p) for p in parts]
        ranked = [parts[at] for at in sorted(range(len(parts)), key=last.__getitem__)]
        first, metric = ranked[0], METRICS[ranked[0].part.metric]
        strong = [p.grade == "exceeds" for p in parts]
        asked = all(is_strong for p, is_strong in zip(parts, strong) if p.part.exceeds is not None)
        exceeds = any(strong) and asked and all(p.verdict == PASS for p in parts)
        unit = f"{metric.unit} {metric.label}".strip() if len(parts) > 1 else metric.unit
        largest = float(pd.Series([p.found.p for p in parts if p.tested], dtype=float).max(skipna=False))
        grade = "exceeds" if exceeds else first.grade.replace("exceeds", "met")
        return cls(first.verdict, grade, *first.found[:3], unit, largest, math.nan, " ".join(p.why for p in ranked))

    @classmethod
    def counted(cls, verdict: str, value: float, unit: str, why: str) -> "Verdict":
        """Return the verdict on a count, which has no interval and no test."""
        return cls(verdict, GRADES.get(verdict, ""), value, math.nan, math.nan, unit, math.nan, math.nan, why)

    def corrected(self, p_holm: float, alpha: float) -> "Verdict":
        """Return what is left of it after Holm's correction, which takes away a PASS whose p it lifts to alpha."""
        why = self.why + (f" After Holm's correction, {p_is(p_holm)}." if math.isfinite(p_holm) else "")
        lost = dict(verdict=INCONCLUSIVE, grade="") if self.verdict == PASS and not p_holm < alpha else {}
        return replace(self, p_holm=p_holm, why=why, **lost)


VERDICT_COLUMNS = ["criterion", "about", *(field.name for field in fields(Verdict))]


def measured_parts(records: Records, rules: r.Rules) -> pd.DataFrame:
    """Return one row a measured part of a criterion, PART_COLUMNS."""
    measured = {name: rule for name, rule in rules.criteria.items() if isinstance(rule, r.MeasuredRule)}
    rows = [
        PartVerdict.judge(part, records, rules.alpha).row(name)
        for name, rule in measured.items()
        for part in rule.parts
    ]
    frame = pd.DataFrame(rows, columns=PART_COLUMNS)
    return frame.astype({"acceptable": float, "stronger": float})


def verdicts(records: Records, rules: r.Rules) -> pd.DataFrame:
    """Return one row a criterion, VERDICT_COLUMNS."""
    criteria = rules.criteria.items()
    found = {
        name: JUDGES[type(rule)](records, rules, rule)
        for name, rule in criteria
        if not isinstance(rule, r.ControlsRule)
    }
    for name, p_holm in zip(rules.family, statistics.holm([found[name].p for name in rules.family])):
        found[name] = found[name].corrected(float(p_holm), rules.alpha)
    for name, rule in criteria:
        if isinstance(rule, r.ControlsRule):
            found[name] = controls(records, rules, rule, found[rule.of].verdict)
    return pd.DataFrame([dict(criterion=name, about=rule.about) | asdict(found[name]) for name, rule in criteria])


def measured(records: Records, rules: r.Rules, rule: r.MeasuredRule) -> Verdict:
    return Verdict.of_parts([PartVerdict.judge(part, records, rules.alpha) for part in rule.parts])


def tests(records: Records, rules: r.Rules, rule: r.TestsRule) -> Verdict:
    """FAIL if a test failed, INCONCLUSIVE if one has no result; the value is how many passed."""
    passed = dict(records.results(rule.results, ["test", "passed"])[["test", "passed"]].to_numpy())
    failed = [t for t in rule.tests if t in passed and not passed[t]]
    absent = [t for t in rule.tests if t not in passed]
    good = len(rule.tests) - len(failed) - len(absent)
    why = f"{good} of {len(rule.tests)} tests pass."
    why += f" Failed: {', '.join(failed)}." * bool(failed) + f" Without a result: {', '.join(absent)}." * bool(absent)
    return Verdict.counted(
        FAIL if failed else INCONCLUSIVE if absent else PASS, good, f"of {len(rule.tests)} tests", why
    )


def pipeline(records: Records, rules: r.Rules, rule: r.PipelineRule) -> Verdict:
    """FAIL if a job failed, INCONCLUSIVE if one is missing; the jobs of the report itself come after this verdict."""
    jobs = records.results("pipeline")
    if jobs.empty:
        return Verdict.counted(
            INCONCLUSIVE, math.nan, "jobs", "The pipeline was not run as a whole: no results/pipeline.csv."
        )
    jobs = jobs[jobs.stage != "report"]
    done, failed = (int((jobs.status == status).sum()) for status in ("complete", "failed"))
    verdict = FAIL if failed else PASS if 0 < len(jobs) == done else INCONCLUSIVE
    return Verdict.counted(
        verdict, done, f"of {len(jobs)} jobs", f"{done} of {len(jobs)} jobs complete, {failed} failed."
    )


def scales(records: Records, rules: r.Rules, rule: r.ScalesRule) -> Verdict:
    """PASS if a complete run of the other study has all phases and a finite loss; INCONCLUSIVE if it has none."""
    files = sorted((records.folder.parent / rule.study).glob("runs/*/run.json"))
    facts = [found for file in files if (found := RunFolder(file.parent).facts) and found["parameters"]["schedule"]]
    if not facts:
        return Verdict.counted(INCONCLUSIVE, math.nan, "runs", f"{rule.study} was not run here.")
    good = sum(
        math.isfinite(f["summary"]["held_out_loss"] or math.nan)
        and all(f["summary"]["phase_share"].get(p) for p in PHASES)
        for f in facts
    )
    why = f"{good} of {len(facts)} runs of {rule.study} went through all phases with a finite loss."
    return Verdict.counted(PASS if good == len(facts) else FAIL, good, f"of {len(facts)} runs", why)


JUDGES: dict[type, Callable[[Records, r.Rules, Any], Verdict]] = {
    r.MeasuredRule: measured,
    r.TestsRule: tests,
    r.PipelineRule: pipeline,
    r.ScalesRule: scales,
}


def controls(records: Records, rules: r.Rules, rule: r.ControlsRule, passed: str) -> Verdict:
    """PASS if every control fails what the arm passes, FAIL if one passes; the value is the nearest control's."""
    parts = rules.criteria[rule.of].parts
    by_arm = {
        arm: [PartVerdict.judge(p.model_copy(update={"arm": arm}), records, rules.alpha) for p in parts]
        for arm in rule.controls
    }
    of = {arm: Verdict.of_parts(judged).verdict for arm, judged in by_arm.items()}
    near = min((judged[0] for judged in by_arm.values()), key=lambda p: (math.isnan(p.found.value), p.found.value))
    known = passed == PASS and INCONCLUSIVE not in of.values()
    verdict = FAIL if PASS in of.values() else PASS if known else INCONCLUSIVE
    why = f"{rule.of} is {passed} for {parts[0].arm}; " + ", ".join(f"{v} for {arm}" for arm, v in of.items())
    why += ". " + " ".join(judged[0].why for judged in by_arm.values())
    metric = METRICS[near.part.metric]
    unit = f"{metric.unit} {metric.label} of {near.part.arm}"
    return Verdict(verdict, "", *near.found[:3], unit, math.nan, math.nan, why)
