"""The schema of `params/criteria.yaml`: thresholds, margins and alpha, on which arm, data and metric."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from hybridlib.analysis.effects import METRICS
from hybridlib.study.arm import Strict
from hybridlib.study.parameters import PARAMS, read_yaml, refusal


class Part(Strict):
    """One threshold on one metric of one arm; `exceeds` and `acceptable` grade it above and below."""

    metric: Literal[tuple(METRICS)]
    arm: str
    data: str
    at_least: float | None = None
    at_most: float | None = None
    acceptable: float | None = None
    exceeds: float | None = None
    exceeds_peers: bool = False

    @model_validator(mode="after")
    def _one_threshold_in_order(self) -> "Part":
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("give either at_least or at_most")
        ordered = [x for x in (self.acceptable, self.threshold, self.exceeds) if x is not None]
        if ordered != sorted(ordered, reverse=self.at_least is None):
            raise ValueError("acceptable, the threshold and exceeds must become stricter in this order")
        return self

    @property
    def threshold(self) -> float:
        return self.at_most if self.at_least is None else self.at_least

    def meets(self, value: float, threshold: float | None) -> bool:
        """Return whether a value is on the good side of a threshold; never where there is none."""
        if threshold is None:
            return False
        return value <= threshold if self.at_least is None else value >= threshold

    @property
    def text(self) -> str:
        unit = METRICS[self.metric].unit
        return f"{'≤' if self.at_least is None else '≥'} {self.threshold:g}{' %' if unit == '%' else unit}"


class MeasuredRule(Strict):
    """Every part meets its threshold."""

    kind: Literal["measured"]
    about: str
    parts: list[Part] = Field(min_length=1)


class TestsRule(Strict):
    """All named tests of `results/<results>.csv` pass."""

    __test__ = False  # not pytest's
    kind: Literal["checks"]
    about: str
    results: Literal["functionality", "stress"]
    tests: list[str] = Field(min_length=1)


class PipelineRule(Strict):
    """Every job in `results/pipeline.csv` is complete."""

    kind: Literal["pipeline"]
    about: str


class ScalesRule(Strict):
    """A run of another study went through all phases with a finite loss."""

    kind: Literal["scales"]
    about: str
    study: str


class ControlsRule(Strict):
    """Every control fails the criterion `of` that its arm passes."""

    kind: Literal["controls"]
    about: str
    controls: list[str] = Field(min_length=1)
    of: str


Criterion = Annotated[MeasuredRule | TestsRule | PipelineRule | ScalesRule | ControlsRule, Field(discriminator="kind")]


class Band(Strict):
    """What share of the steps after Warmup a phase may have."""

    at_least: float = Field(ge=0, le=1)
    at_most: float = Field(ge=0, le=1)

    @property
    def text(self) -> str:
        return f"{100 * self.at_least:g}–{100 * self.at_most:g} %"


class Rules(Strict):
    alpha: float = Field(gt=0, lt=1)
    family: list[str]
    phase_mix: dict[Literal["full", "predict", "correct"], Band]
    criteria: dict[str, Criterion] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_known(self) -> "Rules":
        of = {name: c.of for name, c in self.criteria.items() if isinstance(c, ControlsRule)}
        for where, name in [("family", name) for name in self.family] + [(f"{k}.of", v) for k, v in of.items()]:
            if not isinstance(self.criteria.get(name), MeasuredRule):
                raise ValueError(f"{where}: {name!r} is no measured criterion of this file")
        return self

    @property
    def main(self) -> Part:
        """Return the part whose arm and data are those of the verdict that counts."""
        return self.criteria["C2"].parts[0]


def read_rules(path: Path = PARAMS / "criteria.yaml") -> Rules:
    """Return the rules in a file; raise `ParameterError` naming the file, the key and the value for a wrong one."""
    try:
        return Rules(**read_yaml(path))
    except ValidationError as error:
        raise refusal(path, error) from None
