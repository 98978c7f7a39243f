"""The study's statistics: pure functions of one value a seed.

The unit is a seed, never a step. An arm and the baseline share initial weights and batches at a seed, so the values
are paired: ratios or differences, one a seed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.rates import confint_poisson
from statsmodels.stats.weightstats import DescrStatsW

ALPHA = 0.05


class Effect(NamedTuple):
    """An estimate `value` with its 1 − alpha interval from `low` to `high`, the two-sided `p` against no effect, and
    the number `n` of seeds. What was not found is NaN."""

    value: float
    low: float
    high: float
    p: float
    n: int


NO_ESTIMATE = Effect(np.nan, np.nan, np.nan, np.nan, 0)


def mean_effect(differences: Sequence[float], alpha: float = ALPHA) -> Effect:
    """Return the mean of paired `differences` (n_seeds,) with its 1 − `alpha` paired-t interval, and p against 0.

    One seed has no interval and no p.
    """
    x = np.asarray(differences, float)
    if len(x) == 0:
        return NO_ESTIMATE
    if len(x) == 1 or np.ptp(x) == 0:  # without variance the interval is the point, or unknown
        edge = x[0] if len(x) > 1 else np.nan
        return Effect(float(x[0]), edge, edge, np.nan, len(x))
    described = DescrStatsW(x)
    low, high = described.tconfint_mean(alpha)
    return Effect(float(x.mean()), float(low), float(high), float(described.ttest_mean(0.0)[1]), len(x))


def ratio_effect(ratios: Sequence[float], alpha: float = ALPHA) -> Effect:
    """Return the geometric mean of paired `ratios` (n_seeds,), all ≥ 0, with its 1 − `alpha` interval, and p against 1.

    Interval and p are those of a paired t-test on the logarithms. A ratio of 0, or an infinite one, stands for a time
    that was infinite; its logarithm does not exist. Then the value is the median ratio (as in AlgoPerf, where a miss
    scores 0), p is the sign test's, and there is no interval.
    """
    x = np.asarray(ratios, float)
    if (x > 0).all() and np.isfinite(x).all():
        e = mean_effect(np.log(x), alpha)
        return Effect(*np.exp([e.value, e.low, e.high]).tolist(), e.p, e.n)
    signs = stats.binomtest(int((x > 1).sum()), len(x), 0.5)
    return Effect(float(np.median(x)), np.nan, np.nan, float(signs.pvalue), len(x))


def rate_effect(events: Sequence[int], exposure: Sequence[float], alpha: float = ALPHA) -> Effect:
    """Return `events` over `exposure`, both (n_runs,), with the exact 1 − `alpha` Poisson interval; p is NaN."""
    count, total = float(np.sum(events)), float(np.sum(exposure))
    if not total:
        return NO_ESTIMATE
    low, high = confint_poisson(count, total, method="exact-c", alpha=alpha)
    return Effect(count / total, float(np.nan_to_num(low)), float(high), np.nan, len(events))


def non_inferiority_p(differences: Sequence[float], margin: float) -> float:
    """Return the one-sided p of "the mean of `differences` (n_seeds,) is at least `margin`".

    A small p shows that the mean is below the margin. This is the upper of the two tests of TOST.
    """
    return _one_sided(differences, margin, "less")


def equivalence_p(differences: Sequence[float], margin: float) -> float:
    """Return the p of TOST; a small p shows that the mean of `differences` (n_seeds,) lies within ± `margin`."""
    return max(_one_sided(differences, margin, "less"), _one_sided(differences, -margin, "greater"))


def _one_sided(differences: Sequence[float], null: float, alternative: str) -> float:
    x = np.asarray(differences, float)
    if len(x) < 2:
        return np.nan
    if np.ptp(x) == 0:
        beyond = x[0] < null if alternative == "less" else x[0] > null
        return 0.0 if beyond else 1.0
    return float(stats.ttest_1samp(x, null, alternative=alternative).pvalue)


def welch_p(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the two-sided p of Welch's t-test between the values of two arms, `a` (n_a,) and `b` (n_b,), unpaired."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    if min(len(a), len(b)) < 2 or not np.isfinite([*a, *b]).all() or np.ptp(a) == np.ptp(b) == 0:
        return np.nan
    return float(stats.ttest_ind(a, b, equal_var=False).pvalue)


def holm(p: Sequence[float]) -> np.ndarray:
    """Return the p-values `p` (n_tests,) after Holm's correction; NaN, a test that was not made, does not count."""
    p = np.asarray(p, float)
    out, made = np.full(len(p), np.nan), np.isfinite(p)
    if made.any():
        out[made] = multipletests(p[made], method="holm")[1]
    return out
