"""The schema of `params/criteria.yaml`: thresholds, margins and alpha, and what else was expected or promised before.

Every criterion is judged on the data source that a study names with `judged_on`.
"""

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, ValidationError, model_validator

from hybridlib.analysis.effects import METRICS
from hybridlib.analysis.limits import Goal, Limits, Promise, Rung, Share, StressLimit
from hybridlib.analysis.load import planned
from hybridlib.study.arm import Strict
from hybridlib.study.parameters import PARAMS, read_yaml, refusal
from hybridlib.study.schema import Study
from hybridlib.study.sweeps import EQUAL_TIME, YARDSTICK, sweeps


class Part(Limits):
    """One threshold on one `metric` of one `arm`; `exceeds` and `acceptable` grade it above and below.

    With `exceeds_peers`, an arm that is better than every peer, paired by seed and with p < alpha, exceeds it, too.
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
    """Every planned run of `study` that predicts went through all phases with a finite loss.

    Of other studies only those that name it in `also_reads` have this criterion.
    """

    kind: Literal["scales"]
    about: str
    study: str


class ControlsRule(Strict):
    """Every control fails the criterion `of` that its arm passes."""

    kind: Literal["controls"]
    about: str
    controls: list[str] = Field(min_length=1)
    of: str


class WorthPart(Limits):
    """What a computed step of `arm` is worth at least, in the yardstick's; `exceeds` grades it above."""

    arm: str
    at_least: float
    exceeds: float | None = None


class WorthRule(Strict):
    """Every part's ratio meets its threshold, with an interval above 1: how many steps of the `yardstick`, tuned and
    decayed for exactly so many, end at the loss of `computed_steps` of the arm, over these."""

    kind: Literal["worth"]
    about: str
    yardstick: str
    computed_steps: int = Field(ge=1)
    parts: list[WorthPart] = Field(min_length=1)


class PeersRule(Strict):
    """`arm` ends better than every one of `peers`, each tuned, with p below alpha over paired seeds.

    At equal wall-clock than all of them; after equal `computed_steps` than all but the `strongest`, and within
    `within_pct` of that one.
    """

    kind: Literal["peers"]
    about: str
    arm: str
    computed_steps: int = Field(ge=1)
    peers: list[str] = Field(min_length=1)
    strongest: str
    within_pct: float = Field(gt=0)


Kinds = MeasuredRule | WorthRule | PeersRule | TestsRule | PipelineRule | ScalesRule | ControlsRule
Criterion = Annotated[Kinds, Field(discriminator="kind")]


class Rules(Strict):
    """All of `params/criteria.yaml`."""

    alpha: float = Field(gt=0, lt=1)
    family: list[str]
    phase_mix: dict[Literal["full", "predict", "correct"], Share]
    criteria: dict[str, Criterion] = Field(min_length=1)
    stress: dict[StressLimit, float] = Field(min_length=len(get_args(StressLimit)))
    ablation: list[Rung]
    reliability: dict[str, Promise]
    cluster: dict[str, Promise]
    speed: dict[str, Goal]

    @model_validator(mode="after")
    def _names_are_known(self) -> "Rules":
        of = {name: c.of for name, c in self.criteria.items() if isinstance(c, ControlsRule)}
        for where, name in [("family", name) for name in self.family] + [(f"{k}.of", v) for k, v in of.items()]:
            if not isinstance(self.criteria.get(name), MeasuredRule):
                raise ValueError(f"{where}: {name!r} is no measured criterion of this file")
        return self

    def of(self, study: Study) -> dict[str, Criterion]:
        """Return the criteria that `study` has: those about a yardstick, or about equal wall-clock, where it has such
        sweeps, those about another study where it reads that one, and all the others."""
        asked = sweeps(study)

        def has(rule: Criterion) -> bool:
            match rule:
                case ScalesRule():
                    return rule.study in (study.study, *study.also_reads)
                case WorthRule():
                    return YARDSTICK + rule.yardstick in asked
                case PeersRule():
                    return any(name.endswith(EQUAL_TIME) for name in asked)
            return True

        return {name: rule for name, rule in self.criteria.items() if has(rule)}

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
