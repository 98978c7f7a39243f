"""Predictors: one file an idea. A class in a file put here is an arm's choice at once, by its name in snake case."""

from importlib import import_module
from pathlib import Path
from typing import Any

from hybridlib.method.predictors.base import Predictor, defined


def make_predictor(name: str, **settings: Any) -> Predictor:
    """Return a predictor by name, as a study's parameters give it.

    Args:
        name: a class's name in snake case; one of a file here, or of any subclass of `Predictor` defined so far, in a
            notebook's cell say.
        settings: the arguments of its `__init__`.

    Raises:
        ValueError: for an unknown name, or a setting out of its range.
        TypeError: for a setting that the predictor does not have.
    """
    if name not in defined():
        for file in sorted(Path(__file__).parent.glob("[a-z]*.py")):
            import_module(f"{__name__}.{file.stem}")
    if name not in defined():
        raise ValueError(f"no predictor {name!r}; there are {', '.join(sorted(defined()))}")
    return defined()[name](**settings)
