"""The report chapter as PDF, HTML and Markdown, through nbconvert; `notebooks/templates/` shapes them."""

from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import nbformat
import vl_convert
from nbconvert import HTMLExporter, LatexExporter, MarkdownExporter
from nbconvert.exporters import TemplateExporter
from nbconvert.utils.pandoc import PandocMissing
from nbformat import NotebookNode
from traitlets.config import Config

from hybridlib.study.citations import cited, cited_markdown
from hybridlib.study.crossrefs import number
from hybridlib.study.parameters import ROOT
from hybridlib.study.records import RunFolder
from hybridlib.study.storage import write_atomically
from hybridlib.study.typesetting import ExportFailed, typeset

TEMPLATES = ROOT / "notebooks" / "templates"
MARKDOWN = "PHASE_2B_VALIDATION_REPORT.md"
# What of an output each format shows; the first that there is.
SHOWN = {
    "pdf": ["text/latex", "text/markdown", "image/png", "text/plain"],
    "html": ["application/vnd.vegalite.v5+json", "text/html", "text/markdown", "image/png", "text/plain"],
    "plain": ["text/markdown", "image/png", "text/plain"],
}


def export(folder: Path, notebook: Path) -> None:
    """Write report.tex, .html, .pdf and PHASE_2B_VALIDATION_REPORT.md of the executed `notebook` to `folder`.

    The same records give the same bytes: dates are those of the last record, not of the export. Raise `ExportFailed` if
    the PDF could not be made, lost a character, or holds something that is larger than its page.
    """
    written = last_record(folder)
    report = nbformat.read(notebook, as_version=4)
    report.cells = without_empty(report.cells)
    number(report)
    report.metadata["date"] = f"{written:%Y-%m-%d}"
    markdown, _ = converter(MarkdownExporter, "plain").from_notebook_node(report)
    write_atomically(folder / MARKDOWN, markdown)
    try:
        bundle = {"vega_bundle": vl_convert.javascript_bundle()}
        html, _ = converter(HTMLExporter, "html").from_notebook_node(report, bundle)
        tex, _ = converter(LatexExporter, "pdf").from_notebook_node(report)
    except PandocMissing:
        missing = "report.html, .tex and .pdf were not made: pandoc is not installed, `make tex` does"
        raise ExportFailed(missing) from None
    write_atomically(folder / "report.html", html)
    write_atomically(folder / "report.tex", tex)
    typeset(folder, tex, written)


def converter(exporter: type[TemplateExporter], template: str) -> TemplateExporter:
    """Return an `exporter` on the report's `template` of this name, without code and prompts."""
    config = Config({"NbConvertBase": {"display_data_priority": SHOWN[template]}})
    config.ExtractOutputPreprocessor.enabled = False
    return exporter(
        config=config,
        extra_template_basedirs=[str(TEMPLATES)],
        extra_template_paths=[str(TEMPLATES)],  # for what templates share
        template_name=template,
        filters=dict(cited=cited, cited_markdown=cited_markdown),
        exclude_input=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )


def last_record(folder: Path) -> datetime:
    """Return when the youngest record in a study's `folder` was made; the start of 1970 where there is none."""
    facts = [RunFolder(path.parent).facts for path in folder.glob("runs/*/run.json")]
    ended = [datetime.fromisoformat(run["ended_at"]) for run in facts if run]
    return max(ended, default=datetime.fromtimestamp(0, UTC))


def without_empty(cells: list[NotebookNode]) -> list[NotebookNode]:
    """Return `cells` without what is empty, and without the sections that have nothing else."""
    kept: list[NotebookNode] = []
    for section in sections(cells):
        full = [cell for cell in map(with_records, section) if cell is not None]
        if len(full) == len(section) or any(cell.get("outputs") for cell in full):
            kept += full
    return kept


def sections(cells: list[NotebookNode]) -> list[list[NotebookNode]]:
    """Return `cells` in groups: each heading with all that follows it up to the next."""
    starts = [at for at, cell in enumerate(cells) if cell.cell_type == "markdown" and cell.source.startswith("#")]
    return [cells[start:end] for start, end in pairwise([0, *starts, len(cells)])]


def with_records(cell: NotebookNode) -> NotebookNode | None:
    """Return `cell` without the outputs that have no record in them, or are for a notebook alone; None if it has no
    others.
    """
    outputs = cell.get("outputs", [])
    about = [output.get("metadata", {}) for output in outputs]
    full = [output for output, it in zip(outputs, about) if not it.get("empty") and it.get("kind") != "aside"]
    if len(full) < len(outputs):
        cell = NotebookNode(cell, outputs=full)
    return cell if full or not outputs else None
