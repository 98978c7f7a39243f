"""Verdicts against tuned optimizers: closed forms of the rules H3 to H5."""

import numpy as np
import pandas as pd
import pytest

from hybridlib.analysis.measured import FAIL, INCONCLUSIVE, PASS
from hybridlib.analysis.rules import PeersRule, WorthPart, WorthRule
from hybridlib.analysis.yardsticks import judge_peers, judge_worth

WORTH = WorthRule(kind="worth", about="", yardstick="adamw", computed_steps=410,
                  parts=[WorthPart(arm="ours", at_least=1.6, exceeds=2.0)])  # fmt: skip
PEERS = PeersRule(kind="peers", about="", arm="ours", computed_steps=410, peers=["muon", "adamw"], strongest="muon",
                  within_pct=1.0)  # fmt: skip
SEEDS = range(2000, 2008)
NOISE = np.random.default_rng(0).normal(0, 0.004, len(SEEDS))


def rows(arm: str, loss: float, steps: int = 410, worth: float = np.nan, spread: float = 1.0) -> pd.DataFrame:
    alike = dict(arm=arm, base="", in_equal_time=steps != 410, seed=SEEDS, computed_steps=steps, train_s=1.0)
    return pd.DataFrame(alike | dict(held_out_loss=loss + spread * NOISE, equivalent_adamw_steps=worth * (1 + NOISE)))


def judged(judge, rule, *tables: pd.DataFrame):
    return judge(pd.concat(tables), rule, 0.05)


@pytest.mark.parametrize(
    ("steps", "verdict", "grade"),
    [(410 * 2.2, PASS, "exceeds"), (410 * 1.7, PASS, "met"), (410 * 1.5, FAIL, "missed"), (np.nan, INCONCLUSIVE, "")],
)
def test_a_worth_is_held_against_its_threshold(steps: float, verdict: str, grade: str) -> None:
    found = judged(judge_worth, WORTH, rows("ours", 3.6, worth=steps))
    assert (found.verdict, found.grade) == (verdict, grade)
    assert np.isnan(steps) or (found.value == pytest.approx(steps / 410, rel=0.01) and found.low > 1)


def test_a_seed_outside_of_the_lengths_leaves_the_worth_open() -> None:
    one_short = rows("ours", 3.6, worth=900.0)
    one_short.loc[3, "equivalent_adamw_steps"] = np.nan
    assert judged(judge_worth, WORTH, one_short).verdict == INCONCLUSIVE
    assert judged(judge_worth, WORTH, rows("other", 3.6, worth=900.0)).verdict == INCONCLUSIVE


def peers(muon: float, muon_clock: float, adamw: float = 4.0, adamw_clock: float = 3.99) -> list[pd.DataFrame]:
    return [rows("muon", muon, spread=0.5), rows("muon", muon_clock, 310, spread=0.5),
            rows("adamw", adamw, spread=0.5), rows("adamw", adamw_clock, 430, spread=0.5)]  # fmt: skip


@pytest.mark.parametrize(
    ("muon", "muon_clock", "adamw", "verdict", "grade"),
    [
        (3.61, 3.72, 4.0, PASS, "met"),  # the strongest within 1 % after equal steps, behind at equal time
        (3.70, 3.80, 4.0, PASS, "exceeds"),  # behind in both
        (3.55, 3.72, 4.0, FAIL, "missed"),  # ahead by more than 1 %
        (3.61, 3.60, 4.0, FAIL, "missed"),  # ahead at equal time
        (3.61, 3.72, 3.6, FAIL, "missed"),  # another one ahead after equal steps
        (3.61, 3.642, 4.0, INCONCLUSIVE, ""),  # ahead by nothing that shows
    ],
)
def test_every_peer_is_beaten_by_its_own_rule(
    muon: float, muon_clock: float, adamw: float, verdict: str, grade: str
) -> None:
    noisy = rows("ours", 3.64, spread=1.0).assign(held_out_loss=3.64 + np.random.default_rng(1).normal(0, 0.004, 8))
    found = judged(judge_peers, PEERS, noisy, *peers(muon, muon_clock, adamw))
    assert (found.verdict, found.grade) == (verdict, grade), found.why


def test_a_peer_that_was_not_run_leaves_the_verdict_open() -> None:
    found = judged(judge_peers, PEERS, rows("ours", 3.64), *peers(3.61, 3.72)[:3])
    assert found.verdict == INCONCLUSIVE and "adamw at equal wall-clock: 0 paired seeds of 8" in found.why
    nothing = judged(judge_peers, PEERS, rows("other", 3.64))
    assert nothing.verdict == INCONCLUSIVE
