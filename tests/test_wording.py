"""How numbers are written."""

import math

import pytest
from chapter import definitions

from hybridlib.analysis import wording
from hybridlib.analysis.statistics import Effect


@pytest.mark.parametrize(
    "value, text",
    [
        (2.1347, "2.13"),
        (0.05, "0.0500"),
        (-3.0, "−3"),
        (1234.5, "1234"),
        (110.82, "110.8"),
        (math.inf, "∞"),
        (math.nan, "–"),
        (1e-5, "1.00e−05"),
        (-0.0, "0"),
    ],
)
def test_numbers_are_written_with_three_digits(value, text) -> None:
    assert wording.number(value) == text


@pytest.mark.parametrize(
    "effect, unit, text",
    [
        (Effect(2.1347, 2.0283, 2.2731, 0.01, 3), "×", "2.13× [2.03, 2.27]"),
        (Effect(-0.0004, -1.4, 1.3, 0.9, 3), "%", "0.0 % [−1.4, 1.3]"),
        (Effect(110.82, 110.81, 110.83, 0.9, 3), "%", "110.8 % [110.8, 110.8]"),
        (Effect(1.8, math.nan, math.nan, 1.0, 3), "×", "1.80×"),
        (Effect(2.83, 0.35, 22.7, 0.2, 2), "×", "2.8× [0.3, 22.7]"),
        (Effect(40.0, 0.00012, 9000.0, 0.2, 2), "×", "40.00× [0.00, 9000.00]"),
    ],
)
def test_an_interval_decides_the_decimals(effect, unit, text) -> None:
    assert wording.estimate(effect, unit) == text


def test_mean_and_sd_share_their_decimals() -> None:
    mean_sd = definitions("06_benchmark")["mean_sd"]
    assert mean_sd([4.07, 4.08, 4.09]) == "4.080 ± 0.010"
    assert mean_sd([14350.0, 14509.0, 14680.0]) == "14513 ± 165"
    assert mean_sd([453, 453]) == "453 ± 0" and mean_sd([4.07]) == "4.070" and mean_sd([]) == "–"


def test_lists_in_words() -> None:
    assert [wording.listed(x) for x in ([], "a", "ab", "abc")] == ["none", "a", "a and b", "a, b and c"]


def test_an_effect_is_said_without_its_sign() -> None:
    found = Effect(-1.57, -1.85, -1.29, 0.01, 8)
    assert wording.unsigned(found) == "1.57 % [1.29, 1.85] below"
    assert wording.unsigned(found._replace(value=1.57, low=1.29, high=1.85), "nats") == "1.57 nats [1.29, 1.85] above"
    assert wording.unsigned(Effect(-2.0, math.nan, math.nan, math.nan, 1)) == "2 % below"
