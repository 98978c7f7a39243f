"""Show a figure, a table or a sentence in a chapter and, under the pipeline, save it: the report shows what was saved."""

import html
import json
import os
import re
from base64 import b64decode, b64encode
from dataclasses import asdict, dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from textwrap import wrap
from typing import Any, Literal

import altair as alt
import IPython.display
import pandas as pd
import vl_convert as vlc
from PIL import Image

from hybridlib.analysis.theme import NOTHING, TEXT_WIDTH_PX
from hybridlib.study.parameters import ROOT
from hybridlib.study.plan import PIPELINE
from hybridlib.study.storage import write_atomically

# JupyterLab draws Vega-Lite 5, of which these charts use nothing that version 6 changed.
JUPYTERLAB_SCHEMA = "https://vega.github.io/schema/vega-lite/v5.20.1.json"
VEGALITE = "application/vnd.vegalite.v5+json"
LATEX = dict(
    zip(
        "\\&%$#_{}~^",
        [
            r"\textbackslash{}",
            r"\&",
            r"\%",
            r"\$",
            r"\#",
            r"\_",
            r"\{",
            r"\}",
            r"\textasciitilde{}",
            r"\textasciicircum{}",
        ],
    )
)
WIDE_CHARACTERS = 28  # a column with longer cells is set as a paragraph
LINEWIDTHS_A_CHARACTER = 0.0105  # in a table's font, about
PNG_SCALE = 2


def keep_file(file: Path, content: str | bytes | None) -> None:
    """Write what a chapter found, or delete it for None; only under the pipeline: trying things out changes no file."""
    if PIPELINE not in os.environ:
        return
    if content is None:
        return file.unlink(missing_ok=True)
    write_atomically(file, content)


def quoted(chapter: str, heading: str) -> IPython.display.Markdown:
    """Return the text that a chapter has under a heading, for a report that has to stand alone."""
    notebook = json.loads((ROOT / "notebooks" / f"{chapter}.ipynb").read_text(encoding="utf-8"))
    text = "\n\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    sections = dict(part.partition("\n")[::2] for part in re.split(r"^#+ ", text, flags=re.M))
    return IPython.display.Markdown(sections[heading].strip())


@dataclass(frozen=True)
class Displayed:
    """One content in several mime types, of which each front end takes the best it knows.

    `report` holds the forms that only the report's exporters may see: other readers of a notebook would prefer them
    to the picture, and find no file at their end. What is `empty` has no record in it, and a report leaves it out.
    """

    bundle: dict[str, Any]
    caption: str = ""
    report: dict[str, str] = field(default_factory=dict)
    empty: bool = False

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.bundle, dict(caption=self.caption, report=self.report, empty=self.empty)


@dataclass(frozen=True)
class Shown:
    """What a chapter showed: a figure's Vega-Lite specification, a table's columns and rows, or a sentence in Markdown."""

    name: str
    kind: Literal["figure", "table", "text"]
    content: Any
    caption: str
    reading: str  # how to read it
    chapter: str  # which made it
    empty: bool = False

    @property
    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(self.content["rows"], columns=self.content["columns"])

    @cached_property
    def displayed(self) -> Displayed:
        """Every form that a reader may meet it in."""
        if self.kind == "text":
            return Displayed({"text/markdown": self.content, "text/plain": self.content}, empty=self.empty)
        if self.kind == "table":
            text = self.frame if len(self.frame) else pd.DataFrame([dict.fromkeys(self.frame, "–")])
            page = text.style.hide(axis="index").set_caption(html.escape(self.caption)).format(escape="html")
            cells = text.map(lambda cell: cell.replace("|", "¦")).to_markdown(index=False, disable_numparse=True)
            forms = {"text/html": page.to_html(table_uuid=self.name), "text/latex": latex_table(text, self.caption)}
            forms |= {
                "text/markdown": f"*{self.caption}*\n\n{cells}",
                "text/plain": f"{self.caption}\n{text.to_string(index=False)}",
            }
            return Displayed(forms, self.caption, empty=self.empty)
        png, width_px = picture(self.content)
        share = min(1.0, width_px / TEXT_WIDTH_PX)
        graphics = rf"\includegraphics[width={share:.3f}\linewidth]{{shown/{self.name}.pdf}}"
        lines = [
            r"\begin{figure}[H]",
            r"\centering",
            graphics,
            rf"\caption{{{escaped(self.caption)}}}",
            r"\end{figure}",
        ]
        report = {
            "text/latex": "\n".join(lines),
            "text/markdown": f"![{self.caption}](shown/{self.name}.png)\n\n*{self.caption}*",
        }
        forms = {VEGALITE: self.content | {"$schema": JUPYTERLAB_SCHEMA}, "image/png": b64encode(png).decode()}
        forms |= {"text/plain": f"Figure {self.name}: {self.caption}"}
        return Displayed(forms, self.caption, report, self.empty)

    def said(self, link: bool) -> Displayed | None:
        """Return how to read it and, if asked to, where it comes from; None where there is nothing to say."""
        number, _, title = self.chapter.partition("_")
        where = f"[Chapter {number}, {title}]({{}}{self.chapter}.ipynb)." if link and self.kind != "text" else ""
        text = " ".join(filter(None, [self.reading.replace("{", "{{").replace("}", "}}"), where]))
        report = {"text/markdown": text.format("notebooks/")}  # from the study's folder, where the report lies
        return Displayed({"text/markdown": text.format("")}, report=report, empty=self.empty) if text else None


