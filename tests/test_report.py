"""The report's export: what the PDF, the HTML and the Markdown of one small executed notebook hold."""

import errno
import os
import re
import shutil
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import altair as alt
import nbformat
import pandas as pd
import pytest
from IPython.core.formatters import DisplayFormatter
from nbconvert.utils import pandoc
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from hybridlib.analysis.show import PIPELINE, Shown
from hybridlib.study import export, typesetting
from hybridlib.study.export import without_empty

CHARACTERS = "α β γ η μ σ Δ × ≤ ≥ ≈ ± − – → ∞ √ ² ½ … “ ”"
CAPTION = "Loss against step: 3 % & 5_000 tokens, Δ ≤ 1 %"
TITLE = "A report of 100 % & more"
REFERRING = "It is as [the second](#figure-again) and [the arms](#table-arms) show, and [no figure](#figure-none)."


def shown(content: object, name: str, caption: str, folder: Path) -> nbformat.NotebookNode:
    """A cell of the report that shows what a chapter saved, with outputs as a kernel sends them."""
    one = Shown.of(content, name, caption, "Read it so.", "06_benchmark")
    one.save(folder / "shown", content)
    parts = (one.displayed(one.chapter), one.explained(link=True))
    formats = [DisplayFormatter().format(part) for part in parts]
    outputs = [new_output("display_data", data=data, metadata=metadata) for data, metadata in formats]
    return new_code_cell("hidden_code()", outputs=outputs)


def notebook(folder: Path, *cells: nbformat.NotebookNode) -> Path:
    """An executed notebook in a study's folder: a title, then the cells."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"title": TITLE, "subject": "What is 100 %", "keywords": "a, b", "authors": [{"name": "N. N."}]}
    content = new_notebook(cells=[new_markdown_cell(f"# {TITLE}"), *cells], metadata=about)
    nbformat.write(content, folder / "executed.ipynb")
    return folder / "executed.ipynb"


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Iterator[Path]:
    """A study's folder with the report of every kind of content that the display contract knows."""
    folder = tmp_path_factory.mktemp("outputs") / "a study"
    patched = pytest.MonkeyPatch()
    patched.setenv(PIPELINE, "06_benchmark")
    losses = pd.DataFrame({"step": range(20), "loss": [5 - 0.1 * step for step in range(20)], "arm": ["a", "b"] * 10})
    chart = alt.Chart(losses, width=400, height=200).mark_line().encode(x="step", y="loss", color="arm")
    frame = pd.DataFrame({"arm": ["memory_optimized", "hold"], "Δloss (%)": ["0.5 ± 0.1", "<script>5 & 6"]})
    cells = [
        new_markdown_cell(
            f"## Summary of {CHARACTERS}\n\nPlain `code_α` and $p < \\alpha$; **C1**.\n\n| a | b |\n|--|--|\n| 1 | 2 |"
        ),
        shown(chart, "loss", CAPTION, folder),
        new_markdown_cell(REFERRING),
        shown(chart, "again", "A second figure", folder),
        shown(frame, "arms", "Arms & more", folder),
    ]
    export.export(folder, notebook(folder, *cells))
    yield folder
    patched.undo()


def pdf_text(folder: Path) -> str:
    done = subprocess.run(["pdftotext", "-layout", str(folder / "report.pdf"), "-"], capture_output=True, check=True)
    return done.stdout.decode()


def test_pdf_holds_every_character_caption_and_cell(study):
    text = pdf_text(study)
    for character in CHARACTERS.split():
        assert character in text, character
    assert f"Figure 1: {CAPTION} Read it so. Chapter 06," in text and "Figure 2: A second figure" in text
    assert "Table 1: Arms & more" in text, "the table without a caption takes no number"
    assert "as Figure 2 and Table 1 show, and no figure" in text
    assert TITLE in text and "memory_optimized" in text and "code_α" in text
    assert "hidden_code" not in text
    assert text.count(TITLE) == 1, "the notebook's heading is the title, not a section too"


def test_pdf_has_metadata_bookmarks_and_alternative_texts(study):
    about = subprocess.run(["pdfinfo", str(study / "report.pdf")], capture_output=True, text=True).stdout
    assert re.search(rf"Title: +{TITLE}", about) and re.search("Subject: +What is 100 %", about)
    assert re.search(r"Author: +N\. N\.", about) and re.search("Keywords: +a, b", about)
    content = inflated((study / "report.pdf").read_bytes())
    assert b"/Outlines" in content and content.count(b"/Alt") == 2
    texts = [re.sub(rb"\\(\d{3})", lambda code: bytes([int(code[1], 8)]), text) for text in content.split(b"/Alt(")[1:]]
    assert texts[0].startswith(f"\ufeff{CAPTION}".encode("utf-16-be"))


