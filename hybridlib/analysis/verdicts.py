"""The verdicts C1…C9 and H1…H5: PASS, FAIL or INCONCLUSIVE, from the records by the rules and by nothing else."""

import math
from dataclasses import asdict

import pandas as pd

from hybridlib.analysis import rules as r
from hybridlib.analysis import statistics
from hybridlib.analysis.effects import METRICS
from hybridlib.analysis.load import Records, planned
from hybridlib.analysis.measured import FAIL, INCONCLUSIVE, PASS, CriterionVerdict, PartVerdict
from hybridlib.analysis.wording import listed
from hybridlib.analysis.yardsticks import judge_peers, judge_worth, table
from hybridlib.study.parameters import load_study
from hybridlib.study.progress import other_parameters
from hybridlib.study.records import PHASES, RunFolder


def judge_parts(records: Records, rules: r.Rules) -> pd.DataFrame:
    """Return one row for each part of a measured criterion of `rules`, judged on the `records`."""
    measured = [(name, rule) for name, rule in rules.criteria.items() if isinstance(rule, r.MeasuredRule)]
    rows = [part.row(name) for name, rule in measured for part in _judged(rule.parts, records, rules)]
    return pd.DataFrame(rows).astype({"acceptable": float, "stronger": float})


def judge_criteria(records: Records, rules: r.Rules) -> pd.DataFrame:
    """Return one row for each criterion of `rules` that the study of the `records` has."""
    criteria, judged = rules.of(records.study), {}
    tuned = any(isinstance(rule, r.WorthRule | r.PeersRule) for rule in criteria.values())
    trials = table(records) if tuned else pd.DataFrame()
    for name, rule in criteria.items():
        match rule:
            case r.MeasuredRule():
                judged[name] = CriterionVerdict.of_parts(_judged(rule.parts, records, rules))
            case r.TestsRule():
                judged[name] = _tests(records, rule)
            case r.PipelineRule():
                judged[name] = _pipeline(records)
            case r.ScalesRule():
                judged[name] = _scales(records, rule)
            case r.WorthRule():
                judged[name] = judge_worth(trials, rule, rules.alpha)
            case r.PeersRule():
                judged[name] = judge_peers(trials, rule, rules.alpha)
    for name, p_holm in zip(rules.family, statistics.holm([judged[name].p for name in rules.family])):
        judged[name] = judged[name].corrected(float(p_holm), rules.alpha)
    for name, rule in criteria.items():
        if isinstance(rule, r.ControlsRule):
            judged[name] = _controls(records, rules, rule, judged[rule.of].verdict)
    return pd.DataFrame(
        [dict(criterion=name, about=rule.about) | asdict(judged[name]) for name, rule in criteria.items()]
    )


def _judged(parts: list[r.Part], records: Records, rules: r.Rules) -> list[PartVerdict]:
    return [PartVerdict.judge(part, records, rules.alpha, records.study.judged) for part in parts]


def _tests(records: Records, rule: r.TestsRule) -> CriterionVerdict:
    """FAIL if a test failed, INCONCLUSIVE if one has no result; the value is how many passed."""
    passed = dict(records.results(rule.results, ["test", "passed"])[["test", "passed"]].to_numpy())
    failed = [t for t in rule.tests if t in passed and not passed[t]]
    absent = [t for t in rule.tests if t not in passed]
    good = len(rule.tests) - len(failed) - len(absent)
    why = f"{good} of {len(rule.tests)} tests pass."
    why += f" Failed: {', '.join(failed)}." * bool(failed) + f" Without a result: {', '.join(absent)}." * bool(absent)
    verdict = FAIL if failed else INCONCLUSIVE if absent else PASS
    return CriterionVerdict.counted(verdict, good, f"of {len(rule.tests)} tests", why)


def _pipeline(records: Records) -> CriterionVerdict:
    """FAIL if a job failed, INCONCLUSIVE if one is missing; the jobs of the report come after this verdict."""
    jobs = records.results("pipeline")
    if jobs.empty:
        why = "The pipeline was not run as a whole: no results/pipeline.csv."
        return CriterionVerdict.counted(INCONCLUSIVE, math.nan, "jobs", why)
    jobs = jobs[jobs.stage != "report"]
    done, failed = (int((jobs.status == status).sum()) for status in ("complete", "failed"))
    verdict = FAIL if failed else PASS if 0 < len(jobs) == done else INCONCLUSIVE
    why = f"{done} of {len(jobs)} jobs complete, {failed} failed."
    return CriterionVerdict.counted(verdict, done, f"of {len(jobs)} jobs", why)


def _scales(records: Records, rule: r.ScalesRule) -> CriterionVerdict:
    """PASS if all planned runs of the other study that predict have all phases and a finite loss.

    FAIL if one has not, INCONCLUSIVE if one is not there as its study now asks for it.
    """
    study = load_study(rule.study)
    wanted = {run.id: run for _, run, full in planned(study) if run.schedule and not full}
    there = (
        (run, RunFolder(records.folder.parent / study.study / "runs" / name).facts) for name, run in wanted.items()
    )
    facts = [found for run, found in there if found and not other_parameters(run, found["parameters"])]
    if not facts:
        return CriterionVerdict.counted(INCONCLUSIVE, math.nan, "runs", f"{rule.study} was not run here.")
    losses = [found["summary"]["held_out_loss"] or math.nan for found in facts]
    whole = [all(found["summary"]["phase_share"].get(phase) for phase in PHASES) for found in facts]
    good = sum(math.isfinite(loss) and phases for loss, phases in zip(losses, whole))
    why = f"{good} of {len(wanted)} runs of {rule.study} went through all phases with a finite loss."
    here = set(records.runs.numerics)
    if others := [found["numerics"] for found in facts if here and found["numerics"] not in here]:
        why += f" {len(others)} of them were made under NUMERICS {listed(sorted(set(others)))}, not that of this study."
    verdict = FAIL if good < len(facts) else PASS if good == len(wanted) else INCONCLUSIVE
    return CriterionVerdict.counted(verdict, good, f"of {len(wanted)} runs", why)


def _controls(records: Records, rules: r.Rules, rule: r.ControlsRule, passed: str) -> CriterionVerdict:
    """PASS if every control fails what the arm passes, FAIL if one passes; the value is the nearest control's."""
    parts = rules.criteria[rule.of].parts
    by_arm = {
        arm: _judged([part.model_copy(update={"arm": arm}) for part in parts], records, rules) for arm in rule.controls
    }
    of = {arm: CriterionVerdict.of_parts(judged).verdict for arm, judged in by_arm.items()}
    near = min((judged[0] for judged in by_arm.values()), key=lambda p: (math.isnan(p.found.value), p.found.value))
    known = passed == PASS and INCONCLUSIVE not in of.values()
    verdict = FAIL if PASS in of.values() else PASS if known else INCONCLUSIVE
    why = f"{rule.of} is {passed} for {parts[0].arm}; " + ", ".join(f"{v} for {arm}" for arm, v in of.items())
    why += ". " + " ".join(judged[0].why for judged in by_arm.values())
    metric = METRICS[near.part.metric]
    unit = f"{metric.unit} {metric.label} of {near.part.arm}"
    return CriterionVerdict(verdict, "", *near.found[:3], unit, math.nan, math.nan, why)
