"""What a computed step is worth: closed forms, and properties over any yardstick."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridlib.analysis.research import TRIAL_COLUMNS
from hybridlib.analysis.worth import COLUMNS, change, crossing, equivalent_steps, of_all, paired, ratio, standing, worth

LENGTHS = np.array([250.0, 410.0, 600.0, 800.0, 1000.0, 1300.0])


def law(steps: np.ndarray, slope: float = 0.4) -> np.ndarray:
    """A loss that falls by the same with each doubling."""
    return 6 - slope * np.log(steps)


@given(st.floats(250, 1300), st.floats(0.01, 2))
def test_a_loss_that_falls_with_the_logarithm_of_steps_is_read_back_exactly(steps: float, slope: float) -> None:
    found = equivalent_steps(float(law(np.array(steps), slope)), LENGTHS, law(LENGTHS, slope))
    assert found == pytest.approx(steps, rel=1e-9) or steps in (250, 1300)


@given(st.lists(st.floats(3, 6), min_size=6, max_size=6), st.floats(3, 6), st.floats(0, 1))
def test_a_lower_loss_is_never_worth_less(losses: list[float], loss: float, less: float) -> None:
    high, low = (equivalent_steps(each, LENGTHS, np.array(losses)) for each in (loss, loss - less))
    assert np.isnan(high) or np.isnan(low) or low >= high - 1e-6


@pytest.mark.parametrize("beyond", [law(np.array(249.0)) + 1e-6, law(np.array(1301.0)), np.inf, np.nan])
def test_nothing_is_said_outside_of_what_was_tried(beyond: float) -> None:
    assert np.isnan(equivalent_steps(float(beyond), LENGTHS, law(LENGTHS)))


def test_a_longer_run_that_ended_no_better_does_not_count() -> None:
    losses = np.array([5.0, 4.5, 4.6, 4.2, 4.1, 4.0])
    assert equivalent_steps(4.5, LENGTHS, losses) == pytest.approx(410, abs=200)
    assert 600 < equivalent_steps(4.35, LENGTHS, losses) < 800


def trials() -> pd.DataFrame:
    rows = [dict(sweep="yardstick_adamw", trial=str(int(n)), seed=seed, steps=n, real_steps=n,
                 held_out_loss=law(n) + 0.01 * seed, train_s=1.0) for n in LENGTHS for seed in (1, 2)]  # fmt: skip
    rows += [dict(sweep="worth_of_adamw", trial="hybrid_tuned", seed=seed, steps=970, real_steps=410,
                  held_out_loss=law(np.array(820.0)) + 0.01 * seed, train_s=9.0) for seed in (1, 2)]  # fmt: skip
    return pd.DataFrame(rows, columns=TRIAL_COLUMNS)


def test_each_seed_is_measured_by_its_own_yardstick() -> None:
    found = worth(trials())
    assert list(found) == COLUMNS and set(found.base) == {"adamw"} and len(found) == 2
    np.testing.assert_allclose(found.equivalent_adamw_steps, 820.0)
    assert ratio(found).value == pytest.approx(2.0)
    assert ratio(found[:0]).n == 0 and ratio(found.assign(equivalent_adamw_steps=[800, np.nan])).n == 0
    alone = trials()
    assert worth(alone[alone.sweep != "yardstick_adamw"]).equivalent_adamw_steps.isna().all()


def test_the_standing_counts_standard_errors_of_the_paired_differences() -> None:
    ours, theirs = pd.Series([1.0, 2.0, 3.0, 4.0]), pd.Series([1.1, 2.3, 3.1, 4.3])
    assert standing(ours, theirs) == pytest.approx(0.2 * 2 / np.std([0.1, 0.3, 0.1, 0.3], ddof=1))
    assert standing(theirs, ours) == pytest.approx(-standing(ours, theirs))


def test_arms_are_paired_by_the_seeds_that_both_have_and_a_mean_is_of_all_seeds() -> None:
    rows = [dict(arm="ours", seed=seed, held_out_loss=float(seed)) for seed in (1, 2, 3)]
    rows += [dict(arm="theirs", seed=seed, held_out_loss=2.0 * seed) for seed in (3, 2, 4)]
    ours, theirs = paired(pd.DataFrame(rows), "ours", "theirs")
    assert ours.tolist() == [2.0, 3.0] and theirs.tolist() == [4.0, 6.0]
    assert change(ours, theirs).value == pytest.approx(-50) and change(theirs, ours).value == pytest.approx(100)
    assert not len(paired(pd.DataFrame(rows), "ours", "others")[0])
    assert of_all(ours) == 2.5 and np.isnan(of_all(pd.Series([1.0, np.nan])))


TOKENS = np.array([64.0, 256.0, 1024.0, 4096.0])


@given(st.floats(65, 4095), st.floats(0.1, 2), st.floats(0.3, 3))
def test_where_a_dear_step_pays_is_read_back_exactly(tokens: float, power: float, worth_ratio: float) -> None:
    cost = worth_ratio * (TOKENS / tokens) ** -power
    assert crossing(TOKENS, cost, worth_ratio) == pytest.approx(tokens, rel=1e-6)


@pytest.mark.parametrize(
    ("cost", "found"), [([1, 1, 1, 1], 0.0), ([3, 3, 3, 3], np.inf), ([1, 3, 1, 1], np.nan), ([3, 1, 3, 1], np.nan)]
)
def test_a_crossing_is_said_only_where_there_is_one(cost: list[float], found: float) -> None:
    np.testing.assert_equal(crossing(TOKENS, np.array(cost), 2.0), found)
