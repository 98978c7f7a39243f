"""The study's statistics: pure functions on one value a seed. The unit is a seed, never a step.

Values of one arm and of the baseline at the same seed share initial weights and batches, so what comes in here are
their ratios or differences, one a seed.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pingouin as pg
from scipy import stats
from scipy.integrate import IntegrationWarning
from statsmodels.stats.power import TTestPower
from statsmodels.stats.rates import confint_poisson
from statsmodels.stats.weightstats import DescrStatsW

ALPHA = 0.05


class Effect(NamedTuple):
    """An estimate with its 1 − alpha interval, the two-sided p against no effect, and the number of seeds."""

    value: float
    low: float
    high: float
    p: float
    n: int


NOTHING = Effect(np.nan, np.nan, np.nan, np.nan, 0)


def mean_effect(differences: Sequence[float], alpha: float = ALPHA) -> Effect:
    """Return the mean of paired differences (n_seeds,) with its paired-t interval; p against 0. One seed has no interval."""
    x = np.asarray(differences, float)
    if len(x) == 0:
        return NOTHING
    if len(x) == 1 or np.ptp(x) == 0:  # no variance to test with: the interval is the point, or unknown
        edge = x[0] if len(x) > 1 else np.nan
        return Effect(float(x[0]), edge, edge, np.nan, len(x))
    described = DescrStatsW(x)
    low, high = described.tconfint_mean(alpha)
    return Effect(float(x.mean()), float(low), float(high), float(described.ttest_mean(0.0)[1]), len(x))


def ratio_effect(ratios: Sequence[float], alpha: float = ALPHA) -> Effect:
    """Return the geometric mean of paired ratios (n_seeds,), all ≥ 0: paired t on the logarithms, back-transformed; p against 1.

    A ratio of 0 is a time that was infinite. Then no mean of logarithms exists: the value is the median ratio, with a
    miss as 0 (as AlgoPerf scores it), p is the sign test's, and there is no interval.
    """
    x = np.asarray(ratios, float)
    if (x > 0).all():
        e = mean_effect(np.log(x), alpha)
        return Effect(*np.exp([e.value, e.low, e.high]).tolist(), e.p, e.n)
    signs = stats.binomtest(int((x > 1).sum()), len(x), 0.5)
    return Effect(float(np.median(x)), np.nan, np.nan, float(signs.pvalue), len(x))


def rate_effect(events: Sequence[int], exposure: Sequence[float], alpha: float = ALPHA) -> Effect:
    """Return events per unit of exposure, both (n_runs,), with the exact Poisson interval; no test."""
    count, total = float(np.sum(events)), float(np.sum(exposure))
    if not total:
        return NOTHING
    low, high = confint_poisson(count, total, method="exact-c", alpha=alpha)
    return Effect(count / total, float(np.nan_to_num(low)), float(high), np.nan, len(events))


def non_inferiority_p(differences: Sequence[float], margin: float) -> float:
    """Return the one-sided p of "the mean difference (n_seeds,) is at least `margin`": small shows that it is below.

    This is the upper of the two one-sided tests of TOST; an arm that is better than the margin allows is no worse.
    """
    return _one_sided(differences, margin, "less")


def equivalence_p(differences: Sequence[float], margin: float) -> float:
    """Return the p of the TOST: small shows that the mean difference (n_seeds,) lies within ± `margin`."""
    return max(_one_sided(differences, margin, "less"), _one_sided(differences, -margin, "greater"))


def _one_sided(differences: Sequence[float], null: float, alternative: str) -> float:
    x = np.asarray(differences, float)
    if len(x) < 2:
        return np.nan
    if np.ptp(x) == 0:
        beyond = x[0] < null if alternative == "less" else x[0] > null
        return 0.0 if beyond else 1.0
    return _t_test_p(x, null, alternative=alternative)


def _t_test_p(*samples, **settings) -> float:
    """Return the p of pingouin's t-test, which also integrates a Bayes factor, which is not used here and warns for very small p."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IntegrationWarning)
        return float(pg.ttest(*samples, **settings)["p_val"].iloc[0])


def welch_p(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the two-sided p of Welch's t-test between two arms' values, (n_a,) and (n_b,); the brief's test, pairing ignored."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    if min(len(a), len(b)) < 2 or not np.isfinite([*a, *b]).all() or np.ptp(a) == np.ptp(b) == 0:
        return np.nan
    return _t_test_p(a, b, correction=True)


def holm(p: Sequence[float]) -> np.ndarray:
    """Return Holm-corrected p-values (n_tests,); a test that was not made (NaN) stays NaN and does not count."""
    p = np.asarray(p, float)
    out, made = np.full(len(p), np.nan), np.isfinite(p)
    if made.any():
        out[made] = pg.multicomp(p[made], method="holm")[1]
    return out


def interquartile_mean(values: Sequence[float]) -> float:
    """Return the mean of the middle half of all values, any shape: a quarter is cut at each end (Agarwal et al. 2021)."""
    return float(stats.trim_mean(np.asarray(values, float), 0.25, axis=None))


def stratified_bootstrap(
    values: np.ndarray,
    statistic: Callable[[np.ndarray], float],
    rng: np.random.Generator,
    resamples: int = 2000,
    alpha: float = ALPHA,
) -> tuple[float, float]:
    """Return the percentile interval of a statistic of (n_seeds, n_tasks); seeds are redrawn within each task (Agarwal et al.)."""
    n_seeds, n_tasks = values.shape
    rows = rng.integers(n_seeds, size=(resamples, n_seeds, n_tasks))
    redrawn = values[rows, np.arange(n_tasks)]  # (resamples, n_seeds, n_tasks)
    low, high = np.quantile([statistic(x) for x in redrawn], [alpha / 2, 1 - alpha / 2])
    return float(low), float(high)


def power(distance: float, sd: float, n_seeds: int, alpha: float = ALPHA, alternative: str = "two-sided") -> float:
    """Return the chance that a paired t-test with `n_seeds` shows a true effect `distance` away, seeds differing by `sd`."""
    if n_seeds < 2 or not sd > 0:
        return np.nan
    return float(TTestPower().power(abs(distance) / sd, n_seeds, alpha, alternative=alternative))


def detectable(sd: float, n_seeds: int, alpha: float = ALPHA, wanted: float = 0.8) -> float:
    """Return the smallest true effect that a two-sided paired t-test with `n_seeds` shows with power `wanted`, in its unit."""
    if n_seeds < 2 or not sd > 0:
        return np.nan
    return sd * float(TTestPower().solve_power(None, n_seeds, alpha, wanted))
