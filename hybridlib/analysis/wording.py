"""How figures are written: numbers with units and intervals in sentences."""

import math
from collections.abc import Iterable

from hybridlib.analysis.statistics import ALPHA, Effect

INTERVAL = f"{100 * (1 - ALPHA):g} % interval"


def number(value: float | None, digits: int = 3) -> str:
    """Return `value` with `digits` significant digits, and with at least one decimal below 1000; a dash for no value.

    Sizes below 1e-3 and from 1e6 on are written with an exponent.
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.{digits - 1}e}".replace("-", "−")
    if value == round(value):
        return fixed(value, 0)
    return fixed(value, max(0 if abs(value) >= 1000 else 1, digits - 1 - math.floor(math.log10(abs(value)))))


def fixed(value: float, decimals: int) -> str:
    """Return `value` with that many `decimals` and a true minus sign; never −0."""
    return f"{value + 0.0:z.{decimals}f}".replace("-", "−")


def with_unit(value: float, unit: str, sign: bool = False) -> str:
    """Return `value` with its `unit` (`2.13×`, `4.08 nats`), and with a plus `sign` if asked for (`+0.52 %`)."""
    text = number(value)
    plus = "+" if sign and value > 0 else ""
    return f"{plus}{text}{_spaced(unit)}" if text != "–" else text


def _spaced(unit: str) -> str:
    return unit if unit in ("", "×") else f" {unit}"


def estimate(effect: Effect, unit: str) -> str:
    """Return `effect` in `unit` with its interval, `2.13× [2.10, 2.17]`.

    The interval's width decides the decimals; a lower end above 0 gets up to two more, so that it is not written as 0.
    """
    width = effect.high - effect.low
    if not (math.isfinite(width) and width > 0):
        return with_unit(effect.value, unit)
    decimals = sensible_decimals(effect.value, width / 2, 4)
    if effect.low > 0 and not float(fixed(effect.low, decimals)):  # a ratio of 0 would say "never"
        decimals = min(decimals + 2, -math.floor(math.log10(effect.low)))
    value, low, high = (fixed(x, decimals) for x in effect[:3])
    return f"{value}{_spaced(unit)} [{low}, {high}]"


def unsigned(effect: Effect, unit: str = "%") -> str:
    """Return `effect` in `unit` without its sign, `1.57 % [1.29, 1.85] below`; else it is `above`."""
    if effect.value >= 0:
        return f"{estimate(effect, unit)} above"
    return f"{estimate(effect._replace(value=-effect.value, low=-effect.high, high=-effect.low), unit)} below"


def p_value(p: float | None) -> str:
    """Return `p` as `0.013` or `< 0.0001`; a dash where no test was made."""
    return "–" if p is None or math.isnan(p) else "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.01 else f"{p:.3f}"


def p_is(p: float) -> str:
    """Return `p` for a sentence: `p = 0.013` or `p < 0.0001`."""
    return f"p {p_value(p)}" if p < 1e-4 else f"p = {p_value(p)}"


def sensible_decimals(value: float, spread: float, most: int) -> int:
    """Return the decimals that show two digits of the `spread`, and at `most` so many digits of the `value`."""
    two = 1 - math.floor(math.log10(spread) + 1e-9)
    return max(0, min(two, most - 1 - math.floor(math.log10(max(abs(value), 1.0)))))


def listed(names: Iterable) -> str:
    """Return the `names` as `a`, `a and b`, or `a, b and c`; `none` where there is none."""
    names = [str(n) for n in names]
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]])) or "none"


def counted(count: int, noun: str) -> str:
    """Return `count` and the `noun`, which takes an s: `no seeds`, `1 seed`, `3 seeds`."""
    return f"{count or 'no'} {noun}{'s' * (count != 1)}"