def inflated(pdf: bytes) -> bytes:
    """The bytes of a PDF with its compressed streams unpacked."""
    found = [pdf]
    for stream in re.findall(rb"stream\r?\n(.*?)endstream", pdf, re.DOTALL):
        with suppress(zlib.error):
            found.append(zlib.decompressobj().decompress(stream))
    return b"\n".join(found)


def test_pdf_figures_are_vectors_and_fonts_are_embedded(study):
    images = subprocess.run(["pdfimages", "-list", str(study / "report.pdf")], capture_output=True, text=True).stdout
    assert len(images.splitlines()) == 2, "no bitmap under the two header lines"
    fonts = subprocess.run(["pdffonts", str(study / "report.pdf")], capture_output=True, text=True).stdout
    assert "TeXGyreTermes" in fonts
    assert all(line.split()[-5] == "yes" for line in fonts.splitlines()[2:])


def test_the_same_notebook_gives_the_same_bytes(study):
    names = ["report.pdf", "report.tex", "report.html", export.MARKDOWN]
    before = [(study / name).read_bytes() for name in names]
    export.export(study, study / "executed.ipynb")
    assert [(study / name).read_bytes() for name in names] == before


def test_html_stands_alone(study):
    html = (study / "report.html").read_text()
    tags = re.findall(
        r"<(?:script|link|img|iframe)\b[^>]*>", re.sub(r"(<script>).*?(</script>)", r"\1\2", html, flags=re.S)
    )
    loaded = [where for tag in tags for where in re.findall(r'(?:src|href)="([^"]*)"', tag)]
    assert all(where.startswith(("data:image/png;base64,", "data:,")) for where in loaded)
    assert "@import" not in html and "url(http" not in html
    assert html.count("vegaEmbed=") == 1, "the libraries are embedded once"
    assert html.count("draw(document.currentScript") == 2
    assert len(re.findall(r"<noscript>\s*<img[^>]*data:image/png", html)) == 2


def test_html_holds_text_formulas_and_captions_and_no_code(study):
    html = (study / "report.html").read_text()
    assert "<math" in html and "$p <" not in html
    assert html.count(CAPTION.replace("&", "&amp;")) >= 1
    assert 'as <a href="#figure-again">Figure 2</a> and <a href="#table-arms">Table 1</a> show, and no figure' in html
    assert '<figure id="figure-again">' in html and '<div class="table" id="table-arms">' in html
    assert html.count('<a href="notebooks/06_benchmark.ipynb">') == 3 and '<a href="shown/again.csv">' in html
    assert "&lt;script&gt;5 &amp; 6" in html
    assert "hidden_code" not in html


def test_markdown_links_the_plots_by_relative_paths(study):
    text = (study / export.MARKDOWN).read_text()
    links = re.findall(r"!\[[^]]*\]\(([^)]*)\)", text)
    assert "*Figure 2. A second figure*" in text and "*Table 1. Arms & more*" in text
    assert links == ["shown/loss.png", "shown/again.png"]
    assert all((study / link).is_file() for link in links)
    assert text.lstrip().startswith(f"# {TITLE}") and "| memory_optimized |" in text
    assert "hidden_code" not in text


def test_a_latex_error_is_shown(tmp_path):
    data = {"text/latex": r"fine \undefinedthing", "text/plain": "fine"}
    bad = new_code_cell("", outputs=[new_output("display_data", data=data)])
    with pytest.raises(export.ExportFailed, match=r"(?s)Undefined control sequence.*\\undefinedthing"):
        export.export(tmp_path, notebook(tmp_path, bad))
    assert (tmp_path / "report.html").exists() and not (tmp_path / "report.pdf").exists()


def test_a_lost_character_is_an_error(tmp_path):
    with pytest.raises(export.ExportFailed, match="characters.*☃"):
        export.export(tmp_path, notebook(tmp_path, new_markdown_cell("A snowman ☃.")))


ROWS = r"\\".join(f"row {number} & {number}" for number in range(120))
TABLE = (
    f"\\begin{{table}}[H]\n\\caption{{All \\% of it}}\n\\begin{{tabular}}{{ll}}{ROWS}\\end{{tabular}}\n\\end{{table}}"
)
FIGURE = "\\begin{figure}[H]\n\\rule{20cm}{1cm}\n\\caption{A bar}\n\\end{figure}"
WORD = "## Wide\n\n`" + "x" * 120 + "`"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (TABLE, r"table 1: All \\% of it: \d+\.\d+ pt too high for its page"),
        (TABLE.replace("[H]", ""), r"table: All \\% of it: \d+\.\d+ pt too high"),
        (FIGURE, r"figure: A bar: \d+\.\d+ pt too wide for its page"),
        (WORD, r"section: Wide: \d+\.\d+ pt too wide for its page"),
    ],
)
def test_what_is_larger_than_its_page_is_an_error_that_names_it(tmp_path, content: str, said: str) -> None:
    data = {"text/latex": content} if content != WORD else {"text/markdown": content}
    cells = [new_markdown_cell("## Before"), new_code_cell("", outputs=[new_output("display_data", data=data)])]
    with pytest.raises(export.ExportFailed, match=said):
        export.export(tmp_path, notebook(tmp_path, *cells))
    assert (tmp_path / "report.pdf").exists(), "for whoever mends it to look at"


