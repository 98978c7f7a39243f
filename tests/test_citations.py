"""Citations: every entry is cited, every citation has its entry, and each format of the report resolves them."""

import re

import pytest
from nbconvert.utils import pandoc

from hybridlib.study.citations import CITATION, LIST, REFERENCES, cited, cited_markdown
from hybridlib.study.parameters import ROOT

KEYS = re.findall(r"^@\w+\{(\w+),", REFERENCES.read_text(encoding="utf-8"), re.MULTILINE)
NOTEBOOKS = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "notebooks").glob("*.ipynb")))
SAID = "As $x_1 \\le 2$ [@kingma2015; @halko2011, algorithm 4.4]; @wen2025 say so."


def test_every_entry_is_cited_and_every_citation_has_one() -> None:
    found = {key.lstrip("-@") for key in CITATION.findall(NOTEBOOKS)}
    assert found == set(KEYS) and len(KEYS) == len(set(KEYS)) > 20


@pytest.mark.parametrize(("form", "link"), [("html", 'href="#ref-kingma2015"'), ("latex", "ref-kingma2015")])
def test_a_citation_is_author_and_year_and_links_to_its_entry(form: str, link: str) -> None:
    text = " ".join(cited(SAID, form).split())
    assert "Kingma and Ba 2015" in text and "algorithm 4.4" in text and link in text and "[@" not in text
    assert "Adam: A Method" not in text, "the list stands elsewhere"
    whole = cited(f"## References\n\n::: {LIST}\n:::", form)
    assert all(f"ref-{key}" in whole for key in KEYS)


def test_markdown_has_citations_and_references_as_text_and_formulas_as_they_were() -> None:
    text = cited_markdown(SAID)
    assert text.startswith("As $x_1 \\le 2$ (Kingma and Ba 2015; Halko,") and "[" not in text
    listed = cited_markdown(f"## References\n\n::: {LIST}\n:::")
    assert listed.startswith("## References") and ":::" not in listed and "Kingma, Diederik P." in listed


@pytest.mark.parametrize(
    "text", ["Plain *text* with an e-mail, a@b2019.org, and $x$.", "| a | b |\n|--|--|\n| 1 | 2 |"]
)
def test_markdown_without_citations_stays_as_it_is(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cited_markdown(text) == text
    monkeypatch.setattr(pandoc, "check_pandoc_version", lambda: (_ for _ in ()).throw(pandoc.PandocMissing()))
    assert cited_markdown(SAID) == SAID
