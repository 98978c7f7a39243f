"""The report chapter as PDF, HTML and Markdown, through nbconvert; `notebooks/templates/` shapes the first two."""

import os
import re
import shutil
import subprocess
import tempfile
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import nbformat
import vl_convert
from nbconvert import HTMLExporter, LatexExporter, MarkdownExporter
from nbconvert.exporters import TemplateExporter
from nbconvert.utils.pandoc import PandocMissing
from nbformat import NotebookNode
from traitlets.config import Config

from hybridlib.study.parameters import ROOT
from hybridlib.study.records import RunFolder, write_atomically

TEMPLATES = ROOT / "notebooks" / "templates"
MARKDOWN = "PHASE_2B_VALIDATION_REPORT.md"
TEX_RUNS = 3  # cross-references and the table of contents settle
OVERFULL_PT = 1.0

# What of an output each format shows; the first that there is.
SHOWN = {
    "pdf": ["text/latex", "text/markdown", "text/plain"],
    "html": ["application/vnd.vegalite.v5+json", "text/html", "text/markdown", "image/png", "text/plain"],
    "markdown": ["text/markdown", "text/plain"],
}


class ExportFailed(Exception):
    """A format that could not be made; the message says which and why. The other formats have been written."""


def export(folder: Path, notebook: Path) -> list[str]:
    """Writes report.tex, report.html, PHASE_2B_VALIDATION_REPORT.md and report.pdf of an executed notebook to `folder`.

    Returns warnings: lines too wide for the page. Raises `ExportFailed` if the PDF could not be made or lost a
    character. The same records give the same bytes: dates are those of the last record, not of the export.
    """
    written = last_record(folder)
    report = with_report_forms(nbformat.read(notebook, as_version=4))
    report.cells = without_empty(report.cells)
    report.metadata["date"] = f"{written:%Y-%m-%d}"
    markdown, _ = converter(MarkdownExporter, "markdown").from_notebook_node(report)
    write_atomically(folder / MARKDOWN, markdown)
    try:
        bundle = {"vega_bundle": vl_convert.javascript_bundle()}
        html, _ = converter(HTMLExporter, "html").from_notebook_node(report, bundle)
        tex, _ = converter(LatexExporter, "pdf").from_notebook_node(report)
    except PandocMissing:
        raise ExportFailed(
            "report.html, .tex and .pdf were not made: pandoc is not installed, `make tex` does"
        ) from None
    write_atomically(folder / "report.html", html)
    write_atomically(folder / "report.tex", tex)
    return typeset(folder, written)


def with_report_forms(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Puts the forms that a figure keeps for the report among its outputs' data."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if forms := output.get("metadata", {}).pop("report", None):
                output.data.update(forms)
    return notebook


def converter(exporter: type[TemplateExporter], template: str) -> TemplateExporter:
    """An exporter on one of the report's templates, without code and prompts."""
    config = Config({"NbConvertBase": {"display_data_priority": SHOWN[template]}})
    config.ExtractOutputPreprocessor.enabled = False
    return exporter(
        config=config,
        extra_template_basedirs=[str(TEMPLATES)],
        template_name=template,
        exclude_input=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )


def last_record(folder: Path) -> datetime:
    """When the youngest record of a study was made; the start of 1970 for a study without records."""
    facts = [RunFolder(path.parent).facts for path in folder.glob("runs/*/run.json")]
    return max(
        (datetime.fromisoformat(run["ended_at"]) for run in facts if run),
        default=datetime.fromtimestamp(0, UTC),
    )


def typeset(folder: Path, written: datetime) -> list[str]:
    """report.tex -> report.pdf by xelatex, or tectonic where there is none; returns warnings."""
    engine = next(filter(shutil.which, ("xelatex", "tectonic")), None)
    if engine is None:
        raise ExportFailed(
            "report.pdf was not made: there is no xelatex and no tectonic. `make tex` installs TeX on Debian and Ubuntu; "
            "elsewhere it takes TeX Live with XeTeX and the TeX Gyre fonts, or tectonic"
        )
    here = folder.resolve()
    command, times = {
        "xelatex": (["xelatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"], TEX_RUNS),
        "tectonic": (["tectonic", "-Z", f"search-path={here}", "--keep-logs", "report.tex"], 1),
    }[engine]
    search = {"TEXINPUTS": f"{here}{os.pathsep}", "max_print_line": "10000"}
    clock = {"SOURCE_DATE_EPOCH": f"{written.timestamp():.0f}", "FORCE_SOURCE_DATE": "1"}
    with tempfile.TemporaryDirectory() as made:  # as working folder: the path of an output folder gets into the PDF
        shutil.copy(folder / "report.tex", made)
        for _ in range(times):
            done = subprocess.run(command, cwd=made, env=os.environ | search | clock, capture_output=True)
            if done.returncode:
                raise ExportFailed(f"report.pdf was not made: LaTeX says\n{tex_errors(done.stdout + done.stderr)}")
        log = (Path(made) / "report.log").read_text(encoding="utf-8", errors="replace")
        shutil.copyfile(Path(made) / "report.pdf", folder / "report.pdf")
    if lost := sorted(set(re.findall(r"Missing character: There is no (\S+)", log))):
        raise ExportFailed(f"report.pdf lacks characters that its fonts don't have: {' '.join(lost)}")
    wide = re.findall(r"Overfull \\hbox \(([\d.]+)pt too wide\) (.*)", log)
    return [f"report.pdf: {by} pt too wide {where}" for by, where in wide if float(by) > OVERFULL_PT]


def tex_errors(output: bytes) -> str:
    """The error lines of a LaTeX run, each with the source line that it points at; all of the end if there are none."""
    lines = output.decode("utf-8", "replace").splitlines()
    errors = [at for at, line in enumerate(lines) if line.startswith("!")]
    return "\n".join(line for at in errors for line in lines[at : at + 6]) or "\n".join(lines[-20:])


def without_empty(cells: list[NotebookNode]) -> list[NotebookNode]:
    """Return the cells without what is empty, and without the sections that have nothing else."""
    kept: list[NotebookNode] = []
    for section in sections(cells):
        full = [cell for cell in map(with_records, section) if cell is not None]
        if len(full) == len(section) or any(cell.get("outputs") for cell in full):
            kept += full
    return kept


def sections(cells: list[NotebookNode]) -> list[list[NotebookNode]]:
    """Return each heading with all that follows it up to the next."""
    at, number = 0, []
    for cell in cells:
        at += is_heading(cell)
        number.append(at)
    return [[cell for _, cell in group] for _, group in groupby(zip(number, cells), key=lambda pair: pair[0])]


def is_heading(cell: NotebookNode) -> bool:
    return cell.cell_type == "markdown" and cell.source.startswith("#")


def with_records(cell: NotebookNode) -> NotebookNode | None:
    """Return a cell without the outputs that have no record in them; None if it has no others."""
    outputs = cell.get("outputs", [])
    full = [output for output in outputs if not output.get("metadata", {}).get("empty")]
    if len(full) < len(outputs):
        cell = NotebookNode(cell, outputs=full)
    return cell if full or not outputs else None
