"""Sweeps of settings around a study: tuning, ablations, other models and texts; `training/trials.py` trains them.

`params/research/<study>.yaml` says what is asked. A trial is a run like any other, with its records under
`outputs/<study>/research/<sweep>/runs/`.
"""

import itertools
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from hybridlib.study.parameters import PARAMS, ParameterError, read_yaml
from hybridlib.study.run import Run, Strict
from hybridlib.study.schema import Seed, Study

EVAL_EVERY = 50  # steps: evaluation is off the clock, but not free


class Sweep(Strict):
    """One question: an arm of the study under other settings, each named by a dotted path into a run's parameters.

    `settings` hold for every trial. The trials are the `variants`, by name, and all combinations of the `grid`.
    """

    about: str
    arm: str = "hybrid"
    data: str = "text"
    seeds: list[Seed] = Field(min_length=1)
    settings: dict[str, Any] = {}
    variants: dict[str, dict[str, Any]] = {}
    grid: dict[str, list[Any]] = {}

    def trials(self) -> dict[str, dict[str, Any]]:
        """Settings by the trial's name, each over those that hold for all."""
        combinations = itertools.product(*self.grid.values()) if self.grid else ()
        on_grid = [dict(zip(self.grid, values)) for values in combinations]
        named = {",".join(f"{k.rsplit('.', 1)[-1]}={short(v)}" for k, v in point.items()): point for point in on_grid}
        return {name: self.settings | own for name, own in (self.variants | named).items()}


def short(value: Any) -> str:
    """A value as a part of a folder's name."""
    return "-".join(map(str, value.values())) if isinstance(value, dict) else str(value)


def path(study: Study) -> Path:
    return PARAMS / "research" / f"{study.study}.yaml"


def sweeps(study: Study) -> dict[str, Sweep]:
    """Every sweep around a study, none where it has no such file. Raises `ParameterError` for one that can't be used."""
    file, found = path(study), {}
    for name, given in read_yaml(file).items() if file.exists() else ():
        try:
            found[name] = Sweep(**given)
        except (ValidationError, TypeError) as error:
            raise ParameterError(f"{file}: {name}: {error}") from None
    return found


def runs(study: Study, name: str, sweep: Sweep) -> list[Run]:
    """The sweep's trials as runs, seed by seed. Raises `ParameterError` for a setting that no run has."""
    found = []
    for seed in sweep.seeds:
        for trial, varied in sweep.trials().items():
            settings = dict(varied)
            arm = settings.pop("arm", sweep.arm)
            given = study.run(arm, sweep.data, seed).model_dump() | dict(extend=1.0, threads=1, eval_every=EVAL_EVERY)
            given |= dict(study=f"{study.study}/research/{name}", arm=trial, about=sweep.about)
            try:
                for place, value in settings.items():
                    put(given, place.split("."), value)
                found.append(Run(**given))
            except (ValidationError, KeyError, ValueError) as error:
                raise ParameterError(f"{path(study)}: {name}: {trial}: {error}") from None
    return found


def put(mapping: dict[str, Any], place: list[str], value: Any) -> None:
    """Sets a nested key. Raises KeyError for a place that is not there; a predictor's settings are its own."""
    *above, key = place
    for part in above:
        mapping = mapping[part]
    if key not in mapping and above != ["predictor"]:
        raise KeyError(f"no setting {'.'.join(place)}")
    mapping[key] = value
