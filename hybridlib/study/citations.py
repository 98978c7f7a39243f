"""Markdown through pandoc, which resolves citations such as `[@kingma2015]` from `notebooks/references.bib`."""

import re
from functools import cache

from nbconvert.filters import convert_pandoc
from nbconvert.utils.pandoc import PandocMissing

from hybridlib.study.parameters import ROOT

REFERENCES = ROOT / "notebooks" / "references.bib"
CITATION = re.compile(r"(?<![\w.])-?@[a-z]\w*\d{4}")  # a key is a name and a year
LIST = "{#refs}"  # marks where the list of references is to stand
PLAIN = "markdown_strict+tex_math_dollars+pipe_tables"  # Markdown that every reader of it knows


@cache
def references() -> str:
    """Return all of REFERENCES as metadata that stands before a text. pandoc opens no file: it takes names for URLs."""
    return convert_pandoc(REFERENCES.read_text(encoding="utf-8"), "biblatex", "markdown", extra_args=["--standalone"])


def cited(text: str, form: str, *options: str) -> str:
    """Return Markdown `text` in pandoc's format `form`, by its further `options`, with citations as author and year.

    Each links to its entry in the list of references, which stands where the text has LIST. Raises `PandocMissing`.
    """
    if LIST in text or CITATION.search(text):
        options += ("--citeproc", "--metadata=link-citations")
        options += () if LIST in text else ("--metadata=suppress-bibliography",)
        text = f"{references()}\n\n{text}"
    return convert_pandoc(text, "markdown", form, extra_args=[*options])


def cited_markdown(text: str) -> str:
    """Return Markdown `text` with citations as author and year, as it is where it has none or there is no pandoc."""
    if LIST not in text and not CITATION.search(text):
        return text
    try:
        return re.sub(r"\[([^]]*)\]\(#ref-\w+\)", r"\1", cited(text, PLAIN, "--wrap=none"))
    except PandocMissing:
        return text
