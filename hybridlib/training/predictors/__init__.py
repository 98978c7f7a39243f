"""Predictors: one file each, and the file's name is the predictor's. A file put here is an arm's choice at once."""

from importlib import import_module
from typing import Any

from hybridlib.training.predictors.base import Predictor


def make_predictor(name: str, **settings: Any) -> Predictor:
    """The predictor defined in `<name>.py`: the class there that is named like the file."""
    module = import_module(f"{__name__}.{name}")
    return getattr(module, name.title().replace("_", ""))(**settings)
