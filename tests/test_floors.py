"""The project's floors, read from its imports: they go down only, and what must not know torch doesn't.

The lowest is the method: an optimizer on torch and numpy. `import hybridlib` alone loads nothing of it.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from typing import Any

import nbformat
import pytest

import hybridlib
from hybridlib.study.parameters import ROOT

SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in [ROOT / "run_all.py", *sorted((ROOT / "hybridlib").rglob("*.py"))]
}
DOORS = {
    f"hybridlib.{name}": getattr(hybridlib, name).__module__ for name in hybridlib.__all__
}  # `from hybridlib import Ridge`


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """All of a syntax tree but what stands under `if TYPE_CHECKING`, which is read by tools alone."""
    yield node
    checking = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    for child in node.orelse if checking else ast.iter_child_nodes(node):
        yield from executed(child)


def imported(code: str) -> set[str]:
    """Full names of what a source imports; `from a import b` is a.b where that is a module of the project."""
    found = set()
    for node in executed(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in SOURCES else DOORS.get(name, node.module) for name in names}
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


def knows(name: str, known: set[str]) -> bool:
    """Whether these modules are among what is known; all may know `hybridlib.training` itself, which holds a number."""
    return bool(within(name, known) - {"hybridlib.training"})


def test_the_number_of_the_numerics_stands_on_nothing():
    assert GRAPH["hybridlib.training"] == set()


def test_imports_have_no_cycle():
    """Floors exist: raises CycleError, naming the modules, if two stand on each other. The command is the roof."""
    TopologicalSorter(GRAPH).prepare()
    assert not [name for name, names in GRAPH.items() if "run_all" in names]


# A room -> the rooms that it may import. Of `training`, all may know the number of the numerics.
ROOMS = {
    "method": set(),
    "study": {"method"},
    "training": {"method", "study"},
    "analysis": {"study"},
    "benchmark": {"method", "study", "training"},
}


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_between_rooms_go_where_the_house_says(room):
    mine = within(f"hybridlib.{room}", set(SOURCES))
    ours = within("hybridlib", set().union(*(GRAPH[name] for name in mine))) - mine - {"hybridlib.training"}
    assert mine and {name.split(".")[1] for name in ours} <= ROOMS[room]


def test_the_root_is_a_door_and_the_command_stands_on_the_study_alone():
    roots = {name for name in within("hybridlib", set(SOURCES)) if name.count(".") == 1}
    assert roots == {f"hybridlib.{room}" for room in ROOMS}
    assert {name.split(".")[1] for name in within("hybridlib", GRAPH["run_all"])} == {"study"}


@pytest.mark.parametrize("room", ["study", "analysis"])
def test_parameters_records_and_verdicts_know_no_torch(room):
    known = reached(within(f"hybridlib.{room}", set(SOURCES)))
    for package in ("torch", "transformers", "safetensors", "hybridlib.training", "hybridlib.benchmark"):
        assert not knows(package, known), package


def test_training_draws_nothing():
    known = reached(within("hybridlib.training", set(SOURCES)))
    for package in ("altair", "papermill", "nbconvert", "scipy"):
        assert not knows(package, known), package


@pytest.mark.parametrize("name", sorted(within("hybridlib.method", set(SOURCES))))
def test_the_method_stands_on_torch_and_numpy_alone(name):
    """It can be taken out of the study as a folder."""
    ours = within("hybridlib", GRAPH[name])
    assert ours == within("hybridlib.method", ours), "of the project it knows itself alone"
    others = {module.split(".")[0] for module in GRAPH[name] - ours} - sys.stdlib_module_names
    assert others <= {"torch", "numpy"}


@pytest.mark.parametrize("name", ["guards", "schedule", "settings"])
def test_what_needs_no_tensor_knows_no_torch(name):
    assert not {"torch", "numpy"} & {module.split(".")[0] for module in reached({f"hybridlib.method.{name}"})}


DOOR = "from hybridlib import *"
HEAVY = ["torch", "transformers", "pandas", "pydantic", "schedulefree"]


def in_a_fresh_process(code: str) -> Any:
    """Run code, and return what it prints as JSON."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "code, loads", [("import hybridlib", []), ("from hybridlib import HybridOptimizer", ["torch"]), (DOOR, ["torch"])]
)
def test_the_door_loads_what_is_asked_for_and_no_more(code, loads):
    loaded = in_a_fresh_process(
        f"{code}; import json, sys; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    )
    assert loaded == loads


def test_everything_behind_the_door_takes_a_fifth_of_a_second_over_torch():
    clock = f"import torch, time, json; a = time.perf_counter(); {DOOR}; print(json.dumps(time.perf_counter() - a))"
    assert min(in_a_fresh_process(clock) for _ in range(3)) <= 0.2, "the least of three: others share the machine"


@pytest.mark.parametrize("name", ["00_question", "06_benchmark", "07_stress", "08_ablation", "09_report"])
def test_chapters_that_argue_read_records_alone(name):
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    direct = set().union(*(imported(cell.source) for cell in notebook.cells if cell.cell_type == "code"))
    known = direct | reached(direct)
    for package in ("torch", "transformers", "hybridlib.training"):
        assert not knows(package, known), package
