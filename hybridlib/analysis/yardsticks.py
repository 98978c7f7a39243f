"""Verdicts against optimizers that someone tuned: what a computed step is worth in theirs, and who ends better."""

import math

import numpy as np
import pandas as pd

from hybridlib.analysis import rules as r
from hybridlib.analysis import statistics
from hybridlib.analysis.load import Records
from hybridlib.analysis.measured import FAIL, GRADES, INCONCLUSIVE, PASS, WORST_FIRST, CriterionVerdict
from hybridlib.analysis.research import read_research
from hybridlib.analysis.wording import estimate, fixed, p_is
from hybridlib.analysis.worth import ratio, standing, worth

LEAST_SEEDS = 2


def table(records: Records) -> pd.DataFrame:
    """Return what `worth` returns for the trials around the study of `records`."""
    return worth(read_research(records.study, records.folder.parent).trials)


def judge_worth(rows: pd.DataFrame, rule: r.WorthRule, alpha: float) -> CriterionVerdict:
    """Return the verdict of `rule` on `rows` of the `table`, tested at level `alpha`: its worst part's."""
    judged = [_worth(rows, rule, part, alpha) for part in rule.parts]
    return min(judged, key=lambda each: (WORST_FIRST.index(each.verdict), each.value))


def _worth(rows: pd.DataFrame, rule: r.WorthRule, part: r.WorthPart, alpha: float) -> CriterionVerdict:
    mine = rows[(rows.arm == part.arm) & (rows.computed_steps == rule.computed_steps)]
    known = f"equivalent_{rule.yardstick}_steps" in rows and len(mine) >= LEAST_SEEDS
    found = ratio(mine, rule.yardstick, alpha) if known else statistics.NO_ESTIMATE
    what = f"{rule.computed_steps} computed steps of {part.arm} in steps of a tuned {rule.yardstick}"
    if not math.isfinite(found.value):
        why = f"{what}: {len(mine)} seeds, of which not every one lies within the lengths that were tried."
        return CriterionVerdict(INCONCLUSIVE, "", *found[:3], "×", math.nan, math.nan, why)
    met, shown = found.value >= part.at_least, found.low > 1
    verdict = FAIL if not met else PASS if shown else INCONCLUSIVE
    exceeds = verdict == PASS and part.exceeds is not None and found.value >= part.exceeds
    grade = "exceeds" if exceeds else GRADES.get(verdict, "")
    asked = f"{part.text('×')} is asked for, {p_is(found.p)} against 1"
    why = f"{what} are {estimate(found, '×')} over {found.n} seeds; {asked}."
    return CriterionVerdict(verdict, grade, *found[:3], "×", found.p, math.nan, why)


def judge_peers(rows: pd.DataFrame, rule: r.PeersRule, alpha: float) -> CriterionVerdict:
    """Return the verdict of `rule` on `rows` of the `table`, tested at level `alpha`.

    Its value is the change to the peer that comes nearest. It exceeds where the arm ends better than the strongest
    peer after equal computed steps, too.
    """
    ours = rows[(rows.arm == rule.arm) & (rows.computed_steps == rule.computed_steps)].set_index("seed").held_out_loss
    found = [_against(rows, rule, ours, peer, at_clock, alpha) for peer in rule.peers for at_clock in (False, True)]
    worst = min(found, key=lambda each: (WORST_FIRST.index(each.verdict), -each.value))
    exceeds = worst.verdict == PASS and all(each.grade == "exceeds" for each in found)
    grade = "exceeds" if exceeds else GRADES.get(worst.verdict, "")
    why = " ".join(each.why for each in sorted(found, key=lambda each: WORST_FIRST.index(each.verdict)))
    parts = worst.value, worst.low, worst.high, worst.unit, worst.p, math.nan
    return CriterionVerdict(worst.verdict, grade, *parts, why)


def _against(
    rows: pd.DataFrame, rule: r.PeersRule, ours: pd.Series, peer: str, at_clock: bool, alpha: float
) -> CriterionVerdict:
    """Return the verdict on one `peer`, `at_clock` at equal wall-clock, else after equal computed steps."""
    its = rows[(rows.arm == peer) & (rows.in_equal_time if at_clock else rows.computed_steps == rule.computed_steps)]
    theirs = its.set_index("seed").held_out_loss.reindex(ours.index)
    when = "equal wall-clock" if at_clock else f"{rule.computed_steps} computed steps"
    what = f"{rule.arm} against {peer} at {when}"
    if len(ours) < LEAST_SEEDS or theirs.isna().any() or not np.isfinite(ours).all():
        lost = f"{what}: {int(theirs.notna().sum())} paired seeds of {len(ours)}."
        return CriterionVerdict(INCONCLUSIVE, "", *statistics.NO_ESTIMATE[:3], "%", math.nan, math.nan, lost)
    changes = 100 * (ours / theirs - 1)
    change = statistics.mean_effect(changes, alpha)
    better = change.value < 0 and change.p < alpha
    if peer == rule.strongest and not at_clock:
        p = statistics.non_inferiority_p(changes, rule.within_pct)
        met, shown, asked = change.value <= rule.within_pct, p < alpha, f"at most {rule.within_pct:g} %"
    else:
        p, met, shown, asked = change.p, change.value < 0, better, "below 0"
    verdict = FAIL if not met else PASS if shown else INCONCLUSIVE
    ahead = standing(ours, theirs)
    why = f"{what}: {estimate(change, '%')} of its loss, {asked} is asked for, {p_is(p)}"
    why += f"; {fixed(ahead, 1)} standard errors ahead."
    grade = "exceeds" if verdict == PASS and better else GRADES.get(verdict, "")
    return CriterionVerdict(verdict, grade, *change[:3], f"% against {peer}", p, math.nan, why)
