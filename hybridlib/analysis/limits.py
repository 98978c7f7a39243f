"""What was expected or promised of a figure beforehand: limits, and what they are limits of."""

from typing import Literal

from pydantic import Field

from hybridlib.analysis.effects import METRICS
from hybridlib.analysis.load import BASELINE
from hybridlib.study.arm import Strict


class Limits(Strict):
    """What a figure should be: `at_least`, `at_most`, or between both; neither where it is only reported."""

    at_least: float | None = None
    at_most: float | None = None

    def text(self, unit: str = "", factor: float = 1.0) -> str:
        """Return `≥ 1.5×`, `≤ 5` or `20–30 %`, the limits times `factor` in `unit`; `reported` without a limit."""
        low, high = (None if limit is None else f"{factor * limit:,g}" for limit in (self.at_least, self.at_most))
        unit = f" {unit}" if unit == "%" else unit
        if low and high:
            return f"{low}–{high}{unit}"
        return f"≥ {low}{unit}" if low else f"≤ {high}{unit}" if high else "reported"

    def admits(self, value: float) -> bool:
        """Return whether `value` lies within the limits."""
        low, high = self.at_least, self.at_most
        return (low is None or value >= low) and (high is None or value <= high)


StressLimit = Literal["detect_steps", "recover_steps", "least_throughput", "share_tolerance"]


class Share(Limits):
    """What share of the steps after Warmup a phase may have."""

    at_least: float = Field(ge=0, le=1)
    at_most: float = Field(ge=0, le=1)


class Rung(Limits):
    """A rung of the ablation: what the `test` `adds` in `arm` to `against`, and the brief's expectation of a metric."""

    test: str
    adds: str
    arm: str
    against: str = BASELINE
    metric: Literal[tuple(METRICS)] | None = None


class Promise(Limits):
    """A figure of reliability: what it is about, and what is promised of it."""

    about: str


class Goal(Strict):
    """A ratio of speed or memory: what it must be and what is aimed at, here and at GPT-2 Small's size."""

    about: str
    must: Limits = Limits()
    aim: Limits = Limits()
    must_gpt2_small: Limits | None = None
    aim_gpt2_small: Limits | None = None
