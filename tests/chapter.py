"""Executes a chapter's code cells in this process against a study made by formula, and keeps what it showed."""

import ast
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import IPython.display
import nbformat
import pandas as pd
import pytest
import vl_convert
from PIL import Image

from hybridlib.analysis.show import PIPELINE, Shown
from hybridlib.study import parameters

NOTEBOOKS = parameters.ROOT / "notebooks"
# The chapters that read records, in the order of the pipeline.
READING = [
    "00_question",
    "06_benchmark",
    "04_memory",
    "08_ablation",
    "07_stress",
    "12_speed",
    "10_research",
    "11_failures",
    "09_report",
]


def cells(name: str, kind: str = "code") -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells if cell.cell_type == kind]


def definitions(name: str, **given: Any) -> dict[str, Any]:
    """Return what a chapter defines, with its imports, its constants, and what is `given` around them."""
    names = {"__name__": "__main__"} | given
    for cell in cells(name):
        tree = ast.parse(cell.source)
        constant = lambda node: isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)  # noqa: E731
        kept = (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
        tree.body = [node for node in tree.body if isinstance(node, kept) or constant(node)]
        exec(compile(tree, name, "exec"), names)
    return names | given


@dataclass(frozen=True)
class Executed:
    """What a chapter left: its names, what it displayed, and what it saved in its study's folder."""

    names: dict[str, Any]
    displayed: list[Any]
    folder: Path

    @property
    def shown(self) -> dict[str, Shown]:
        """Everything that was saved in the study's folder, by name."""
        files = sorted((self.folder / "shown").glob("*.json"))
        return {path.stem: Shown(**json.loads(path.read_text(encoding="utf-8"))) for path in files}

    def table(self, name: str, index: str) -> pd.DataFrame:
        return self.shown[name].frame.set_index(index)

    def data(self, name: str) -> str:
        """The data that a figure carries."""
        return "\n".join(self.shown[name].content["datasets"].values())

    @property
    def said(self) -> str:
        """All Markdown that was displayed."""
        bundles = [one._repr_mimebundle_()[0] if hasattr(one, "_repr_mimebundle_") else {} for one in self.displayed]
        texts = [bundle.get("text/markdown", "") for bundle in bundles]
        return "\n".join([*texts, *(one.data for one in self.displayed if isinstance(one, IPython.display.Markdown))])


def blank() -> bytes:
    """A picture of one pixel."""
    out = io.BytesIO()
    Image.new("RGB", (1, 1)).save(out, "PNG")
    return out.getvalue()


def run_chapter(
    name: str, study: Any, monkeypatch: pytest.MonkeyPatch, pipeline: bool = True, draw: bool = True, **given: Any
) -> Executed:
    """Execute a chapter, as the pipeline does or by hand. `given` replaces what a cell assigns to these names.

    Without `draw`, figures are specified and saved, but not drawn, which takes most of the time.
    """
    displayed: list[Any] = []
    with monkeypatch.context() as patched:
        patched.setattr(parameters, "OUTPUTS", study.outputs)
        patched.setattr(IPython.display, "display", lambda *contents: displayed.extend(contents))
        patched.setenv(PIPELINE, name) if pipeline else patched.delenv(PIPELINE, raising=False)
        for kind, drawn in dict(png=blank(), svg="<svg></svg>", pdf=b"%PDF %%EOF").items() if not draw else ():
            patched.setattr(vl_convert, f"vegalite_to_{kind}", lambda *_, drawn=drawn, **__: drawn)
        names: dict[str, Any] = {"__name__": "__main__"}
        given = {"study": study.name} | given
        for at, cell in enumerate(cells(name)):
            exec(compile(cell.source, f"{name}, code cell {at}", "exec"), names)
            assigned = {
                node.id
                for node in ast.walk(ast.parse(cell.source))
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            }
            names |= {key: value for key, value in given.items() if key in assigned}
        assert (PIPELINE in os.environ) == pipeline
    return Executed(names, displayed, study.folder)
