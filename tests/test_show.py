"""What a figure and a table look like to each front end, in the files, and in the report that shows them again."""

import base64
import json
import re

import altair as alt
import IPython.display
import pandas as pd
import pytest
from chapter import definitions

from hybridlib.analysis.latex import LATEX, escaped
from hybridlib.analysis.results import Evidence, keep_frame
from hybridlib.analysis.series import smoothed_lines
from hybridlib.analysis.show import PIPELINE, Displayed, Show, Shown

CAPTION = "Loss of memory_optimized, 5 % & more"
FRAME = pd.DataFrame({"an arm": ["a_b", "c|d"], "share (%)": ["5 %", "<1"]})


def chart() -> alt.Chart:
    return alt.Chart(pd.DataFrame({"x": [1, 2], "y": [3, 4]})).mark_point().encode(x="x:Q", y="y:Q")


@pytest.fixture
def displayed(monkeypatch) -> list:
    """What is displayed, as it comes."""
    found: list = []
    monkeypatch.setattr(IPython.display, "display", lambda *contents: found.extend(contents))
    return found


@pytest.fixture
def show(tmp_path, monkeypatch, displayed) -> Show:
    """As a chapter shows that the pipeline executes."""
    monkeypatch.setenv(PIPELINE, "06_benchmark")
    return Show(tmp_path)


def test_a_figure_has_every_form_that_a_reader_needs(show, displayed, tmp_path) -> None:
    show(chart(), "name", CAPTION, "Read it so.")
    (figure, reading), files = displayed, tmp_path / "shown"
    data, metadata = figure._repr_mimebundle_()
    assert "vega-lite/v5" in data["application/vnd.vegalite.v5+json"]["$schema"]
    png = base64.b64decode(data["image/png"])
    assert png == (files / "name.png").read_bytes() and png.startswith(b"\x89PNG")
    assert (files / "name.pdf").read_bytes().startswith(b"%PDF") and "<svg" in (files / "name.svg").read_text()[:200]
    assert "text/markdown" not in data, "a viewer would prefer it to the picture, and not find the file"
    assert r"\caption[{Loss of memory\_optimized, 5 \% \& more}]" in metadata["latex_caption"]
    assert metadata["caption"] == CAPTION and metadata["kind"] == "figure" and 0 < metadata["width"] <= 1
    assert reading.bundle["text/markdown"] == f"*{CAPTION}* Read it so." and reading.about["kind"] == "aside"


def test_a_figures_data_are_a_csv_one_set_after_the_other(show, tmp_path) -> None:
    show(chart(), "one", CAPTION, "Read it so.")
    assert pd.read_csv(tmp_path / "shown/one.csv").to_dict("list") == {"x": [1, 2], "y": [3, 4]}
    other = alt.Chart(pd.DataFrame({"x": [5], "name": ["a"]})).mark_point().encode(x="x:Q", y="name:N")
    show(alt.hconcat(chart(), other, chart()), "three", CAPTION, "Read it so.")
    found = pd.read_csv(tmp_path / "shown/three.csv")
    assert found.data_set.tolist() == [1, 1, 2] and found.x.tolist() == [1, 2, 5], "the same data stand there once"


def test_the_same_chart_gives_the_same_files(show, tmp_path) -> None:
    show(chart(), "name", CAPTION, "Read it so.")
    before = {p.name: p.read_bytes() for p in (tmp_path / "shown").iterdir() if p.suffix != ".pdf"}
    show(chart(), "name", CAPTION, "Read it so.")
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "shown").iterdir() if p.suffix != ".pdf"}


def test_the_report_shows_what_a_chapter_saved_with_a_link_to_it(show, displayed) -> None:
    show(chart(), "figure", CAPTION, "Read it so, with {braces}.")
    show(FRAME, "table", CAPTION)
    show("A sentence.", "sentence")
    before = [one._repr_mimebundle_() for one in displayed]
    displayed.clear()
    for name in ("figure", "table", "sentence"):
        show(name)
    figure, reading, table, link, sentence = displayed
    for now, then in zip((figure, table, sentence), (before[0], before[2], before[3])):
        assert now.bundle | {"text/latex": ""} == then[0] | {"text/latex": ""}
        assert now.about.get("chapter", "") == ("06_benchmark" if now.about else "")
    where = r"\href{notebooks/06_benchmark.ipynb}{Chapter 06, benchmark}."
    assert where in figure.about["latex_caption"] and where in table.bundle["text/latex"]
    explained = f"*{CAPTION}* Read it so, with {{braces}}. [Chapter 06, benchmark](06_benchmark.ipynb)."
    assert reading.bundle["text/markdown"] == explained
    assert link.bundle["text/markdown"] == "[Chapter 06, benchmark](06_benchmark.ipynb)."


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"name": "x"}'])
def test_what_was_not_made_or_is_damaged_says_so_in_one_line(show, displayed, content) -> None:
    if content is not None:
        show.folder.mkdir()
        (show.folder / "missing.json").write_text(content)
    show("missing")
    text = displayed[0].bundle["text/markdown"]
    assert len(displayed) == 1 and "`missing` was not made" in text and "\n" not in text
    assert displayed[0].empty, "a report leaves it out"


