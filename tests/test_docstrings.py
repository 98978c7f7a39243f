"""What a public function, class or method takes is said where it is defined; no file is too long to be read at once."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybridlib.study.parameters import ROOT

SOURCES = [ROOT / "run_all.py", *sorted((ROOT / "hybridlib").rglob("*.py")), *sorted((ROOT / "examples").glob("*.py"))]
LONGEST = 220  # lines


def taken(function: ast.FunctionDef) -> list[str]:
    """Return the names of a function's arguments, without `self` and `cls`."""
    args = function.args
    every = [*args.posonlyargs, *args.args, *args.kwonlyargs, *filter(None, [args.vararg, args.kwarg])]
    return [arg.arg for arg in every if arg.arg not in ("self", "cls") and not arg.arg.startswith("_")]


def fields(node: ast.ClassDef) -> list[str]:
    """Return the names of a dataclass's public fields."""
    if not any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return []
    names = [
        line.target.id for line in node.body if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
    ]
    return [name for name in names if not name.startswith("_")]


def public(tree: ast.Module | ast.ClassDef) -> Iterator[tuple[str, list[str], str]]:
    """Yield what is public: its name, what it takes, and its docstring (an `__init__` may leave it to its class)."""
    about = ast.get_docstring(tree) or ""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, fields(node), ast.get_docstring(node) or ""
            yield from ((f"{node.name}.{name}", *rest) for name, *rest in public(node))
        elif isinstance(node, ast.FunctionDef):
            said = ast.get_docstring(node) or ""
            setter = any(ast.unparse(decorator).endswith(".setter") for decorator in node.decorator_list)
            if node.name == "__init__":
                yield node.name, taken(node), f"{about}\n{said}"
            elif not node.name.startswith("_") and not setter:
                yield node.name, taken(node), said


def contracts() -> set[tuple[str, tuple[str, ...]]]:
    """Return methods, with their arguments, that a base class documents for all that derive from it."""
    found = set()
    for path in SOURCES:
        for name, args, said in public(ast.parse(path.read_text(encoding="utf-8"))):
            if "." in name and all(re.search(rf"\b{arg}\b", said) for arg in args):
                found.add((name.split(".")[-1], tuple(args)))
    return found


CONTRACTS = contracts()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_argument_of_what_is_public_is_documented(path: Path) -> None:
    unsaid = []
    for name, args, said in public(ast.parse(path.read_text(encoding="utf-8"))):
        inherited = "." in name and not said and (name.split(".")[-1], tuple(args)) in CONTRACTS
        missing = [arg for arg in args if not re.search(rf"\b{arg}\b", said)]
        if missing and not inherited:
            unsaid.append(f"{name}: {', '.join(missing)}")
    assert not unsaid


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_read_at_once(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST
