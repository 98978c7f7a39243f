"""What every notebook in the repository is like, so that it reads as a chapter and runs anywhere."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

from hybridlib.study.parameters import ROOT
from hybridlib.study.plan import CHAPTERS, MEASURING, TRAINING

NAMES = sorted([*CHAPTERS.values(), TRAINING])
LINES = 15
ABSOLUTE = re.compile(r"(?<![\w.:/])(?:/(?:bin|etc|home|mnt|opt|root|tmp|usr|var|work|Users)\b|[A-Z]:\\)")


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_plan_and_the_folder_name_the_same_notebooks():
    assert [path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_valid_and_without_outputs(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in code(notebook):
        assert cell.outputs == [] and cell.execution_count is None
        assert "papermill" not in cell.metadata
    assert "papermill" not in notebook.metadata
    assert notebook.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("name", NAMES)
def test_opens_with_its_title(name):
    notebook = read(name)
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith(f"# {notebook.metadata.title}")
    text = [cell.source for cell in notebook.cells[1:] if cell.cell_type == "markdown"]
    assert not re.findall(r"^# ", "\n".join(text), re.M), "one title; sections are ##"


@pytest.mark.parametrize("name", NAMES)
def test_first_code_cell_holds_the_parameters(name):
    """Constants and nothing else, and no annotations: papermill would not see `x: int | None`."""
    first, *others = code(read(name))
    assert first.metadata.tags == ["parameters"]
    assert not any("parameters" in cell.metadata.get("tags", []) for cell in others)
    given = {}
    for node in ast.parse(first.source).body:
        assert isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name), ast.unparse(node)
        given[node.targets[0].id] = ast.literal_eval(node.value)
    assert given["study"] == ("smoke" if name == TRAINING else "cpu")  # training, too, is done in under a minute
    assert ("device" in given) == (name in [TRAINING, *(CHAPTERS[stage] for stage in MEASURING)])
    if name == TRAINING:
        assert set(given) == {"study", "arm", "data", "seed", "device"}


@pytest.mark.parametrize("name", NAMES)
def test_cells_are_short_and_define_nothing(name):
    for cell in code(read(name)):
        lines = cell.source.splitlines()
        assert len(lines) <= LINES, lines[0]
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef), ast.unparse(node)


@pytest.mark.parametrize("name", NAMES)
def test_no_path_of_one_machine(name):
    for cell in read(name).cells:
        assert not ABSOLUTE.search(cell.source), cell.source


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_is_followed_by_how_to_read_it(name):
    cells = read(name).cells
    for cell, after in zip(cells, [*cells[1:], None]):
        if cell.cell_type == "code" and re.search(r"^figure\(|^display\(figure\(", cell.source, re.M):
            text = after is not None and (after.cell_type == "markdown" or "Markdown(" in after.source)
            assert text and not after.source.startswith("#"), cell.source


def test_the_path_pattern_finds_paths():
    assert ABSOLUTE.search("read('/home/me/x')") and ABSOLUTE.search(str(Path("/tmp") / "x"))
    assert not ABSOLUTE.search("a/b, and/or, https://example.org/tmp, ../tmp, 1/2")
