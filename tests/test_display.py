"""What a figure and a table look like to each front end, and in the files."""

import base64

import altair as alt
import pandas as pd
import pytest
from hybridlib.analysis.display import LATEX, escaped, figure, table

CAPTION = "Loss of memory_optimized, 5 % & more"


@pytest.fixture
def shown(tmp_path):
    chart = alt.Chart(pd.DataFrame({"x": [1, 2], "y": [3, 4]})).mark_point().encode(x="x:Q", y="y:Q")
    return figure(chart, "name", CAPTION, tmp_path)


def test_a_figure_has_every_form_that_a_reader_needs(shown, tmp_path) -> None:
    data, metadata = shown._repr_mimebundle_()
    assert "vega-lite/v5" in data["application/vnd.vegalite.v5+json"]["$schema"]
    png = base64.b64decode(data["image/png"])
    assert png == (tmp_path / "plots/name.png").read_bytes() and png.startswith(b"\x89PNG")
    assert (tmp_path / "plots/name.pdf").read_bytes().startswith(b"%PDF")
    assert "<svg" in (tmp_path / "plots/name.svg").read_text()[:200]
    assert "text/markdown" not in data, "a viewer would prefer it to the picture, and not find the file"
    report = metadata["report"]
    assert r"\caption{Loss of memory\_optimized, 5 \% \& more}" in report["text/latex"]
    assert r"{plots/name.pdf}" in report["text/latex"] and "[H]" in report["text/latex"]
    assert report["text/markdown"].startswith(f"![{CAPTION}](plots/name.png)")
    assert metadata["caption"] == CAPTION


def test_the_same_chart_gives_the_same_files(shown, tmp_path) -> None:
    before = {p.name: p.read_bytes() for p in (tmp_path / "plots").iterdir() if p.suffix != ".pdf"}
    chart = alt.Chart(pd.DataFrame({"x": [1, 2], "y": [3, 4]})).mark_point().encode(x="x:Q", y="y:Q")
    figure(chart, "name", CAPTION, tmp_path)
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "plots").iterdir() if p.suffix != ".pdf"}


def test_a_table_is_escaped_in_every_format(tmp_path) -> None:
    frame = pd.DataFrame({"an arm": ["a_b", "c|d"], "share (%)": ["5 %", "<1"]})
    data, _ = table(frame, "name", CAPTION, tmp_path)._repr_mimebundle_()
    latex = (tmp_path / "tables/name.tex").read_text()
    assert data["text/latex"] + "\n" == latex
    assert r"a\_b" in latex and r"5 \%" in latex and r"share (\%)" in latex and r"\toprule" in latex
    assert "&lt;1" in data["text/html"] and "5 % &amp; more" in data["text/html"]
    assert "c¦d" in data["text/markdown"] and "| an arm" in data["text/markdown"]


def test_long_cells_wrap_and_numbers_are_set_right(tmp_path) -> None:
    frame = pd.DataFrame({"name": ["a", "b1"], "n": ["1.5", "–"], "why": ["word " * 30, "x"]})
    latex = table(frame, "name", "c", tmp_path)._repr_mimebundle_()[0]["text/latex"]
    assert r"\begin{tabular}{lr>{\raggedright\arraybackslash}p{" in latex


def test_a_table_without_rows_is_a_row_of_dashes(tmp_path) -> None:
    data, _ = table(pd.DataFrame(columns=["a", "b"]), "name", "c", tmp_path)._repr_mimebundle_()
    assert "– & –" in data["text/latex"]


def test_every_special_character_is_escaped_once() -> None:
    assert escaped("".join(LATEX)) == "".join(LATEX.values())
    assert escaped("plain Δ ≤ 2 × π") == "plain Δ ≤ 2 × π"
