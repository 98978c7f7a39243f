"""The verdicts C1…C9, H1 and H2: PASS, FAIL or INCONCLUSIVE, from the records by the rules and by nothing else."""

import json
import math
from collections.abc import Callable
from typing import Any

import pandas as pd

from hybridlib.analysis import rules as r
from hybridlib.analysis import stats
from hybridlib.analysis.load import Records
from hybridlib.analysis.measured import FAIL, INCONCLUSIVE, PART_COLUMNS, PASS, judged, measured_parts, of_parts
from hybridlib.analysis.wording import p_is
from hybridlib.records import PHASES

VERDICT_COLUMNS = ["criterion", "about", "verdict", "grade", "value", "low", "high", "unit", "p", "p_holm", "why"]


def verdicts(records: Records, rules: r.Rules) -> pd.DataFrame:
    """One row a criterion, VERDICT_COLUMNS. `grade`: exceeds, met, acceptable (the brief's minimum) or missed."""
    parts = measured_parts(records, rules)
    found = {}
    for name, rule in rules.criteria.items():
        if not isinstance(rule, r.Controls):
            found[name] = (
                of_parts(parts[parts.criterion == name])
                if isinstance(rule, r.Measured)
                else JUDGES[type(rule)](records, rule)
            )
    family = {name: found[name] for name in rules.family}
    for name, corrected in zip(family, stats.holm([v.get("p", math.nan) for v in family.values()])):
        row = found[name]
        row["p_holm"] = float(corrected)
        if math.isfinite(corrected):
            row["why"] += f" After Holm's correction, {p_is(corrected)}."
        if row["verdict"] == PASS and not corrected < rules.alpha:
            row |= dict(verdict=INCONCLUSIVE, grade="")
    for name, rule in rules.criteria.items():
        if isinstance(rule, r.Controls):
            found[name] = _controls(records, rules, rule, found[rule.of]["verdict"])
    rows = [dict(criterion=name, about=rule.about) | found[name] for name, rule in rules.criteria.items()]
    return pd.DataFrame(rows, columns=VERDICT_COLUMNS)


def _checks(records: Records, rule: r.Checks) -> dict[str, Any]:
    """FAIL if a test failed, INCONCLUSIVE if one has no result; the value is how many passed."""
    results = records.results(rule.results)
    passed = results.set_index("test").passed.to_dict() if len(results) else {}
    failed = [t for t in rule.tests if t in passed and not passed[t]]
    absent = [t for t in rule.tests if t not in passed]
    good = len(rule.tests) - len(failed) - len(absent)
    why = f"{good} of {len(rule.tests)} tests pass."
    why += f" Failed: {', '.join(failed)}." * bool(failed) + f" Without a result: {', '.join(absent)}." * bool(absent)
    return _plain(FAIL if failed else INCONCLUSIVE if absent else PASS, good, f"of {len(rule.tests)} tests", why)


def _pipeline(records: Records, rule: r.Pipeline) -> dict[str, Any]:
    """FAIL if a job failed, INCONCLUSIVE if one is missing; the jobs of the report itself come after this verdict."""
    jobs = records.results("pipeline")
    if jobs.empty:
        return _plain(INCONCLUSIVE, math.nan, "jobs", "The pipeline was not run as a whole: no results/pipeline.csv.")
    jobs = jobs[jobs.stage != "report"]
    counts = jobs.status.value_counts()
    done, failed = int(counts.get("complete", 0)), int(counts.get("failed", 0))
    verdict = FAIL if failed else PASS if 0 < len(jobs) == done else INCONCLUSIVE
    return _plain(verdict, done, f"of {len(jobs)} jobs", f"{done} of {len(jobs)} jobs complete, {failed} failed.")


def _scales(records: Records, rule: r.Scales) -> dict[str, Any]:
    """PASS if a complete run of the other study has all phases and a finite loss; INCONCLUSIVE if it has none."""
    facts = [json.loads(p.read_text()) for p in (records.folder.parent / rule.study).glob("runs/*/run.json")]
    hybrid = [f for f in facts if f["parameters"]["schedule"]]
    if not hybrid:
        return _plain(INCONCLUSIVE, math.nan, "runs", f"{rule.study} was not run here.")
    good = [
        f
        for f in hybrid
        if math.isfinite(f["summary"]["held_out_loss"] or math.nan)
        and all(f["summary"]["phase_share"].get(phase) for phase in PHASES)
    ]
    verdict = PASS if len(good) == len(hybrid) else FAIL
    why = f"{len(good)} of {len(hybrid)} runs of {rule.study} went through all phases with a finite loss."
    return _plain(verdict, len(good), f"of {len(hybrid)} runs", why)


JUDGES: dict[type, Callable[[Records, Any], dict[str, Any]]] = {
    r.Checks: _checks,
    r.Pipeline: _pipeline,
    r.Scales: _scales,
}


def _controls(records: Records, rules: r.Rules, rule: r.Controls, passed: str) -> dict[str, Any]:
    """PASS if every control fails what the arm passes, FAIL if one passes; the value is the nearest control's."""
    parts = rules.criteria[rule.of].parts
    by_arm = {
        arm: [judged(p.model_copy(update={"arm": arm}), records, rules.alpha) for p in parts] for arm in rule.controls
    }
    of = {arm: of_parts(pd.DataFrame(rows, columns=PART_COLUMNS))["verdict"] for arm, rows in by_arm.items()}
    near = min((rows[0] for rows in by_arm.values()), key=lambda row: (math.isnan(row["value"]), row["value"]))
    if passed != PASS or INCONCLUSIVE in of.values():
        verdict = INCONCLUSIVE if PASS not in of.values() else FAIL
    else:
        verdict = PASS if set(of.values()) == {FAIL} else FAIL
    why = f"{rule.of} is {passed} for {parts[0].arm}; " + ", ".join(f"{v} for {arm}" for arm, v in of.items())
    why += ". " + " ".join(rows[0]["why"] for rows in by_arm.values())
    return dict(
        verdict=verdict,
        grade="",
        value=near["value"],
        low=near["low"],
        high=near["high"],
        unit=f"{near['unit']} {near['label']} of {near['arm']}",
        p=math.nan,
        p_holm=math.nan,
        why=why,
    )


def _plain(verdict: str, value: float, unit: str, why: str) -> dict[str, Any]:
    return dict(
        verdict=verdict,
        grade={PASS: "met", FAIL: "missed"}.get(verdict, ""),
        value=value,
        low=math.nan,
        high=math.nan,
        unit=unit,
        p=math.nan,
        p_holm=math.nan,
        why=why,
    )
