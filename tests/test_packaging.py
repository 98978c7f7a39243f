"""Packages: pyproject.toml says what is needed, requirements.lock which versions the records were made with."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distribution, packages_distributions
from itertools import chain
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hybridlib.study.parameters import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
METHOD = [Requirement(line) for line in PROJECT["dependencies"]]
DIRECT = [*METHOD, *(Requirement(line) for extra in EXTRAS.values() for line in extra)]
LOCK = (ROOT / "requirements.lock").read_text().split()
MAKEFILE = (ROOT / "Makefile").read_text()

NOT_IMPORTED = {
    "ipykernel": "runs the notebooks",
    "jupyterlab": "make lab",
    "accelerate": "transformers.Trainer asks for it",
    "jinja2": "pandas' Styler, for LaTeX tables",
    "tabulate": "pandas' to_markdown",
    "pytest-xdist": "make test",
    "ruff": "make test",
}


def pins(lines: list[str]) -> dict[str, str]:
    """Canonical name -> version; every line must be an exact pin without a local version."""
    found = {}
    for line in lines:
        name, version = re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][0-9a-z.]*)", line).groups()
        found[canonicalize_name(name)] = version
    return found


def installed(name: str) -> str:
    return distribution(name).version.split("+")[0]


def names(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


def closure(requirements: list[Requirement]) -> set[str]:
    """Canonical names of these requirements and of all that they need on this platform."""
    seen: set[tuple[str, frozenset[str]]] = set()

    def walk(requirement: Requirement, extras: frozenset[str]) -> None:
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras | {""}):
            return
        wanted = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if wanted not in seen:
            seen.add(wanted)
            for below in distribution(wanted[0]).requires or []:
                walk(Requirement(below), wanted[1])

    for requirement in requirements:
        walk(requirement, frozenset())
    return {name for name, _ in seen}


def test_the_lock_is_within_the_ranges_and_the_ranges_pin_nothing():
    locked = pins(LOCK)
    outside = [str(needed) for needed in DIRECT if locked[canonicalize_name(needed.name)] not in needed.specifier]
    assert not outside
    assert not [str(needed) for needed in DIRECT if any(part.operator in ("==", "===") for part in needed.specifier)]


def test_the_method_needs_torch_and_numpy_alone():
    assert names(METHOD) == {"torch", "numpy"}
    imported = set()
    for path in (ROOT / "hybridlib" / "method").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            imported |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            imported |= {node.module} if isinstance(node, ast.ImportFrom) else set()
    assert {name.split(".")[0] for name in imported} - set(sys.stdlib_module_names) == {"torch", "numpy", "hybridlib"}


def test_the_lock_is_what_the_project_needs_and_no_more():
    assert set(pins(LOCK)) == closure(DIRECT)


def test_the_lock_is_what_is_installed():
    assert {name: installed(name) for name in pins(LOCK)} == pins(LOCK)


def test_conda_users_get_the_same_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [item for item in environment["dependencies"] if isinstance(item, str)]
    pip = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    assert [re.split("[=<>]", item)[0] for item in conda] == ["python", "pip", "pandoc", "tectonic"]
    assert pip == ["-r requirements.lock", "-e ."]
    python = tuple(map(int, conda[0].split("=")[1].split(".")))
    assert python >= tuple(map(int, PROJECT["requires-python"].removeprefix(">=").split(".")))


def test_make_installs_the_same_lock_and_the_python_that_is_asked_for():
    assert "pip install --quiet --disable-pip-version-check -r requirements.lock" in MAKEFILE
    asked = PROJECT["requires-python"].removeprefix(">=")
    assert f"sys.version_info < ({asked.replace('.', ', ')})" in MAKEFILE


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
@pytest.mark.parametrize(
    ("name", "where"), [("a b", "-m venv .venv\n"), ("a:b", f"-m venv {Path.home()}/.cache/hybridlib/")]
)
def test_make_has_a_place_for_the_environment_whatever_the_folder_is_called(tmp_path, name: str, where: str):
    (tmp_path / name).mkdir()
    for file in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / file, tmp_path / name)
    said = subprocess.run(["make", "-n", "setup"], cwd=tmp_path / name, capture_output=True, encoding="utf-8").stdout
    assert where in said, "Python makes none in a folder whose path has a colon"


def test_everything_imported_is_a_direct_dependency_and_the_other_way_round():
    folders = [(ROOT / folder).rglob("*.py") for folder in ("hybridlib", "examples", "tests")]
    sources = [ROOT / "run_all.py", *chain(*folders)]
    code = [path.read_text() for path in sources]
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        code += [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    modules = set()
    for node in (node for text in code for node in ast.walk(ast.parse(text))):
        modules |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
        modules |= {node.module} if isinstance(node, ast.ImportFrom) else set()
    top = (
        {name.split(".")[0] for name in modules}
        - set(sys.stdlib_module_names)
        - {"hybridlib", "run_all", *(path.stem for path in (ROOT / "tests").glob("*.py"))}
    )
    owners = packages_distributions()
    imported = {canonicalize_name(owners[name][0]) for name in top}
    assert imported - names(DIRECT) == set()
    assert names(DIRECT) - imported == set(NOT_IMPORTED)
