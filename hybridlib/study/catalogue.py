"""Which predictors there are, and what each takes: read from their source, so that a plan needs no torch."""

import ast
import inspect
import sys
import typing
from pathlib import Path
from typing import Any

from hybridlib.method import settings

FOLDER = Path(__file__).parents[1] / "method" / "predictors"
BASE = "hybridlib.method.predictors.base"
Kinds = dict[str, Any]  # a setting's name -> the type annotation of what it may be


def predictor_settings() -> dict[str, Kinds]:
    """Return every predictor's settings by its name: those of files in `method/predictors/`, and those defined so far.

    A predictor is a class; its settings are the arguments of its `__init__`, or of that of the class it derives from.
    """
    trees = {path: parsed(path) for path in sorted(FOLDER.glob("[a-z]*.py"))}
    classes = {n.name: n for tree in trees.values() if tree for n in tree.body if isinstance(n, ast.ClassDef)}
    shared = {n.name for path, tree in trees.items() if tree and path.stem == "base" for n in tree.body if isinstance(n, ast.ClassDef)}
    found = {snake(name): kinds_of(cls, classes) for name, cls in classes.items() if name not in shared}
    if base := sys.modules.get(BASE):  # a class in a notebook's cell
        for name, cls in base.defined().items():
            found.setdefault(name, hinted(cls))
    return found


def broken_files() -> list[str]:
    """Return, for each file of predictors that is no Python, where and why."""
    return [said for path in sorted(FOLDER.glob("[a-z]*.py")) if (said := parsed(path, tell=True))]


def parsed(path: Path, tell: bool = False) -> Any:
    """Return a file's syntax tree, None for one that is no Python; or, if `tell`, what is wrong with it, None if nothing is."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8-sig"))
    except (SyntaxError, ValueError, OSError) as error:
        place = f"{path}, line {error.lineno}: {error.msg}" if isinstance(error, SyntaxError) else f"{path}: {error}"
        return place if tell else None
    return None if tell else tree


def kinds_of(cls: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> Kinds:
    for node in cls.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return {a.arg: evaluated(a.annotation) for a in (node.args.args + node.args.kwonlyargs)[1:]}
    above = [classes[base.id] for base in cls.bases if isinstance(base, ast.Name) and base.id in classes]
    return {name: kind for base in reversed(above) for name, kind in kinds_of(base, classes).items()}


def evaluated(annotation: ast.expr | None) -> Any:
    """Return the type that an annotation names; `Any` for one that neither Python nor `settings` knows."""
    try:
        return Any if annotation is None else eval(ast.unparse(annotation), vars(typing) | vars(settings))
    except Exception:  # whatever a predictor of one's own is annotated with
        return Any


def hinted(cls: type) -> Kinds:
    init = inspect.unwrap(cls.__init__)
    kinds = settings.kinds_of(init)
    return {name: kinds.get(name, Any) for name in list(inspect.signature(init).parameters)[1:]}


def snake(name: str) -> str:
    """Return a class's name as arms give it: MyOwn is my_own."""
    return "".join(f"_{c.lower()}" if c.isupper() and at else c.lower() for at, c in enumerate(name))
