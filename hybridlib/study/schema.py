"""The schema of a study: sizes, data sources, arms, and the plan of what is run. It knows no torch."""

import itertools
from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from hybridlib.method.settings import instead
from hybridlib.study.arm import Arm, Strict
from hybridlib.study.run import FileName, Model, Run, Seed, Shape, Source

# Stage -> the chapter that argues it. A stage's training, if it has any, comes before its chapter.
CHAPTERS = {
    "question": "00_question",
    "functionality": "01_functionality",
    "phases": "02_phases",
    "predictors": "03_predictors",
    "benchmark": "06_benchmark",
    "memory": "04_memory",
    "ablation": "08_ablation",
    "stress": "07_stress",
    "speed": "12_speed",
    "research": "10_research",
    "failures": "11_failures",
    "report": "09_report",
}
STAGES = tuple(CHAPTERS)


def _distinct(values: list[Any]) -> list[Any]:
    if twice := [value for value, count in Counter(values).items() if count > 1]:
        raise ValueError(f"{twice[0]!r} is given twice")
    return values


Seeds = Annotated[list[Seed], Field(min_length=1), AfterValidator(_distinct)]
Names = Annotated[list[str], Field(min_length=1), AfterValidator(_distinct)]


class PlanLine(Strict):
    """A line of the plan: `arms` x `data` x `seeds` (by default the study's); `full: true` leaves it to `--full`."""

    arms: Names
    data: Names
    seeds: Seeds | None = None
    full: bool = False


class Timing(Strict):
    """How speed is measured at a study's size: `rounds` turns of each contender, `real_steps` computed steps a turn."""

    rounds: int = Field(default=5, ge=1)
    real_steps: int = Field(default=8, ge=1)


class Study(Shape):
    """A study: sizes, data sources, arms, and the plan of what is run in each stage.

    The criteria are judged on the source `judged_on`, by default the first of `sources`. Reported runs use `seeds`,
    tuning uses `pilot_seeds`, and no seed is both. `chapters` gives notebooks their parameters, by name. `leave_out`
    names stages that are not for this size: their chapters would take more memory or time than they tell. `also_reads`
    names other studies whose records this one's chapters read, for a criterion about another size or a comparison.
    """

    study: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=100)
    about: str = ""
    model: Model
    sources: dict[FileName, Source] = Field(min_length=1)
    judged_on: str | None = None
    seeds: Seeds
    pilot_seeds: Annotated[list[Seed], AfterValidator(_distinct)] = []
    arms: dict[FileName, Arm] = Field(min_length=1)
    plan: dict[Literal["benchmark", "stress", "ablation"], list[PlanLine]] = {}
    chapters: dict[Literal[tuple(CHAPTERS.values())], dict[str, Any]] = {}
    leave_out: list[Literal[STAGES]] = []
    also_reads: list[str] = []
    timing: Timing = Timing()

    @property
    def judged(self) -> str:
        """Return the name of the data source on which the criteria are judged."""
        return self.judged_on or next(iter(self.sources))

    def timed_run(self, arm: str) -> Run:
        """Return the run of `arm` that is timed, on the source `judged`, with a pilot seed if there is one."""
        return self.run(arm, self.judged, (self.pilot_seeds or self.seeds)[0])

    @model_validator(mode="after")
    def _plan_is_possible(self) -> "Study":
        if shared := sorted(set(self.seeds) & set(self.pilot_seeds)):
            raise ValueError(f"seeds {shared} are both reported and pilot seeds: tuning may not see a reported seed")
        if self.judged not in self.sources:
            raise ValueError(f"judged_on: no data source {self.judged!r}: {instead(self.judged, self.sources)}")
        for chapter, given in self.chapters.items():
            if own := sorted({"study", "device"} & set(given)):
                raise ValueError(f"chapters.{chapter}.{own[0]}: is what --{own[0]} says: leave it out")
        found: dict[str, Run] = {}
        for stage, lines in self.plan.items():
            for line in lines:
                if pilot := sorted(set(line.seeds or ()) & set(self.pilot_seeds)):
                    raise ValueError(f"plan.{stage}: seeds {pilot} are pilot seeds: what is reported may not use them")
                for arm, data in itertools.product(line.arms, line.data):
                    run = self.run(arm, data, (line.seeds or self.seeds)[0], where=f"plan.{stage}")
                    if (other := found.setdefault(f"{arm}-{data}", run)).arm != arm:
                        both = f"arm {other.arm} on {other.data} and arm {arm} on {data}"
                        raise ValueError(f"plan.{stage}: {both} would share a folder: rename one")
        return self

    def run(self, arm: str, data: str, seed: int, where: str = "run") -> Run:
        """Return the run of `arm` on `data` with `seed`.

        Raises `ValueError` for a name that the study lacks, with `where` in front, and for settings that do not fit.
        """
        for name, known, what in ((arm, self.arms, "arm"), (data, self.sources, "data source")):
            if not isinstance(name, str) or name not in known:
                raise ValueError(f"{where}: no {what} {name!r}: {instead(str(name), known)}")
        shape = {k: getattr(self, k) for k in Shape.model_fields}
        given = {k: v for k, v in self.arms[arm].model_dump().items() if v is not None}
        names = dict(study=self.study, arm=arm, data=data, seed=seed)
        try:
            return Run(**shape | given | names, model=self.model, source=self.sources[data])
        except ValidationError as error:
            messages = [fault["msg"].removeprefix("Value error, ") for fault in error.errors()]
            raise ValueError("; ".join(f"arms.{arm} on {data}: {message}" for message in messages)) from None
