"""HybridTrainer: training in which most steps are predicted instead of computed, and the study of what that is worth.

The method is an optimizer that wraps another one:

    optimizer = HybridOptimizer(inner, model.named_parameters(), PhaseSchedule(...), Spectral(gain=3.0))

What stands in `__all__` is loaded when it is first asked for, so that reading a study's parameters loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybridlib.method.optimizer import HybridOptimizer
    from hybridlib.method.predictors.autoregression import Dmd, Ridge
    from hybridlib.method.predictors.base import History, Predictor
    from hybridlib.method.predictors.controls import Hold, Sham
    from hybridlib.method.predictors.extrapolation import Drift, Linear
    from hybridlib.method.predictors.nesterov import Nesterov
    from hybridlib.method.predictors.spectral import Polar, Spectral
    from hybridlib.method.predictors.wnn import Wnn
    from hybridlib.method.schedule import Phase, PhaseSchedule

__all__ = [
    "Dmd",
    "Drift",
    "History",
    "Hold",
    "HybridOptimizer",
    "Linear",
    "Nesterov",
    "Phase",
    "PhaseSchedule",
    "Polar",
    "Predictor",
    "Ridge",
    "Sham",
    "Spectral",
    "Wnn",
]  # fmt: skip
_HOME = dict(
    HybridOptimizer="optimizer", PhaseSchedule="schedule", Phase="schedule", Predictor="predictors.base", History="predictors.base",
    Hold="predictors.controls", Sham="predictors.controls", Linear="predictors.extrapolation", Drift="predictors.extrapolation",
    Ridge="predictors.autoregression", Dmd="predictors.autoregression", Wnn="predictors.wnn", Nesterov="predictors.nesterov",
    Spectral="predictors.spectral", Polar="predictors.spectral",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"hybridlib.method.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
