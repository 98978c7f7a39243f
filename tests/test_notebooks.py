"""What every notebook in the repository is like, so that it reads well and runs anywhere."""

import ast
import re
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from hybridlib.study.parameters import ROOT
from hybridlib.study.plan import CHAPTERS, MEASURING, TRAINING

NAMES = sorted([*CHAPTERS.values(), TRAINING])
LABORATORY = ["index", "playground", "your_model"]  # for people at JupyterLab; no study executes them
EVERY = NAMES + LABORATORY
LINES, WITHIN_S = 30, 60
ABSOLUTE = re.compile(r"(?<![\w.:/])(?:/(?:bin|etc|home|mnt|opt|root|tmp|usr|var|work|Users)\b|[A-Z]:\\)")


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_plan_and_the_folder_name_the_same_notebooks():
    assert sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")) == EVERY


@pytest.mark.parametrize("name", EVERY)
def test_valid_and_without_outputs(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in code(notebook):
        assert cell.outputs == [] and cell.execution_count is None
        assert "papermill" not in cell.metadata
    assert "papermill" not in notebook.metadata
    assert notebook.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("name", EVERY)
def test_opens_with_its_title(name):
    notebook = read(name)
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith(f"# {notebook.metadata.title}")
    text = [cell.source for cell in notebook.cells[1:] if cell.cell_type == "markdown"]
    assert not re.findall(r"^# ", "\n".join(text), re.M), "one title; sections are ##"


def parameters(name: str) -> dict[str, Any]:
    """The parameters of a notebook: constants and nothing else, without annotations, which hide them from papermill."""
    first, *others = code(read(name))
    assert first.metadata.tags == ["parameters"]
    assert not any("parameters" in cell.metadata.get("tags", []) for cell in others)
    found = {}
    for node in ast.parse(first.source).body:
        assert isinstance(node, ast.Assign), ast.unparse(node)
        targets = node.targets[0].elts if isinstance(node.targets[0], ast.Tuple) else node.targets
        values = ast.literal_eval(node.value)
        found |= {target.id: value for target, value in zip(targets, values if len(targets) > 1 else [values])}
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_chapter_is_told_its_study(name):
    given = parameters(name)
    assert given["study"] == ("smoke" if name == TRAINING else "cpu")  # training, too, is done in under a minute
    assert ("device" in given) == (name in [TRAINING, *(CHAPTERS[stage] for stage in MEASURING)])
    if name == TRAINING:
        assert set(given) == {"study", "arm", "data", "seed", "device"}


@pytest.mark.parametrize("name", [name for name in LABORATORY if code(read(name))])
def test_first_code_cell_of_the_laboratory_holds_the_parameters(name):
    assert {"steps", "seed"} <= set(parameters(name))


def test_the_index_links_to_every_notebook_and_executed_copy_and_all_that_it_links_to_is_there():
    links = re.findall(r"\]\(([^)]+)\)", "\n".join(cell.source for cell in read("index").cells))
    executed = [path.name for path in (ROOT / "outputs" / "cpu" / "notebooks").glob("*.ipynb")]
    wanted = [f"{name}.ipynb" for name in EVERY if name != "index"]
    wanted += [f"../outputs/cpu/notebooks/{name}" for name in executed]
    assert not set(wanted) - set(links)
    assert not [link for link in links if not (ROOT / "notebooks" / link).is_file()]


@pytest.mark.timed
@pytest.mark.parametrize("name", LABORATORY)
def test_the_laboratory_runs_within_a_minute_without_a_front_end_and_warns_of_nothing(name):
    notebook, begun = read(name), time.perf_counter()
    NotebookClient(notebook, resources={"metadata": {"path": ROOT / "notebooks"}}).execute()
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert name == "index" or len([output for output in outputs if "image/png" in output.get("data", {})]) >= 2
    assert time.perf_counter() - begun <= WITHIN_S


@pytest.mark.parametrize("name", EVERY)
def test_cells_are_short(name):
    for cell in code(read(name)):
        lines = cell.source.splitlines()
        assert len(lines) <= LINES, lines[0]


@pytest.mark.parametrize("name", EVERY)
def test_a_chapter_writes_through_show_and_keep_alone(name):
    """They write under the pipeline only: a chapter that is run by hand changes no file."""
    source = "\n".join(cell.source for cell in code(read(name)))
    assert not re.findall(r"\.to_csv\(|\bopen\(|\.write\w*\(|\.mkdir\(|\.save\(|\.unlink\(", source)


def shown(name: str) -> list[ast.Call]:
    calls = [
        node for cell in code(read(name)) for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Call)
    ]
    return [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "show"]


def test_a_name_is_shown_by_one_chapter_and_the_report_shows_again_only_such():
    made = [call.args[1].value for name in NAMES for call in shown(name) if len(call.args) > 1]
    assert len(made) == len(set(made)), [name for name in set(made) if made.count(name) > 1]
    again = {name: [call.args[0].value for call in shown(name) if len(call.args) == 1] for name in NAMES}
    assert len(again["09_report"]) > 30 and not [
        wanted for names in again.values() for wanted in names if wanted not in made
    ]


def test_no_cell_of_the_report_stands_in_another_chapter():
    def normal(cell: nbformat.NotebookNode) -> str:
        return ast.unparse(ast.parse(cell.source)) if cell.cell_type == "code" else " ".join(cell.source.split())

    def own(name: str) -> set[str]:
        return {
            normal(cell)
            for cell in read(name).cells
            if "parameters" not in cell.metadata.get("tags", []) and not bare(cell)
        }

    def bare(cell: nbformat.NotebookNode) -> bool:
        return cell.cell_type == "markdown" and "\n" not in cell.source  # a heading

    others = set().union(*(own(name) for name in NAMES if name != "09_report"))
    assert not own("09_report") & others


def test_the_report_has_no_paragraph_of_another_chapter():
    def paragraphs(name: str) -> set[str]:
        cells = [cell.source for cell in read(name).cells if cell.cell_type == "markdown"]
        return {" ".join(text.split()) for cell in cells for text in cell.split("\n\n") if not text.startswith("#")}

    assert not paragraphs("09_report") & set().union(*(paragraphs(name) for name in NAMES if name != "09_report"))


@pytest.mark.parametrize("name", EVERY)
def test_no_path_of_one_machine(name):
    for cell in read(name).cells:
        assert not ABSOLUTE.search(cell.source), cell.source


def test_the_path_pattern_finds_paths():
    assert ABSOLUTE.search("read('/home/me/x')") and ABSOLUTE.search(str(Path("/tmp") / "x"))
    assert not ABSOLUTE.search("a/b, and/or, https://example.org/tmp, ../tmp, 1/2")
