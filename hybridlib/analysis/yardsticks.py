"""Verdicts against optimizers that someone tuned: what a computed step is worth in theirs, and who ends better."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hybridlib.analysis import rules as r
from hybridlib.analysis import statistics
from hybridlib.analysis.load import Records
from hybridlib.analysis.measured import FAIL, GRADES, INCONCLUSIVE, PASS, WORST_FIRST, CriterionVerdict
from hybridlib.analysis.research import read_research
from hybridlib.analysis.wording import counted, estimate, fixed, p_is
from hybridlib.analysis.worth import change, changes, paired, ratio, standing, worth

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
        outside = "of which not every one lies within the lengths that were tried"
        lack = outside if len(mine) >= LEAST_SEEDS else f"{LEAST_SEEDS} are needed"
        why = f"{what}: {counted(len(mine), 'seed')}, {lack}."
        return CriterionVerdict(INCONCLUSIVE, "", *found[:3], "×", math.nan, math.nan, why)
    met, shown = found.value >= part.at_least, found.low > 1
    verdict = FAIL if not met else PASS if shown else INCONCLUSIVE
    exceeds = verdict == PASS and part.exceeds is not None and found.value >= part.exceeds
    grade = "exceeds" if exceeds else GRADES.get(verdict, "")
    asked = f"{part.text('×')} is asked for, {p_is(found.p)} against 1"
    why = f"{what} are {estimate(found, '×')} over {found.n} seeds; {asked}."
    return CriterionVerdict(verdict, grade, *found[:3], "×", found.p, math.nan, why)


@dataclass(frozen=True)
class PeerVerdict:
    """The `verdict` on one `peer`, with its `grade` and a sentence `why`: `in_equal_time`, or after equal steps.

    `found` is the change of the loss to the peer's, in %; its p is that of what is `asked`. The arm's mean loss lies
    `ahead` by so many standard errors.
    """

    peer: str
    in_equal_time: bool
    found: statistics.Effect
    ahead: float
    asked: str
    verdict: str
    grade: str
    why: str


def judge_peers(rows: pd.DataFrame, rule: r.PeersRule, alpha: float) -> CriterionVerdict:
    """Return the verdict of `rule` on `rows` of the `table`, tested at level `alpha`.

    Its value is the change to the peer that comes nearest. It exceeds where the arm ends better than the strongest
    peer after equal computed steps, too.
    """
    found = against_peers(rows, rule, alpha)
    worst = min(found, key=lambda each: (WORST_FIRST.index(each.verdict), -each.found.value))
    exceeds = worst.verdict == PASS and all(each.grade == "exceeds" for each in found)
    grade = "exceeds" if exceeds else GRADES.get(worst.verdict, "")
    passed = sum(each.verdict == PASS for each in found)
    why = f"{passed} of {len(found)} comparisons pass. {worst.why}"
    unit = f"% against {worst.peer}" if worst.found.n else "%"
    return CriterionVerdict(worst.verdict, grade, *worst.found[:3], unit, worst.found.p, math.nan, why)


def against_peers(rows: pd.DataFrame, rule: r.PeersRule, alpha: float) -> list[PeerVerdict]:
    """Return the verdicts of `rule` on every peer, from `rows` of the `table`, tested at level `alpha`: after equal
    computed steps, and at equal wall-clock."""
    return [_against(rows, rule, peer, in_time, alpha) for peer in rule.peers for in_time in (False, True)]


def _against(rows: pd.DataFrame, rule: r.PeersRule, peer: str, in_time: bool, alpha: float) -> PeerVerdict:
    equal = (rows.computed_steps == rule.computed_steps) & ~rows.in_equal_time
    own, its = equal & (rows.arm == rule.arm), (rows.in_equal_time if in_time else equal) & (rows.arm == peer)
    ours, theirs = paired(rows[own | its], rule.arm, peer)
    what = f"{rule.arm} against {peer} at {'equal wall-clock' if in_time else f'{rule.computed_steps} computed steps'}"
    if len(ours) < max(LEAST_SEEDS, own.sum()) or not np.isfinite(ours).all():
        lost = f"{what}: {len(ours)} paired seeds of {own.sum()}."
        return PeerVerdict(peer, in_time, statistics.NO_ESTIMATE, math.nan, "", INCONCLUSIVE, "", lost)
    found = change(ours, theirs, alpha)
    met, asked = found.value < 0, "below 0"
    shown = better = met and found.p < alpha
    if peer == rule.strongest and not in_time:
        p = statistics.non_inferiority_p(changes(ours, theirs), rule.within_pct)
        found, met, shown = found._replace(p=p), found.value <= rule.within_pct, p < alpha
        asked = f"at most {rule.within_pct:g} %"
    verdict = FAIL if not met else PASS if shown else INCONCLUSIVE
    grade = "exceeds" if verdict == PASS and better else GRADES.get(verdict, "")
    ahead = standing(ours, theirs)
    why = f"{what}: {estimate(found, '%')} of its loss, {asked} is asked for, {p_is(found.p)}"
    why += f"; {fixed(ahead, 1)} standard errors ahead."
    return PeerVerdict(peer, in_time, found, ahead, asked, verdict, grade, why)