def test_by_hand_nothing_is_written_and_all_is_displayed(tmp_path, monkeypatch, displayed) -> None:
    monkeypatch.delenv(PIPELINE, raising=False)
    show, evidence = Show(tmp_path), Evidence(tmp_path, "stress")
    show(chart(), "figure", CAPTION, "Read it so.")
    show(FRAME, "table", CAPTION)
    keep_frame(tmp_path, "frame", FRAME)
    evidence.add("ST-1", "about", True, "evidence")
    assert len(displayed) == 3 and evidence.table().passed.tolist() == ["yes"]
    assert list(tmp_path.iterdir()) == []


def test_evidence_is_judged_anew(tmp_path, show) -> None:
    Evidence(tmp_path, "stress").add("ST-1", "about", False, "evidence")
    assert pd.read_csv(tmp_path / "results" / "stress.csv").passed.tolist() == [False]
    Evidence(tmp_path, "stress")
    assert not (tmp_path / "results" / "stress.csv").exists()


def test_a_figure_needs_to_be_read(show) -> None:
    with pytest.raises(ValueError, match="'name' needs a caption"):
        show(chart(), "name", CAPTION)


def forms(frame: pd.DataFrame) -> Displayed:
    return Shown.of(frame, "name", CAPTION, "", "").displayed()


def test_a_table_is_escaped_in_every_format(show, tmp_path) -> None:
    show(FRAME, "name", CAPTION)
    data, latex = forms(FRAME).bundle, (tmp_path / "shown/name.tex").read_text()
    assert data["text/latex"] + "\n" == latex
    assert r"a\_b" in latex and r"5 \%" in latex and r"share (\%)" in latex and r"\toprule" in latex
    assert "&lt;1" in data["text/html"] and "5 % &amp; more" in data["text/html"]
    assert "c¦d" in data["text/markdown"] and "| an arm" in data["text/markdown"]
    assert pd.read_csv(tmp_path / "shown/name.csv").equals(FRAME)


def test_long_cells_wrap_and_numbers_are_set_right() -> None:
    frame = pd.DataFrame({"name": ["a", "b1"], "n": ["1.5", "–"], "why": ["word " * 30, "x"]})
    assert r"\begin{tabular}{lr>{\raggedright\arraybackslash}p{" in forms(frame).bundle["text/latex"]


def test_a_page_sets_words_left_and_code_in_a_caption_as_code() -> None:
    frame = pd.DataFrame({"name": ["a", "b1"], "n": ["1.5", "–"], "why": ["more words", "x"]})
    page = Shown.of(frame, "name", "After `a<b`", "", "").displayed().bundle["text/html"]
    assert re.findall(r"#T_name \.(\w+) \{\s*text-align: left;", page) == ["col0", "col2"]
    assert "<caption>After <code>a&lt;b</code></caption>" in page


def test_a_verdict_can_be_coloured() -> None:
    page = forms(pd.DataFrame({"criterion": ["C1", "C2"], "verdict": ["PASS", "FAIL"]})).bundle["text/html"]
    assert re.findall(r'<td[^>]*class="[^"]*\b(PASS|FAIL)"', page) == ["PASS", "FAIL"]


def test_a_table_that_would_shrink_too_much_is_turned() -> None:
    wide = pd.DataFrame({f"a column {at}": ["1.234567 ± 0.1"] for at in range(12)})
    assert r"\begin{sidewaystable}" in forms(wide).bundle["text/latex"]
    long = pd.concat([wide] * 40)
    assert forms(long).bundle["text/latex"].startswith(r"\begin{landscape}")
    assert r"\begin{table}[htbp]" in forms(wide.iloc[:, :4]).bundle["text/latex"]


def test_a_table_without_rows_is_a_row_of_dashes_and_empty() -> None:
    found = forms(pd.DataFrame(columns=["a", "b"]))
    assert "– & –" in found.bundle["text/latex"] and found.empty


def test_a_figure_of_no_records_is_empty_and_one_of_some_is_not() -> None:
    losses = pd.DataFrame({"arm": ["hold"], "data": "text", "seed": 1, "step": [1], "real": 1, "loss": [4.0]})
    shown = [
        Shown.of(smoothed_lines(frame, "loss", "loss"), "loss", "Loss", "Read", "")
        for frame in (losses, losses.head(0))
    ]
    assert [one.empty for one in shown] == [False, True]
    assert "no records to draw" in json.dumps(shown[1].content)


def test_a_part_without_an_interval_draws_none_beside_one_that_has_its_own() -> None:
    forest = definitions("09_report", titles={"ratio": "ratio (×)"}, shapes={"PASS": "circle"})["forest"]
    columns = ["row", "value", "low", "high", "threshold", "verdict"]
    parts = [["one seed", 2.7, None, None, 1.3, "PASS"], ["three seeds", 2.0, 1.9, 2.1, 1.5, "PASS"]]
    drawn = {
        layer.mark.type: list(layer.data.row) for layer in forest(pd.DataFrame(parts, columns=columns), "ratio").layer
    }
    both = ["one seed", "three seeds"]
    assert drawn == dict(tick=both, rule=["three seeds"], point=both)


def test_every_special_character_is_escaped_once() -> None:
    assert escaped("".join(LATEX)) == "".join(LATEX.values())
    assert escaped("plain Δ ≤ 2 × π") == "plain Δ ≤ 2 × π"


def test_a_chapters_section_is_quoted_without_its_heading() -> None:
    text = definitions("09_report")["quoted"]("00_question", "Statistics").data
    assert text.startswith("The unit is a seed") and "#" not in text