class Show:
    """Show what a chapter of a study found; one for each chapter."""

    def __init__(self, study_folder: Path) -> None:
        self.folder, self.chapter = study_folder / "shown", os.environ.get(PIPELINE, "")

    def __call__(
        self, content: alt.TopLevelMixin | pd.DataFrame | str, name: str = "", caption: str = "", reading: str = ""
    ) -> None:
        """Show a chart with its caption and how to read it, a table with its caption, or a sentence in Markdown; and save it by
        its name. With a name alone, show what a chapter saved.

        Raise `ValueError` for a chart that nobody is told how to read.
        """
        if not name:
            found = self.saved(content)
            said = f"*`{content}` was not made: the chapter that shows it was not executed for this study.*"
            return show_parts(found, link=True) if found else IPython.display.display(IPython.display.Markdown(said))
        shown = made(content, name, caption, reading, self.chapter)
        if self.chapter:
            save_files(shown, self.folder, content)
        show_parts(shown, link=False)

    def saved(self, name: str) -> Shown | None:
        """Return what a chapter saved by this name; None where it did not, or what it saved is damaged."""
        try:
            return Shown(**json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


def show_parts(shown: Shown, link: bool) -> None:
    IPython.display.display(*filter(None, [shown.displayed, shown.said(link)]))


def made(content: alt.TopLevelMixin | pd.DataFrame | str, name: str, caption: str, reading: str, chapter: str) -> Shown:
    """Return a chart, a frame or a sentence as it is saved. What is missing in a table is a dash."""
    if isinstance(content, str):
        return Shown(name, "text", content, caption, reading, chapter)
    if isinstance(content, pd.DataFrame):
        cells = content.astype(object).where(content.notna(), "–").astype(str)
        table = dict(columns=list(map(str, cells.columns)), rows=cells.to_numpy().tolist())
        return Shown(name, "table", table, caption, reading, chapter, empty=not len(cells))
    if not (caption and reading):
        raise ValueError(f"figure {name!r} needs a caption, and a sentence that says how to read it")
    return Shown(name, "figure", content.to_dict(), caption, reading, chapter, empty=content.usermeta == NOTHING)


def save_files(shown: Shown, folder: Path, content: alt.TopLevelMixin | pd.DataFrame | str) -> None:
    """Write `<name>.json` with all that a report shows, and a figure as .png, .svg and .pdf, a table as .tex and .csv."""
    file = folder / f"{shown.name}.json"
    keep_file(file, json.dumps(asdict(shown), ensure_ascii=False, indent=1) + "\n")
    if shown.kind == "table":
        keep_file(file.with_suffix(".tex"), shown.displayed.bundle["text/latex"] + "\n")
        keep_file(file.with_suffix(".csv"), content.to_csv(index=False))
    elif shown.kind == "figure":
        keep_file(file.with_suffix(".svg"), vlc.vegalite_to_svg(shown.content))
        keep_file(file.with_suffix(".png"), b64decode(shown.displayed.bundle["image/png"]))
        keep_file(file.with_suffix(".pdf"), vlc.vegalite_to_pdf(shown.content))


def escaped(text: str) -> str:
    """Return plain text as LaTeX that prints the same."""
    return "".join(LATEX.get(c, c) for c in text)


def latex_table(text: pd.DataFrame, caption: str) -> str:
    """Return a float as wide as its content, shrunk to the text's width only if it is wider; long cells wrap."""
    right = {c: text[c].str.match(r"[−<]? ?\d|–$|∞$").all() for c in text}
    cells = {c: text[c].str.len().max() for c in text}
    heads = {c: wrap(str(c), max(cells[c], 9), break_long_words=False) for c in text}
    widest = {c: max(cells[c], *map(len, heads[c])) for c in text}
    wrapped = [c for c in text if widest[c] > WIDE_CHARACTERS]
    left = max(0.3, 1.0 - LINEWIDTHS_A_CHARACTER * sum(widest[c] + 2 for c in text if c not in wrapped))
    shares = {c: left * widest[c] / sum(widest[c] for c in wrapped) for c in wrapped}
    paragraph = r">{{\raggedright\arraybackslash}}p{{{:.3f}\linewidth}}"
    columns = "".join(paragraph.format(shares[c]) if c in shares else "r" if right[c] else "l" for c in text)
    titles = [_head([escaped(line) for line in heads[c]], "r" if right[c] else "l") for c in text]
    body = text.map(escaped).set_axis(titles, axis=1)
    tabular = body.style.hide(axis="index").to_latex(column_format=columns, hrules=True).strip()
    shrunk = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
    lines = [
        r"\begin{table}[H]",
        r"\centering\small",
        rf"\caption{{{escaped(caption)}}}",
        shrunk,
        tabular + "}",
        r"\end{table}",
    ]
    return "\n".join(lines)


def _head(lines: list[str], side: str) -> str:
    return lines[0] if len(lines) == 1 else rf"\shortstack[{side}]{{\strut " + r" \\ ".join(lines) + "}"


def picture(spec: dict[str, Any]) -> tuple[bytes, float]:
    """Return a chart as PNG, and its width at scale 1; a palette keeps a notebook full of pictures small."""
    drawn = Image.open(BytesIO(vlc.vegalite_to_png(spec, scale=PNG_SCALE))).convert("RGB")
    out = BytesIO()
    drawn.quantize(256, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue(), drawn.width / PNG_SCALE
