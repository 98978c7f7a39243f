"""Sweeps of settings around a study: tuning, ablations, other models and texts; `training/trials.py` trains them.

`params/research/<study>.yaml` says what is asked. A trial is a run like any other, with its records under
`outputs/<study>/research/<sweep>/runs/`.
"""

import itertools
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError, model_validator

from hybridlib.method.settings import instead
from hybridlib.study.arm import Strict
from hybridlib.study.parameters import PARAMS, ParameterError, read_yaml, refusal
from hybridlib.study.run import Run
from hybridlib.study.schema import Seeds, Study

Question = TypeVar("Question", bound=Strict)
EVAL_EVERY = 50  # steps: evaluation is off the clock, but not free
YARDSTICK = "yardstick_"  # sweeps of an optimizer, tuned, each trial decayed for exactly its steps; its name follows
COMPARED = "worth_of_"  # sweeps of arms that are measured; the optimizer under them follows
EQUAL_TIME = "_in_equal_time"  # ends the name of such a sweep whose lengths take the time of the arm that is judged


class Sweep(Strict):
    """One question: an arm of the study under other settings, each named by a dotted path into a run's parameters.

    Trials use the source `data`, by default the one that the study is judged on, and are trained with each of `seeds`.
    `settings` hold for every trial. The trials are the `variants`, by name, and all combinations of the `grid`.
    """

    about: str
    arm: str = "hybrid"
    data: str | None = None
    seeds: Seeds
    settings: dict[str, Any] = {}
    variants: dict[str, dict[str, Any]] = {}
    grid: dict[str, list[Any]] = {}

    @model_validator(mode="after")
    def _names_differ(self) -> "Sweep":
        if not self.trials():
            raise ValueError("no trial: `variants` or a `grid` must give at least one")
        return self

    def trials(self) -> dict[str, dict[str, Any]]:
        """Return each trial's settings by its name. Raises `ValueError` where two trials have one name."""
        combinations = itertools.product(*self.grid.values()) if self.grid else ()
        on_grid = [dict(zip(self.grid, values)) for values in combinations]
        named = [(",".join(f"{k.rsplit('.', 1)[-1]}={short(v)}" for k, v in point.items()), point) for point in on_grid]
        found: dict[str, dict[str, Any]] = {}
        for name, own in [*self.variants.items(), *named]:
            if name in found:
                raise ValueError(f"two trials are called {name!r}")
            found[name] = self.settings | own
        return found


def short(value: Any) -> str:
    """Return `value` as a part of a folder's name."""
    return "-".join(map(str, value.values())) if isinstance(value, dict) else str(value)


def path(study: Study) -> Path:
    """Return the file that holds the sweeps around `study`."""
    return PARAMS / "research" / f"{study.study}.yaml"


def sweeps(study: Study) -> dict[str, Sweep]:
    """Return every sweep around `study` by name, none without a file. Raises `ParameterError` for a bad one."""
    return questions(path(study), Sweep)


def questions(file: Path, kind: type[Question]) -> dict[str, Question]:
    """Return what `file` asks, each of this `kind`, by name; nothing without a file. Raises `ParameterError`."""
    found = {}
    for name, given in read_yaml(file).items() if file.exists() else ():
        try:
            found[name] = kind(**given)
        except ValidationError as error:
            raise refusal(file, error, name) from None
        except TypeError:
            raise ParameterError(f"{file}: {name}: {given!r}: must map a {kind.__name__.lower()}'s keys") from None
    return found


def chosen(asked: dict[str, Question], names: list[str], what: str, file: Path) -> dict[str, Question]:
    """Return those of `asked`, which are all that `file` asks, that are in `names`; all where no name is given.

    Raises `ParameterError` for a name that is not there; `what` says what it would be the name of.
    """
    if unknown := sorted(set(names) - set(asked)):
        raise ParameterError(f"{file}: no {what} {unknown[0]!r}; there are {', '.join(asked)}")
    return {name: asked[name] for name in names or asked}


def runs(study: Study, name: str, sweep: Sweep) -> list[Run]:
    """Return the trials of `sweep`, which is called `name`, around `study` as runs, seed by seed.

    Raises `ParameterError` for a setting that no run has, or that does not fit.
    """
    found = []
    for seed in sweep.seeds:
        for trial, varied in sweep.trials().items():
            settings = dict(varied)
            arm, data = settings.pop("arm", sweep.arm), sweep.data or study.judged
            names = dict(study=f"{study.study}/research/{name}", arm=trial, about=sweep.about)
            try:
                found.append(changed(study.run(arm, data, seed), settings, **names))
            except ValidationError as error:
                raise refusal(path(study), error, f"{name}: {trial}") from None
            except ValueError as error:
                raise ParameterError(f"{path(study)}: {name}: {trial}: {error}") from None
    return found


def changed(run: Run, settings: dict[str, Any], **names: str) -> Run:
    """Return `run` as a trial on one thread, with `settings` by their dotted paths, and `names` in place of its own.

    Raises `ValueError`, of which `ValidationError` is one, for a setting that no run has, or that does not fit.
    """
    given = run.model_dump() | dict(extend=1.0, threads=1, eval_every=EVAL_EVERY, keep_weights=False) | names
    for place, value in settings.items():
        put(given, place.split("."), value)
    return Run(**given)


def trials(study: Study) -> list[Run]:
    """Return the trials of all sweeps around `study`. Raises `ParameterError`."""
    return [run for name, sweep in sweeps(study).items() for run in runs(study, name, sweep)]


def put(mapping: dict[str, Any], place: list[str], value: Any) -> None:
    """Put `value` into the nested `mapping` at `place`, the keys that lead there.

    Raises `ValueError` for a place that is not there; which settings a predictor has is its own to say.
    """
    *above, key = place
    if place in (["study"], ["seed"], ["data"]):
        raise ValueError(f"{key}: where a trial's records lie: the sweep's name, `seeds` and `data` say it")
    for part in [*above, key]:
        known = mapping if isinstance(mapping, dict) else {}
        if part not in known and not (above == ["predictor"] and isinstance(mapping, dict)):
            raise ValueError(f"no setting {'.'.join(place)!r}: {instead(part, known)}")
        inner, mapping = known, known.get(part)
    inner[key] = deepcopy(value)  # a later setting may reach into it
