"""What a predictor's settings may be: types with ranges, checked where a predictor is made and where a study is read.

Knows no torch, so that a study's parameters can be refused before anything heavy is imported.
"""

import inspect
import math
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any, Callable, Literal, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Range:
    """Bounds of a number: at least `ge`, above `gt`, at most `le`, below `lt`."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    def __str__(self) -> str:
        signs = dict(ge="at least", gt="above", le="at most", lt="below")
        return " and ".join(f"{sign} {getattr(self, name):g}" for name, sign in signs.items() if getattr(self, name) is not None)


Share = Annotated[float, Range(ge=0, le=1)]  # of something, 0 to 1
Momentum = Annotated[float, Range(ge=0, lt=1)]
Positive = Annotated[float, Range(gt=0)]
NotNegative = Annotated[float, Range(ge=0)]
Small = Annotated[float, Range(gt=0, lt=1)]
Natural = Annotated[int, Range(ge=0)]
Count = Annotated[int, Range(ge=1)]
Window = Annotated[int, Range(ge=3)]  # iterates kept; a forecast needs three
Precision = Literal["fp32", "bf16"]  # of matrix products

NAMED = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}


def problem(value: Any, kind: Any) -> str:
    """Return what would be right where `value` is no `kind`, and an empty text where it is one.

    `kind` is a type annotation: bool, int, float or str, a `Literal`, or an `Annotated` number with a `Range`; whatever
    else is not judged. A whole number is a float too; a bool is no number; numbers are finite.
    """
    if get_origin(kind) is Literal:
        return "" if value in get_args(kind) else f"must be one of {', '.join(map(str, get_args(kind)))}"
    bounds = [mark for mark in getattr(kind, "__metadata__", ()) if isinstance(mark, Range)]
    kind = get_args(kind)[0] if bounds else kind
    if kind not in NAMED:
        return ""
    wanted = " ".join([NAMED[kind], *map(str, bounds)])
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        return f"must be {wanted}"
    if kind in (int, float) and not (math.isfinite(value) and all(value in bound for bound in bounds)):
        return f"must be {wanted}"
    return ""


def kinds_of(init: Callable[..., None]) -> dict[str, Any]:
    """Return the type annotations of a function by argument; `Any` for each where one names what is not to be found."""
    try:
        return get_type_hints(init, include_extras=True)
    except Exception:  # whatever a predictor of one's own is annotated with
        return {name: Any if isinstance(kind, str) else kind for name, kind in inspect.get_annotations(init).items()}


def checked(init: Callable[..., None]) -> Callable[..., None]:
    """Wrap an `__init__` so that it raises `ValueError`, naming class, setting and value, for an argument of the wrong kind."""
    signature = inspect.signature(init)

    @wraps(init)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        kinds = kinds_of(init)
        for name, value in signature.bind(self, *args, **kwargs).arguments.items():
            if name in kinds and (said := problem(value, kinds[name])):
                raise ValueError(f"{type(self).__name__}: {name} = {value!r}: {said}")
        init(self, *args, **kwargs)

    return wrapper
