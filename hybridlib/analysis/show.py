"""Show figures, tables and sentences in a chapter and, under the pipeline, save them for the report to show again."""

import html
import json
import os
from base64 import b64decode, b64encode
from dataclasses import asdict, dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import altair as alt
import IPython.display
import pandas as pd
import vl_convert as vlc
from PIL import Image

from hybridlib.analysis.theme import NO_RECORDS, TEXT_WIDTH_PX
from hybridlib.analysis.wording import escaped, latex_table
from hybridlib.study.plan import PIPELINE
from hybridlib.study.storage import write_atomically

# JupyterLab draws Vega-Lite 5, of which these charts use nothing that version 6 changed.
JUPYTERLAB_SCHEMA = "https://vega.github.io/schema/vega-lite/v5.20.1.json"
VEGALITE = "application/vnd.vegalite.v5+json"
PNG_SCALE = 2

Content = alt.TopLevelMixin | pd.DataFrame | str


def keep_file(file: Path, content: str | bytes | None) -> None:
    """Write `content`, which a chapter found, to `file`, or delete it for None; without the pipeline change nothing."""
    if PIPELINE not in os.environ:
        return
    if content is None:
        return file.unlink(missing_ok=True)
    write_atomically(file, content)


@dataclass(frozen=True)
class Displayed:
    """One content in several mime types, the `bundle`, of which each front end takes the best it knows.

    `report` holds the forms that only the report's exporters may see: other readers of a notebook would prefer them to
    the picture, and find no file at their end. A report leaves out what is `empty`: it has no record in it. `caption`
    stands under a figure.
    """

    bundle: dict[str, Any]
    caption: str = ""
    report: dict[str, str] = field(default_factory=dict)
    empty: bool = False

    @classmethod
    def markdown(cls, text: str, **more: Any) -> "Displayed":
        """Return `text` in Markdown, with `more` fields."""
        return cls({"text/markdown": text, "text/plain": text}, **more)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.bundle, dict(caption=self.caption, report=self.report, empty=self.empty)


