"""The schema of a study: sizes, data sources, arms, and the plan of what is run; `parameters.py` reads the files.

Knows no torch, so that a plan can be made, and a bad file refused, before anything heavy is imported.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from hybridlib.study.run import Arm, Model, Run, Source, Strict

# What a run takes from its study, if its arm does not say otherwise.
SHAPE = ("steps", "batch_size", "seq_len", "log_every", "eval_every", "eval_batches", "snapshot_every", "threads")
Seed = Annotated[int, Field(ge=0)]


class PlanLine(Strict):
    """A line of the plan: arms x data x seeds; `full: true` leaves it to `--full`."""

    arms: list[str] = Field(min_length=1)
    data: list[str] = Field(min_length=1)
    seeds: list[Seed] | None = None
    full: bool = False


class Timing(Strict):
    """How speed is measured at a study's size: turns of each contender, real steps a turn."""

    rounds: int = Field(default=5, ge=1)
    real_steps: int = Field(default=8, ge=1)


class Study(Strict):
    """A study: sizes, data sources, arms, and the plan of what is run in each stage.

    `leave_out` names stages that are not for this size: their chapters would take more memory or time than they tell.
    """

    study: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    about: str = ""
    model: Model
    sources: dict[str, Source] = Field(min_length=1)
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    seq_len: int = Field(ge=2)
    log_every: int = Field(default=10, ge=1)
    eval_every: int = Field(default=20, ge=1)
    eval_batches: int = Field(default=16, ge=1)
    snapshot_every: int = Field(default=80, ge=1)
    threads: int = Field(default=2, ge=1)
    seeds: list[Seed] = Field(min_length=1)
    pilot_seeds: list[Seed] = []
    arms: dict[str, Arm] = Field(min_length=1)
    plan: dict[Literal["benchmark", "stress", "ablation"], list[PlanLine]] = {}
    chapters: dict[str, dict[str, Any]] = {}
    leave_out: list[str] = []
    timing: Timing = Timing()

    @model_validator(mode="after")
    def _plan_is_possible(self) -> "Study":
        if shared := sorted(set(self.seeds) & set(self.pilot_seeds)):
            raise ValueError(f"seeds {shared} are both reported and pilot seeds: tuning may not see a reported seed")
        for stage, sweeps in self.plan.items():
            for sweep in sweeps:
                for arm in sweep.arms:
                    for data in sweep.data:
                        self.run(arm, data, (sweep.seeds or self.seeds)[0], where=f"plan.{stage}")
        return self

    def run(self, arm: str, data: str, seed: int, where: str = "run") -> Run:
        """The run of one arm on one data source and seed; raises `ValueError` for an unknown name or an impossible mix."""
        for name, known, what in ((arm, self.arms, "arm"), (data, self.sources, "data source")):
            if name not in known:
                raise ValueError(f"{where}: no {what} {name!r}; there are {', '.join(known)}")
        shape = {k: getattr(self, k) for k in SHAPE}
        given = {k: v for k, v in self.arms[arm].model_dump().items() if v is not None}
        names = dict(study=self.study, arm=arm, data=data, seed=seed)
        try:
            return Run(**shape | given | names, model=self.model, source=self.sources[data])
        except ValidationError as error:
            raise ValueError("; ".join(f"arms.{arm} on {data}: {e['msg']}" for e in error.errors())) from None
