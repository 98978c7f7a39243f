"""How figures are written in sentences and tables: three significant digits, a unit, an interval, a p-value."""

import math

from hybridlib.analysis.statistics import Effect


def number(value: float, digits: int = 3) -> str:
    """Write with significant digits, at least one decimal below 1000, no exponent for everyday sizes; a dash for no value."""
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
    """Write a number with so many decimals and a true minus sign; nothing is written as −0."""
    return f"{value + 0.0:z.{decimals}f}".replace("-", "−")


def with_unit(value: float, unit: str, sign: bool = False) -> str:
    """Write `2.13×`, `+0.52 %`, `4.08 nats`."""
    text = number(value)
    plus = "+" if sign and value > 0 else ""
    return f"{plus}{text}{_spaced(unit)}" if text != "–" else text


def _spaced(unit: str) -> str:
    return unit if unit in ("", "×") else f" {unit}"


def estimate(effect: Effect, unit: str) -> str:
    """Write `2.13× [2.10, 2.17]`: decimals as the interval's width gives them sense; no brackets without an interval."""
    width = effect.high - effect.low
    if not (math.isfinite(width) and width > 0):
        return with_unit(effect.value, unit)
    decimals = _sensible(effect.value, width / 2, 4)
    value, low, high = (fixed(x, decimals) for x in effect[:3])
    return f"{value}{_spaced(unit)} [{low}, {high}]"


def p_value(p: float) -> str:
    """Write `0.013`, `< 0.0001`, or a dash where no test was made."""
    return "–" if p is None or math.isnan(p) else "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.01 else f"{p:.3f}"


def p_is(p: float) -> str:
    """Write `p = 0.013` or `p < 0.0001`, for a sentence."""
    return f"p {p_value(p)}" if p < 1e-4 else f"p = {p_value(p)}"


def _sensible(value: float, spread: float, most: int) -> int:
    """Return the decimals that show two digits of the spread, and at most so many digits of the value."""
    two = 1 - math.floor(math.log10(spread) + 1e-9)
    return max(0, min(two, most - 1 - math.floor(math.log10(max(abs(value), 1.0)))))


def mean_sd(values) -> str:
    """Write `4.08 ± 0.01` of the values (n_seeds,); the standard deviation is left out for one seed."""
    x = [float(v) for v in values if not math.isnan(v)]
    if not x:
        return "–"
    mean = math.fsum(x) / len(x)
    if len(x) < 2 or math.isinf(mean):
        return number(mean, 4)
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in x) / (len(x) - 1))
    decimals = _sensible(mean, sd, 5) if sd else 0 if mean == round(mean) else 1
    return f"{fixed(mean, decimals)} ± {fixed(sd, decimals)}"


def listed(names) -> str:
    """Write `a`, `a and b`, `a, b and c`; `none` for nothing."""
    names = [str(n) for n in names]
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]])) or "none"
