"""The project's floors, read from its imports: they go down only, and what must not know torch doesn't."""

import ast
from graphlib import TopologicalSorter

import nbformat
import pytest

from hybridlib.studies import ROOT

SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in [ROOT / "run_all.py", *sorted((ROOT / "hybridlib").rglob("*.py"))]
}


def imported(code: str) -> set[str]:
    """Full names of what a source imports; `from a import b` is a.b where that is a module of the project."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in SOURCES else node.module for name in names}
    return found


GRAPH = {name: imported(path.read_text()) for name, path in SOURCES.items()}


def reached(names: set[str]) -> set[str]:
    """What is imported by these modules, directly or through others of the project."""
    seen, todo = set(), set(names)
    while todo:
        name = todo.pop()
        seen.add(name)
        todo |= GRAPH.get(name, set()) - seen
    return seen - names


def within(package: str, names: set[str]) -> set[str]:
    return {name for name in names if name == package or name.startswith(f"{package}.")}


def test_imports_have_no_cycle():
    """Floors exist: raises CycleError, naming the modules, if two stand on each other. The command is the roof."""
    TopologicalSorter(GRAPH).prepare()
    assert not [name for name, names in GRAPH.items() if "run_all" in names]


def test_analysis_knows_neither_torch_nor_training():
    known = reached(within("hybridlib.analysis", set(SOURCES)))
    for package in ("torch", "transformers", "safetensors", "hybridlib.training"):
        assert not within(package, known), package


def test_training_knows_no_analysis():
    known = reached(within("hybridlib.training", set(SOURCES)))
    for package in ("hybridlib.analysis", "altair", "papermill", "nbconvert", "scipy"):
        assert not within(package, known), package


@pytest.mark.parametrize("name", [n for n in SOURCES if n.count(".") < 2 and not n.endswith(("training", "analysis"))])
def test_the_ground_floor_stands_on_itself(name):
    """Parameters, records, plan and command: without torch, and knowing neither of the two that stand on them."""
    known = reached({name})
    for package in ("torch", "transformers", "hybridlib.training", "hybridlib.analysis"):
        assert not within(package, known), package


@pytest.mark.parametrize("name", ["00_question", "06_benchmark", "07_stress", "08_ablation", "09_report"])
def test_chapters_that_argue_read_records_alone(name):
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    direct = set().union(*(imported(cell.source) for cell in notebook.cells if cell.cell_type == "code"))
    known = direct | reached(direct)
    for package in ("torch", "transformers", "hybridlib.training"):
        assert not within(package, known), package