@dataclass(frozen=True)
class Shown:
    """What a `chapter` showed under a `name`, with its `caption` and a `reading` that says how to read it.

    `content` depends on the `kind`: a figure's Vega-Lite specification, a table's columns and rows, or a sentence in
    Markdown. What is `empty` has no record in it.
    """

    name: str
    kind: Literal["figure", "table", "text"]
    content: Any
    caption: str
    reading: str
    chapter: str
    empty: bool = False

    @classmethod
    def of(cls, content: Content, name: str, caption: str, reading: str, chapter: str) -> "Shown":
        """Return a chart, a frame or a sentence, `content`, as it is saved with the `name`, `caption`, `reading` and
        `chapter`. What is missing in a frame is a dash. Raise `ValueError` for a chart that nobody is told how to read.
        """
        if isinstance(content, str):
            return cls(name, "text", content, caption, reading, chapter, empty=not content)
        if isinstance(content, pd.DataFrame):
            cells = content.astype(object).where(content.notna(), "–").astype(str)
            table = dict(columns=list(map(str, cells.columns)), rows=cells.to_numpy().tolist())
            return cls(name, "table", table, caption, reading, chapter, empty=not len(cells))
        if not (caption and reading):
            raise ValueError(f"figure {name!r} needs a caption, and a sentence that says how to read it")
        return cls(name, "figure", content.to_dict(), caption, reading, chapter, empty=content.usermeta == NO_RECORDS)

    @property
    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(self.content["rows"], columns=self.content["columns"])

    @cached_property
    def displayed(self) -> Displayed:
        """Return every form that a reader may meet it in."""
        if self.kind == "text":
            return Displayed.markdown(self.content, empty=self.empty)
        if self.kind == "table":
            text = self.frame if len(self.frame) else pd.DataFrame([dict.fromkeys(self.frame, "–")])
            page = text.style.hide(axis="index").set_caption(html.escape(self.caption)).format(escape="html")
            cells = text.map(lambda cell: cell.replace("|", "¦")).to_markdown(index=False, disable_numparse=True)
            forms = {"text/html": page.to_html(table_uuid=self.name), "text/latex": latex_table(text, self.caption)}
            forms |= {"text/markdown": f"*{self.caption}*\n\n{cells}"}
            forms |= {"text/plain": f"{self.caption}\n{text.to_string(index=False)}"}
            return Displayed(forms, self.caption, empty=self.empty)
        png, width_px = picture(self.content)
        share = min(1.0, width_px / TEXT_WIDTH_PX)
        graphics = rf"\includegraphics[width={share:.3f}\linewidth]{{shown/{self.name}.pdf}}"
        caption = rf"\caption{{{escaped(self.caption)}}}"
        latex = "\n".join([r"\begin{figure}[H]", r"\centering", graphics, caption, r"\end{figure}"])
        markdown = f"![{self.caption}](shown/{self.name}.png)\n\n*{self.caption}*"
        forms = {VEGALITE: self.content | {"$schema": JUPYTERLAB_SCHEMA}, "image/png": b64encode(png).decode()}
        forms |= {"text/plain": f"Figure {self.name}: {self.caption}"}
        return Displayed(forms, self.caption, {"text/latex": latex, "text/markdown": markdown}, self.empty)

    def explained(self, link: bool) -> Displayed | None:
        """Return how to read it and, with `link`, which chapter it comes from; None where there is nothing to say."""
        number, _, title = self.chapter.partition("_")
        linked = link and self.kind != "text"

        def text(notebooks: str) -> str:
            where = f"[Chapter {number}, {title}]({notebooks}{self.chapter}.ipynb)." if linked else ""
            return f"{self.reading} {where}".strip()

        report = {"text/markdown": text("notebooks/")}  # from the study's folder, where the report lies
        return Displayed({"text/markdown": text("")}, report=report, empty=self.empty) if text("") else None

    def display(self, link: bool) -> None:
        """Display it and how to read it, with a `link` to its chapter if asked for."""
        IPython.display.display(*filter(None, [self.displayed, self.explained(link)]))

    def save(self, folder: Path, content: Content) -> None:
        """Write to `folder` the `<name>.json` that a report reads, and `content`, as it was given: a figure as .png,
        .svg and .pdf, a table as .tex and .csv."""
        file = folder / f"{self.name}.json"
        keep_file(file, json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n")
        if self.kind == "table":
            keep_file(file.with_suffix(".tex"), self.displayed.bundle["text/latex"] + "\n")
            keep_file(file.with_suffix(".csv"), content.to_csv(index=False))
        elif self.kind == "figure":
            keep_file(file.with_suffix(".svg"), vlc.vegalite_to_svg(self.content))
            keep_file(file.with_suffix(".png"), b64decode(self.displayed.bundle["image/png"]))
            keep_file(file.with_suffix(".pdf"), vlc.vegalite_to_pdf(self.content))


class Show:
    """Show what a chapter found about the study whose outputs lie in `study_folder`; one for each chapter."""

    def __init__(self, study_folder: Path) -> None:
        self.folder, self.chapter = study_folder / "shown", os.environ.get(PIPELINE, "")

    def __call__(self, content: Content, name: str = "", caption: str = "", reading: str = "") -> None:
        """Show `content`, a chart with its `caption` and `reading`, a table with its caption, or a sentence, and save
        it by its `name`. With a name alone, show what a chapter saved.

        Raise `ValueError` for a chart that nobody is told how to read.
        """
        if name:
            shown = Shown.of(content, name, caption, reading, self.chapter)
            if self.chapter:
                shown.save(self.folder, content)
            shown.display(link=False)
        elif found := self.saved(content):
            found.display(link=True)
        else:  # a report leaves it out
            said = f"*`{content}` was not made: the chapter that shows it was not executed for this study.*"
            IPython.display.display(Displayed.markdown(said, empty=True))

    def saved(self, name: str) -> Shown | None:
        """Return what a chapter saved by this `name`; None where it did not, or what it saved is damaged."""
        try:
            return Shown(**json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


def picture(spec: dict[str, Any]) -> tuple[bytes, float]:
    """Return the chart of a Vega-Lite `spec` as PNG, and its width in px; a palette keeps a notebook small."""
    drawn = Image.open(BytesIO(vlc.vegalite_to_png(spec, scale=PNG_SCALE))).convert("RGB")
    out = BytesIO()
    drawn.quantize(256, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue(), drawn.width / PNG_SCALE