def test_what_is_hardly_larger_than_its_page_is_none() -> None:
    log = "Overfull \\hbox ({}pt too wide) in paragraph at lines 1--2"
    assert [len(typesetting.overfull(log.format(points), "", "")) for points in ("0.9", "1.0", "1.1")] == [0, 0, 1]


def test_type_that_is_too_small_is_an_error_that_names_the_table() -> None:
    log = "Shrunk {arms} from 800.0pt to 455.0pt\nShrunk {runs} from 500.0pt to 455.0pt"
    assert typesetting.too_small(log) == ["table arms: too wide for its page: its type would be 5.1 pt"]


def test_a_long_table_breaks_over_pages_and_repeats_its_head(tmp_path, monkeypatch):
    monkeypatch.setenv(PIPELINE, "06_benchmark")
    words = ["some words that wrap " * (1 + at % 5) for at in range(120)]
    values = {f"column {k}": [f"{at * k / 7:.3f} ± 0.0{k}" for at in range(120)] for k in range(7)}
    wide = pd.DataFrame({"arm": [f"arm_{at}" for at in range(120)], "why": words} | values)
    slim = pd.DataFrame({"run": [f"run {at}" for at in range(120)], "loss": ["1.0"] * 120})
    cells = [shown(wide, "wide", "A wide one", tmp_path), shown(slim, "slim", "A slim one", tmp_path)]
    export.export(tmp_path, notebook(tmp_path, *cells))  # it raises where something is too wide or too high
    pages = pdf_text(tmp_path).split("\f")
    assert "arm_0 " in pages[0] and any("arm_119 " in page for page in pages[2:])
    assert sum("column" in page for page in pages) >= 3 and sum("run 119" in page for page in pages) == 1
    assert "Table 1: A wide one" in pages[0] and sum("Table 2" in page for page in pages) == 1


def test_without_tex_everything_else_is_exported(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pandoc").symlink_to(shutil.which("pandoc"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(export.ExportFailed, match="no xelatex.*make tex"):
        export.export(tmp_path / "study", notebook(tmp_path / "study"))
    assert {p.name for p in (tmp_path / "study").glob("*")} >= {"report.html", "report.tex", export.MARKDOWN}


def test_without_pandoc_there_is_markdown_still(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    pandoc.clean_cache()
    monkeypatch.setattr(pandoc.check_pandoc_version, "_cached", None)
    with pytest.raises(export.ExportFailed, match="pandoc is not installed"):
        export.export(tmp_path, notebook(tmp_path))
    assert (tmp_path / export.MARKDOWN).exists()


def test_what_has_no_records_is_left_out_with_its_reading_and_its_section(tmp_path: Path) -> None:
    nothing = shown(pd.DataFrame(columns=["arm"]), "none", "Nothing", tmp_path)
    something = shown(pd.DataFrame({"arm": ["hold"]}), "one", "Something", tmp_path)
    both = new_code_cell("", outputs=[*nothing.outputs, *something.outputs])
    words = new_markdown_cell("Words.")
    first = [new_markdown_cell("## Kept"), something, words, nothing, both]
    second = [new_markdown_cell("### Not run\n\nWith an introduction."), nothing, nothing]
    third = [new_markdown_cell("## Words alone")]
    found = without_empty([*first, *second, *third])
    table = something.outputs[:1]  # what a notebook's reader is told beside it stands in its caption
    one, other = (new_code_cell(cell.source, id=cell.id, outputs=table) for cell in (something, both))
    assert found == [first[0], one, words, other, *third]


def test_a_report_of_damaged_records_is_dated_by_the_others(fake_study) -> None:
    (fake_study.folder / "runs" / "hold-text-s3" / "run.json").write_text("{")
    assert f"{export.last_record(fake_study.folder):%Y-%m-%d}" == "2026-01-01"


def test_a_disk_that_is_full_while_latex_works_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_, **__) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(typesetting.shutil, "which", lambda name: name)
    monkeypatch.setattr(typesetting.subprocess, "run", full)
    with pytest.raises(export.ExportFailed, match="report.pdf was not made: .*No space left on device"):
        typesetting.typeset(tmp_path, "", datetime.now(UTC))
