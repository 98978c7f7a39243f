"""Which predictors there are, and what their settings may be.

It knows no torch and reads predictors from their source: parameters are refused before anything heavy is imported.
"""

import ast
import difflib
import inspect
import sys
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Range:
    """Bounds of a number: at least `ge`, above `gt`, at most `le`, below `lt`; None is no bound."""

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
        return " and ".join(
            f"{sign} {getattr(self, name):g}" for name, sign in signs.items() if getattr(self, name) is not None
        )


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
    if kind in (int, float) and not (abs(value) <= sys.float_info.max and all(value in bound for bound in bounds)):
        return f"must be {wanted}"
    return ""


def instead(name: str, known: Iterable[str]) -> str:
    """Return what to write instead of `name`: the nearest of `known`, or all where none is near."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return (
        f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}" if known else "there are none"
    )


def kinds_of(init: Callable[..., None]) -> dict[str, Any]:
    """Return the type annotations of `init` by argument; `Any` for one that names what is not to be found."""
    try:
        return get_type_hints(init, include_extras=True)
    except Exception:  # whatever a predictor of one's own is annotated with
        return {name: Any if isinstance(kind, str) else kind for name, kind in inspect.get_annotations(init).items()}


def checked(init: Callable[..., None]) -> Callable[..., None]:
    """Return `init`, an `__init__`, checked: a wrong argument raises `ValueError` with class, setting and value."""
    signature = inspect.signature(init)

    @wraps(init)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        kinds = kinds_of(init)
        for name, value in signature.bind(self, *args, **kwargs).arguments.items():
            if name in kinds and (said := problem(value, kinds[name])):
                raise ValueError(f"{type(self).__name__}: {name} = {value!r}: {said}")
        init(self, *args, **kwargs)

    return wrapper


FOLDER = Path(__file__).parent / "predictors"
BASE = "hybridlib.method.predictors.base"
Kinds = dict[str, Any]  # a setting's name -> the type annotation of what it may be


def predictor_files() -> list[Path]:
    """Return the files that may define predictors; not what an editor or JupyterLab leaves beside them."""
    return [path for path in sorted(FOLDER.glob("[a-z]*.py")) if path.is_file()]


def predictor_settings() -> dict[str, Kinds]:
    """Return every predictor's settings by its name: those of files in `method/predictors/`, and those defined so far.

    A predictor is a class; its settings are the arguments of its `__init__`, or of that of the class it derives from.
    """
    found = {name: kinds for name, (_, kinds) in catalogue().items()}
    if base := sys.modules.get(BASE):  # a class in a notebook's cell
        for name, cls in base.defined().items():
            found.setdefault(name, hinted(cls))
    return found


def catalogue() -> dict[str, tuple[list[Path], Kinds]]:
    """Return, of every predictor in `method/predictors/` by its name, the files that define it, and its settings."""
    return of_files(tuple((path, path.stat().st_mtime_ns) for path in predictor_files()))


@cache
def of_files(files: tuple[tuple[Path, int], ...]) -> dict[str, tuple[list[Path], Kinds]]:
    """Return the catalogue of these `files`, each given with the time when it was last changed."""
    trees = {path: tree for path, _ in files if (tree := parsed(path))}
    found = [(path, node) for path, tree in trees.items() for node in tree.body if isinstance(node, ast.ClassDef)]
    classes = {node.name: node for _, node in found}
    told: dict[str, tuple[list[Path], Kinds]] = {}
    for path, node in found:
        if not abstract(node):
            told.setdefault(snake(node.name), ([], written_kinds(node, classes)))[0].append(path)
    return told


def defined_twice(name: str) -> str:
    """Say which files define the predictor `name` if several do, as a copy beside the original; else return ""."""
    files = [path.name for path in catalogue().get(name, ([], {}))[0]]
    return f"predictor {name!r}: defined in {' and in '.join(files)}: rename one" if len(files) > 1 else ""


def abstract(cls: ast.ClassDef) -> bool:
    """Return whether the class `cls` leaves a method to those that derive from it."""
    methods = [node for node in cls.body if isinstance(node, ast.FunctionDef)]
    return any("abstractmethod" in ast.unparse(mark) for method in methods for mark in method.decorator_list)


def broken_files() -> list[str]:
    """Return, for each file of predictors that is no Python, where and why."""
    return [said for path in predictor_files() if (said := parsed(path, tell=True))]


def no_predictor(name: str, known: Iterable[str]) -> str:
    """Say that there is no predictor `name` among those `known`, and which files of predictors are no Python."""
    return "; ".join([f"no predictor {name!r}: {instead(name, known)}", *broken_files()])


def parsed(path: Path, tell: bool = False) -> Any:
    """Return the syntax tree of the file `path`, None if it is no Python; if `tell`, what is wrong, None if nothing."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8-sig"))
    except (SyntaxError, ValueError, OSError) as error:
        place = f"{path}, line {error.lineno}: {error.msg}" if isinstance(error, SyntaxError) else f"{path}: {error}"
        return place if tell else None
    return None if tell else tree


def written_kinds(cls: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> Kinds:
    """Return the settings of `cls`, its own or those of the class among `classes` that it derives from."""
    for node in cls.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return {a.arg: evaluated(a.annotation) for a in (node.args.args + node.args.kwonlyargs)[1:]}
    above = [classes[base.id] for base in cls.bases if isinstance(base, ast.Name) and base.id in classes]
    above = [base for base in above if base is not cls]
    others = {name: node for name, node in classes.items() if node is not cls}  # no class is its own base
    return {name: kind for base in reversed(above) for name, kind in written_kinds(base, others).items()}


def evaluated(annotation: ast.expr | None) -> Any:
    """Return the type that `annotation` names; `Any` for one that is known neither to Python nor here."""
    try:
        return Any if annotation is None else eval(ast.unparse(annotation), vars(typing) | globals())
    except Exception:  # whatever a predictor of one's own is annotated with
        return Any


def hinted(cls: type) -> Kinds:
    """Return the settings of the class `cls`."""
    init = inspect.unwrap(cls.__init__)
    kinds = kinds_of(init)
    return {name: kinds.get(name, Any) for name in list(inspect.signature(init).parameters)[1:]}


def snake(name: str) -> str:
    """Return a class's `name` as arms give it: MyOwn is my_own."""
    return "".join(f"_{c.lower()}" if c.isupper() and at else c.lower() for at, c in enumerate(name))
