"""The statistics against closed forms, hand examples and their own definitions."""

from types import SimpleNamespace

import numpy as np
import pytest
from chapter import definitions
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from hybridlib.analysis import statistics

DIFFERENCES = [0.1, 0.4, 0.7]  # mean 0.4, sd 0.3, standard error 0.1732


def test_mean_effect_is_the_paired_t_interval() -> None:
    t = scipy_stats.t.ppf(0.975, 2)
    e = statistics.mean_effect(DIFFERENCES)
    assert e.value == pytest.approx(0.4)
    assert (e.low, e.high) == pytest.approx((0.4 - t * 0.3 / 3**0.5, 0.4 + t * 0.3 / 3**0.5))
    assert e.p == pytest.approx(scipy_stats.ttest_1samp(DIFFERENCES, 0).pvalue)
    assert e.n == 3


def test_one_seed_has_no_interval_and_no_p() -> None:
    e = statistics.mean_effect([0.3])
    assert e.value == 0.3 and np.isnan([e.low, e.high, e.p]).all()
    assert statistics.mean_effect([]).n == 0


def test_equal_differences_have_an_interval_of_no_width() -> None:
    assert statistics.mean_effect([2.0, 2.0])[:3] == (2.0, 2.0, 2.0)


def test_ratio_effect_is_the_geometric_mean() -> None:
    e = statistics.ratio_effect([1.0, 2.0, 4.0])
    assert e.value == pytest.approx(2.0)
    assert e.low * e.high == pytest.approx(4.0)  # symmetric about the mean on a logarithmic scale


@given(st.lists(st.floats(0.2, 5), min_size=2, max_size=6))
def test_ratio_effect_of_inverses_is_the_inverse(ratios: list[float]) -> None:
    e, inverse = statistics.ratio_effect(ratios), statistics.ratio_effect([1 / r for r in ratios])
    assert inverse.value == pytest.approx(1 / e.value)
    assert inverse.low == pytest.approx(1 / e.high)


def test_an_infinite_time_gives_the_median_and_no_interval() -> None:
    e = statistics.ratio_effect([0.0, 1.8, 2.2])
    assert e.value == 1.8 and np.isnan([e.low, e.high]).all()
    assert e.p == 1.0  # sign test, 2 of 3 above 1
    assert statistics.ratio_effect([0.0, 0.0, 2.2]).value == 0.0


def test_rate_interval_of_no_event_is_the_rule_of_three() -> None:
    e = statistics.rate_effect([0, 0, 0], [1.0, 1.0, 1.0])
    assert (e.value, e.low) == (0.0, 0.0)
    assert e.high == pytest.approx(-np.log(0.025) / 3)


def test_non_inferiority_is_the_one_sided_t_test() -> None:
    expected = scipy_stats.ttest_1samp(DIFFERENCES, 1.0, alternative="less").pvalue
    assert statistics.non_inferiority_p(DIFFERENCES, 1.0) == pytest.approx(expected)
    assert statistics.non_inferiority_p([-5.0, -5.1, -4.9], 1.0) < 0.001  # much better is no worse
    assert statistics.equivalence_p([-5.0, -5.1, -4.9], 1.0) > 0.99  # but not equivalent


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=5, unique=True))
def test_equivalence_is_never_easier_than_non_inferiority(differences: list[float]) -> None:
    assert statistics.equivalence_p(differences, 2.0) >= statistics.non_inferiority_p(differences, 2.0) - 1e-12


def test_welch_ignores_pairing() -> None:
    a, b = [1.0, 2.0, 3.0], [2.0, 4.0, 9.0]
    assert statistics.welch_p(a, b) == pytest.approx(scipy_stats.ttest_ind(a, b, equal_var=False).pvalue)
    assert np.isnan(statistics.welch_p([1.0], b)) and np.isnan(statistics.welch_p([1.0, 1.0], [1.0, 1.0]))


def test_holm_by_hand() -> None:
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([0.01, np.nan, 0.03])[[0, 2]] == pytest.approx([0.02, 0.03])
    assert np.isnan(statistics.holm([np.nan])).all()


CHAPTER = definitions("06_benchmark", rules=SimpleNamespace(alpha=0.05))


def test_bootstrap_is_stratified_and_seeded() -> None:
    values = np.array([[1.0, 10.0], [1.0, 30.0]])  # one source without spread, one with
    low, high = CHAPTER["stratified_bootstrap"](values)
    assert (low, high) == (5.5, 15.5)  # 10s or 30s only in the second source, never a 1 there
    assert (low, high) == CHAPTER["stratified_bootstrap"](values)


def test_power_and_detectable_agree() -> None:
    power, detectable = CHAPTER["power"], CHAPTER["detectable"]
    assert power(detectable(sd=0.5, n_seeds=3), 0.5, 3, sides=2) == pytest.approx(0.8, abs=1e-3)
    assert power(1.0, 0.5, 10, sides=2) > power(1.0, 0.5, 3, sides=2)
    assert power(1.0, 0.001, 5, sides=2) == power(1.0, 0.001, 5, sides=1) == 1, "of what no seed hides"
    assert np.isnan(power(1.0, 0.0, 3, sides=1)) and np.isnan(power(1.0, 0.5, 1, sides=1))
