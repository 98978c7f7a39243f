"""HybridTrainer: training in which most steps are predicted instead of computed, and the study of what that is worth.

The method is an optimizer that wraps another one:

    optimizer = HybridOptimizer(inner, model.named_parameters(), PhaseSchedule(...), Spectral(gain=3.0))

What stands in `__all__` is loaded when it is first asked for, so that reading a study's parameters loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybridlib.method.optimizer import HybridOptimizer
    from hybridlib.method.predictors.base import History, Hold, Predictor
    from hybridlib.method.predictors.extrapolation import Dmd, Drift, Linear, Ridge
    from hybridlib.method.predictors.nesterov import Nesterov
    from hybridlib.method.predictors.spectral import Sham, Spectral
    from hybridlib.method.predictors.wnn import Wnn
    from hybridlib.method.schedule import Phase, PhaseSchedule

__all__ = [
    "Dmd", "Drift", "History", "Hold", "HybridOptimizer", "Linear", "Nesterov", "Phase", "PhaseSchedule",
    "Predictor", "Ridge", "Sham", "Spectral", "Wnn",
]  # fmt: skip
_DEFINED_IN = {
    "optimizer": "HybridOptimizer",
    "predictors.base": "History Hold Predictor",
    "predictors.extrapolation": "Dmd Drift Linear Ridge",
    "predictors.nesterov": "Nesterov",
    "predictors.spectral": "Sham Spectral",
    "predictors.wnn": "Wnn",
    "schedule": "Phase PhaseSchedule",
}


def __getattr__(name: str) -> Any:
    for module, names in _DEFINED_IN.items():
        if name in names.split():
            return getattr(import_module(f"hybridlib.method.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
