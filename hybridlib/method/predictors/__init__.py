"""Predictors: one file an idea. A class in a file put here is an arm's choice at once, by its name in snake case."""

from importlib import import_module
from typing import Any

from hybridlib.method.predictors.base import Predictor, defined
from hybridlib.method.settings import catalogue, defined_twice, no_predictor


def make_predictor(name: str, **settings: Any) -> Predictor:
    """Return a predictor by name, as a study's parameters give it.

    Args:
        name: a class's name in snake case; one of a file here, or of any subclass of `Predictor` defined so far, in a
            notebook's cell say.
        settings: the arguments of its `__init__`.

    Raises:
        ValueError: for an unknown name, one that two files define, a file that cannot be imported, or a setting out of
            its range.
        TypeError: for a setting that the predictor does not have.
    """
    if twice := defined_twice(name):
        raise ValueError(twice)
    if name not in defined():
        there = catalogue()
        if name not in there:
            raise ValueError(no_predictor(name, there | defined()))
        (file, *_), _ = there[name]
        try:
            import_module(f"{__name__}.{file.stem}")
        except Exception as error:  # whatever a file of one's own raises
            raise ValueError(f"{file}: cannot be imported: {error!r}") from error
        if name not in defined():
            raise ValueError(f"{file}: {name!r} must derive from Predictor and define predict")
    return defined()[name](**settings)
