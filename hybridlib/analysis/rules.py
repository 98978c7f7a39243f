"""The schema of `params/criteria.yaml`: thresholds, margins and alpha, and what else was expected or promised before.

Every criterion is judged on the data source that a study names with `judged_on`.
"""

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, ValidationError, model_validator

from hybridlib.analysis.effects import METRICS
from hybridlib.analysis.load import BASELINE, planned
from hybridlib.study.arm import Strict
from hybridlib.study.parameters import PARAMS, read_yaml, refusal
from hybridlib.study.schema import Study


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


class Part(Limits):
    """One threshold on one `metric` of one `arm`; `exceeds` and `acceptable` grade it above and below.

    With `exceeds_peers`, a value that is better than every peer's exceeds it, too.
    """

    metric: Literal[tuple(METRICS)]
    arm: str
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
        """Return whether `value` is on the good side of `threshold`; False where there is no threshold."""
        if threshold is None:
            return False
        return value <= threshold if self.at_least is None else value >= threshold

    @property
    def demand(self) -> str:
        unit = METRICS[self.metric].unit
        return self.text(unit if unit in ("%", "×") else "")


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
    """Every run of `study` went through all phases with a finite loss. Of other studies only those that name it in
    `also_reads` have this criterion."""

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


class Rules(Strict):
    """All of `params/criteria.yaml`."""

    alpha: float = Field(gt=0, lt=1)
    family: list[str]
    phase_mix: dict[Literal["full", "predict", "correct"], Share]
    criteria: dict[str, Criterion] = Field(min_length=1)
    stress: dict[StressLimit, float] = Field(min_length=len(get_args(StressLimit)))
    ablation: list[Rung]
    reliability: dict[str, Promise]
    speed: dict[str, Goal]

    @model_validator(mode="after")
    def _names_are_known(self) -> "Rules":
        of = {name: c.of for name, c in self.criteria.items() if isinstance(c, ControlsRule)}
        for where, name in [("family", name) for name in self.family] + [(f"{k}.of", v) for k, v in of.items()]:
            if not isinstance(self.criteria.get(name), MeasuredRule):
                raise ValueError(f"{where}: {name!r} is no measured criterion of this file")
        return self

    def of(self, study: Study) -> dict[str, Criterion]:
        """Return the criteria that `study` has: all but those about another study that it does not read."""
        read = (study.study, *study.also_reads)
        return {n: c for n, c in self.criteria.items() if not isinstance(c, ScalesRule) or c.study in read}

    def subject(self, study: Study) -> str:
        """Return the arm that chapters show in detail: the first measured criterion's, or where the plan of `study`
        lacks it, the plan's first arm that predicts."""
        first = next(rule for rule in self.criteria.values() if isinstance(rule, MeasuredRule)).parts[0].arm
        there = {run.arm: run for _, run, _ in planned(study) if run.data == study.judged}
        predicting = [arm for arm, run in there.items() if run.role == "arm" and run.schedule]
        return first if first in there else next(iter(predicting), first)

    @property
    def mix(self) -> str:
        return ", ".join(f"{share.text('%', 100)} {phase.capitalize()}" for phase, share in self.phase_mix.items())


def read_rules(path: Path = PARAMS / "criteria.yaml") -> Rules:
    """Return the rules in the file `path`; raise `ParameterError` naming the file, the key and the value if wrong."""
    try:
        return Rules(**read_yaml(path))
    except ValidationError as error:
        raise refusal(path, error) from None
