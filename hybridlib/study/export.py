"""The report chapter as PDF, HTML and Markdown, through nbconvert; `notebooks/templates/` shapes them."""

import os
import re
import shutil
import subprocess
import tempfile
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
from hybridlib.study.parameters import ROOT
from hybridlib.study.records import RunFolder
from hybridlib.study.storage import write_atomically

TEMPLATES = ROOT / "notebooks" / "templates"
MARKDOWN = "PHASE_2B_VALIDATION_REPORT.md"
OVERFULL_PT = 1.0  # beyond its box: less is not seen
TEX = {  # engine -> its command, and how often it runs until cross-references and the table of contents have settled
    "xelatex": (["xelatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"], 3),
    "tectonic": (["tectonic", "--keep-logs", "--keep-intermediates", "report.tex"], 1),
}
TOO_LARGE = re.compile(r"(?:Overfull \\[hv]box \(|Float too large for page by )([\d.]+)pt(.*)")  # in TeX's log
CAPTION = re.compile(  # in its .aux: kind, number, text, page
    r"contentsline \{(\w+)\}\{\\numberline \{(\d+)\}\{\\ignorespaces (.*?)\s*(?:\\relax )?\}\}\{(\d+)\}"
)

# What of an output each format shows; the first that there is.
SHOWN = {
    "pdf": ["text/latex", "text/markdown", "text/plain"],
    "html": ["application/vnd.vegalite.v5+json", "text/html", "text/markdown", "image/png", "text/plain"],
    "plain": ["text/markdown", "text/plain"],
}


class ExportFailed(Exception):
    """A format that could not be made, or is not right; the message says which and why. The others are written."""


def export(folder: Path, notebook: Path) -> None:
    """Write report.tex, .html, .pdf and PHASE_2B_VALIDATION_REPORT.md of the executed `notebook` to `folder`.

    The same records give the same bytes: dates are those of the last record, not of the export. Raise `ExportFailed` if
    the PDF could not be made, lost a character, or holds something that is larger than its page.
    """
    written = last_record(folder)
    report = with_report_forms(nbformat.read(notebook, as_version=4))
    report.cells = without_empty(report.cells)
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


def with_report_forms(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Put the forms that the figures of `notebook` keep for the report among their outputs' data; return it."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if forms := output.get("metadata", {}).pop("report", None):
                output.data.update(forms)
    return notebook


def converter(exporter: type[TemplateExporter], template: str) -> TemplateExporter:
    """Return an `exporter` on the report's `template` of this name, without code and prompts."""
    config = Config({"NbConvertBase": {"display_data_priority": SHOWN[template]}})
    config.ExtractOutputPreprocessor.enabled = False
    return exporter(
        config=config,
        extra_template_basedirs=[str(TEMPLATES)],
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


def typeset(folder: Path, tex: str, written: datetime) -> None:
    """Write to `folder` report.pdf, dated `written`, of the report `tex`, by xelatex or, where there is none, tectonic.

    TeX works in a folder of its own, where all names are plain: in a user's it takes some characters for its own.
    """
    if (engine := next(filter(shutil.which, TEX), None)) is None:
        raise ExportFailed(
            "report.pdf was not made: there is no xelatex and no tectonic. `make tex` installs TeX on Debian and"
            " Ubuntu; elsewhere it takes TeX Live with XeTeX and the TeX Gyre fonts, or tectonic"
        )
    command, times = TEX[engine]
    clock = {"SOURCE_DATE_EPOCH": f"{written.timestamp():.0f}", "FORCE_SOURCE_DATE": "1"}
    environment = os.environ | clock | {"max_print_line": "10000"}
    with tempfile.TemporaryDirectory() as name:
        made = Path(name)
        (made / "report.tex").write_text(tex, encoding="utf-8")
        (made / "shown").symlink_to((folder / "shown").resolve())
        for _ in range(times):
            done = subprocess.run(command, cwd=made, env=environment, capture_output=True)
            if done.returncode:
                raise ExportFailed(f"report.pdf was not made: LaTeX says\n{tex_errors(done.stdout + done.stderr)}")
        log, aux = ((made / f"report.{kind}").read_text(encoding="utf-8", errors="replace") for kind in ("log", "aux"))
        write_atomically(folder / "report.pdf", (made / "report.pdf").read_bytes())
    if lost := sorted(set(re.findall(r"Missing character: There is no (\S+)", log))):
        raise ExportFailed(f"report.pdf lacks characters that its fonts don't have: {' '.join(lost)}")
    if large := overfull(log, aux, tex):
        raise ExportFailed("\n".join(f"report.pdf: {said}" for said in large))


def tex_errors(output: bytes) -> str:
    """Return the errors in a LaTeX run's `output`, each with the source line that it points at; its end without any."""
    lines = output.decode("utf-8", "replace").splitlines()
    errors = [at for at, line in enumerate(lines) if line.startswith("!")]
    return "\n".join(line for at in errors for line in lines[at : at + 6]) or "\n".join(lines[-20:])


def overfull(log: str, aux: str, tex: str) -> list[str]:
    """Say by how much each box that TeX's `log` calls too large is so, and in which table, figure or section it stands.

    A box is found by its line in the source `tex`, or, where TeX knows only the page, by the captions that `aux` puts
    on it.
    """
    found = []
    for box in TOO_LARGE.finditer(log):
        if float(box[1]) <= OVERFULL_PT:
            continue
        if line := re.search(r"lines? (\d+)", box[2]):
            where = surrounding(tex, int(line[1]))
        else:
            page = re.search(r"\[(\d+)", log[box.end() :])
            there = [caption for caption in CAPTION.findall(aux) if page and caption[3] == page[1]]
            where = "; ".join(f"{kind} {number}: {text}" for kind, number, text, _ in there) or "the text of a page"
        found.append(f"{where}: {box[1]} pt too {'wide' if 'too wide' in box[2] else 'high'} for its page")
    return found


def surrounding(tex: str, line: int) -> str:
    """Return the caption of the table or figure around a `line` of `tex`, counted from 1, or the heading above it."""
    for block in re.finditer(r"\\begin\{(table|figure|longtable)\}.*?\\end\{\1\}", tex, re.DOTALL):
        first = tex.count("\n", 0, block.start()) + 1
        if first <= line <= first + block[0].count("\n") and (caption := re.search(r"\\caption\{(.*)\}", block[0])):
            return f"{block[1].removeprefix('long')}: {caption[1]}"
    headings = re.findall(r"^\\(?:sub)*section\{(.*?)\}(?:\\label|$)", "\n".join(tex.splitlines()[:line]), re.MULTILINE)
    return f"section: {headings[-1]}" if headings else "before the first section"


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
    """Return `cell` without the outputs that have no record in them; None if it has no others."""
    outputs = cell.get("outputs", [])
    full = [output for output in outputs if not output.get("metadata", {}).get("empty")]
    if len(full) < len(outputs):
        cell = NotebookNode(cell, outputs=full)
    return cell if full or not outputs else None
