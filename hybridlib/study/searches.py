"""Searches for an arm's best settings on pilot seeds; `training/tuning.py` runs them.

`params/tuning/<study>.yaml` says what is asked. Every trial is a row of `outputs/<study>/tuning/<search>.csv`, which is
all that the next trial depends on.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import Field, ValidationError, model_validator

from hybridlib.study import parameters, progress
from hybridlib.study.arm import Strict
from hybridlib.study.parameters import ParameterError, refusal
from hybridlib.study.run import Run
from hybridlib.study.schema import Seeds, Study
from hybridlib.study.sweeps import changed, put, questions
from hybridlib.training import NUMERICS

MARGIN = 0.1  # of a range: a best setting so near to an end may have a better one beyond it


class Range(Strict):
    """Where a setting is searched: from `low` to `high`, evenly or, if `log`, by its logarithm.

    A setting is a whole number where both ends are. An end is a `limit` where the setting itself ends there, so that
    nothing lies beyond it: a best setting may lie there.
    """

    low: int | float
    high: int | float
    log: bool = False
    limit: list[Literal["low", "high"]] = []

    @model_validator(mode="after")
    def _has_an_inside(self) -> "Range":
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"from {self.low} to {self.high}: low must be below high, and above 0 for a logarithm")
        return self

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def at(self, share: float) -> int | float:
        """Return the value at this `share`, 0 to 1, of the way from `low` to `high`, to three digits."""
        low, high = (math.log(end) if self.log else end for end in (self.low, self.high))
        value = low + share * (high - low)
        return self.rounded(math.exp(value) if self.log else value)

    def rounded(self, value: float) -> int | float:
        """Return `value` as it is tried: whole, or to three digits, and in the range."""
        near = round(value) if self.whole else float(f"{value:.3g}")
        return min(max(near, self.low), self.high)

    def share(self, value: float) -> float:
        """Return how far `value` lies on the way from `low`, 0, to `high`, 1."""
        low, high, value = (math.log(each) if self.log else each for each in (self.low, self.high, value))
        return (value - low) / (high - low)


class Search(Strict):
    """One arm's settings, searched in `ranges`, each named by a dotted path into a run's parameters.

    `settings` hold for every trial. A trial is the arm's run on the source that the study is judged on, once with each
    of `seeds`, and counts by the mean of its held-out losses. Of the `trials` the first `start` are spread evenly.
    """

    about: str
    arm: str
    seeds: Seeds
    trials: int = Field(ge=1)
    start: int = Field(default=8, ge=1)
    settings: dict[str, Any] = {}
    ranges: dict[str, Range] = Field(min_length=1)


def path(study: Study) -> Path:
    """Return the file that holds the searches around `study`."""
    return parameters.PARAMS / "tuning" / f"{study.study}.yaml"


def searches(study: Study) -> dict[str, Search]:
    """Return every search around `study` by name, none without a file. Raises `ParameterError` for a bad one."""
    found = questions(path(study), Search)
    for name, search in found.items():
        if reported := sorted(set(search.seeds) - set(study.pilot_seeds)):
            raise ParameterError(f"{path(study)}: {name}: seeds {reported} are no pilot seeds of the study")
        for share in (0.0, 1.0):  # every corner that a setting has must be a possible run
            trial(study, name, search, 0, {place: span.at(share) for place, span in search.ranges.items()})
    return found


def trial(study: Study, name: str, search: Search, number: int, point: dict[str, Any]) -> list[Run]:
    """Return the runs of the trial `number` of `search`, called `name` in `study`, at the settings `point`: one a seed.

    Raises `ParameterError` for a setting that no run has, or that does not fit.
    """
    names = dict(study=f"{study.study}/tuning/{name}", arm=f"t{number:03d}", about=search.about)
    try:
        arms = [study.run(search.arm, study.judged, seed) for seed in search.seeds]
        settings = search.settings | point
        return [changed(run, dict(eval_every=run.steps) | settings, **names) for run in arms]
    except ValidationError as error:
        raise refusal(path(study), error, name) from None
    except ValueError as error:
        raise ParameterError(f"{path(study)}: {name}: {error}") from None


def table(study: Study, name: str) -> Path:
    """Return the file of the trials of the search `name` of `study`."""
    return parameters.OUTPUTS / study.study / "tuning" / f"{name}.csv"


def asked_of(study: Study, name: str, search: Search) -> str:
    """Return what tells trials of `search`, called `name` in `study`, from another's: a hash of what they all share."""
    shared = trial(study, name, search, 0, {})[0].model_dump(mode="json", exclude=progress.UNUSED | {"seed"})
    for place in search.ranges:
        put(shared, place.split("."), None)
    text = json.dumps(shared | dict(numerics=NUMERICS), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def tried(study: Study, name: str, search: Search) -> pd.DataFrame:
    """Return the trials so far of `search`, called `name` in `study`.

    Columns `trial`, the settings, `loss_<seed>`, their mean `loss`, and `asked`, that of `asked_of`, which trials lack
    that were made before it was kept. Raise `ParameterError` where the table lacks a setting or a seed of the search,
    or has a trial that the search as it stands would not make.
    """
    losses = [f"loss_{seed}" for seed in search.seeds]
    file = table(study, name)
    found = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["trial", *search.ranges, *losses])
    if lacking := sorted({"trial", *search.ranges, *losses} - set(found)):
        raise ParameterError(
            f"{file} has no column {lacking[0]}: it is of another search {name!r} than {path(study)} has; move it away"
        )
    for place, span in search.ranges.items():
        if len(outside := found[~found[place].between(span.low, span.high)]):
            raise ParameterError(
                f"{file}: trial {outside.trial.iloc[0]} has {place} = {outside[place].iloc[0]:g}, outside of the range "
                f"in {path(study)}: widen that, or move the file away"
            )
    if "asked" in found and (found.asked.dropna() != asked_of(study, name, search)).any():
        raise ParameterError(
            f"{file} has trials of other settings, or of another NUMERICS, than {path(study)} and today's code have "
            f"for {name}: move it away"
        )
    return found.assign(loss=found[losses].mean(axis=1))


def best(trials: pd.DataFrame, search: Search) -> dict[str, int | float]:
    """Return the settings of the best of `trials`, which `tried` returned for `search`."""
    return point_of(trials.loc[trials.loss.idxmin()], search)


def point_of(values: Mapping[str, float], search: Search) -> dict[str, int | float]:
    """Return the settings of `search` as they are tried, each from its place in `values`, as a row of a table has."""
    return {place: span.rounded(values[place]) for place, span in search.ranges.items()}


def at_an_edge(point: dict[str, int | float], search: Search) -> list[str]:
    """Say of each setting of `point` that lies near an end of its range in `search`, and no limit, what to widen."""
    said = []
    for place, value in point.items():
        span, share = search.ranges[place], search.ranges[place].share(value)
        for end, near in (("low", share <= MARGIN), ("high", share >= 1 - MARGIN)):
            if near and end not in span.limit:
                said.append(f"{place} = {value} lies at the {end} end of {span.low} to {span.high}: widen the range")
    return said
