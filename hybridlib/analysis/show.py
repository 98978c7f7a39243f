"""Show figures, tables and sentences in a chapter and, under the pipeline, save them for the report to show again."""

import html
import json
import os
import re
from base64 import b64encode
from dataclasses import asdict, dataclass, field
from functools import cached_property
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, Literal

import altair as alt
import IPython.display
import pandas as pd
import vl_convert as vlc
from PIL import Image

from hybridlib.analysis.latex import caption_of, latex_table, numeric
from hybridlib.analysis.theme import NO_RECORDS, TEXT_WIDTH_PX
from hybridlib.study.plan import PIPELINE
from hybridlib.study.storage import write_atomically

# JupyterLab draws Vega-Lite 5, of which these charts use nothing that version 6 changed. It warns of a minor
# version that is younger than its own, so none is named.
JUPYTERLAB_SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"
VEGALITE = "application/vnd.vegalite.v5+json"
PNG_SCALE = 2
LEFT = [dict(selector="", props="text-align: left")]
VERDICTS = ("PASS", "FAIL", "INCONCLUSIVE")  # cells that a page may colour

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

    `about` says what it is, for the report's exporters: name, kind, caption and more. A report leaves out what is
    `empty`: it has no record in it.
    """

    bundle: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)
    empty: bool = False

    @classmethod
    def markdown(cls, text: str, **more: Any) -> "Displayed":
        """Return `text` in Markdown, with `more` fields."""
        return cls({"text/markdown": text, "text/plain": text}, **more)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.bundle, self.about | dict(empty=self.empty)


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

    def displayed(self, chapter: str = "") -> Displayed:
        """Return every form that a reader may meet it in; a report's says which `chapter` it comes from."""
        if self.kind == "text":
            return Displayed.markdown(self.content, empty=self.empty)
        about = dict(kind=self.kind, name=self.name, caption=self.caption, reading=self.reading, chapter=chapter)
        plain = {"text/plain": f"{self.kind.capitalize()} {self.name}: {self.caption}"}
        if self.kind == "figure":
            png = b64encode(self.picture[0]).decode()
            about["latex_caption"] = caption_of(f"figure-{self.name}", self.caption, self.reading, chapter)
            about["width"] = round(min(1.0, self.picture[1] / TEXT_WIDTH_PX), 3)  # of the text's
            forms = {VEGALITE: self.content | {"$schema": JUPYTERLAB_SCHEMA}, "image/png": png}
            return Displayed(forms | plain, about, self.empty)
        text = self.frame if len(self.frame) else pd.DataFrame([dict.fromkeys(self.frame, "–")])
        caption = re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(self.caption))
        page = text.style.hide(axis="index").set_caption(caption).format(escape="html")
        words = {column: LEFT for column in text if not numeric(text[column])}  # JupyterLab sets all cells right
        page = page.set_table_styles(words)
        page = page.set_td_classes(text.map(lambda cell: cell if cell in VERDICTS else ""))
        cells = text.map(lambda cell: cell.replace("|", "¦")).to_markdown(index=False, disable_numparse=True)
        forms = {"text/html": page.to_html(table_uuid=self.name)}
        forms |= {"text/latex": latex_table(text, self.name, self.caption, self.reading, chapter)}
        forms |= {"text/markdown": f"*{self.caption}*\n\n{cells}", "text/plain": text.to_string(index=False)}
        return Displayed(forms, about, self.empty)

    @cached_property
    def picture(self) -> tuple[bytes, float]:
        """A figure as PNG, and its width in px; a palette keeps a notebook small."""
        drawn = Image.open(BytesIO(vlc.vegalite_to_png(self.content, scale=PNG_SCALE))).convert("RGB")
        out = BytesIO()
        drawn.quantize(256, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
        return out.getvalue(), drawn.width / PNG_SCALE

    def explained(self, link: bool) -> Displayed | None:
        """Return a figure's caption, how to read what is shown and, with `link`, which chapter it comes from, for a
        notebook's reader; a report has all in the caption. Return None where there is nothing to say.
        """
        number, _, title = self.chapter.partition("_")
        where = f"[Chapter {number}, {title}]({self.chapter}.ipynb)." if link and self.kind != "text" else ""
        caption = f"*{self.caption}*" if self.kind == "figure" else ""
        text = " ".join(filter(None, [caption, self.reading, where]))
        return Displayed.markdown(text, about=dict(kind="aside")) if text else None

    def display(self, link: bool) -> None:
        """Display it and how to read it, with a `link` to its chapter if asked for."""
        shown = self.displayed(self.chapter if link else "")
        IPython.display.display(*filter(None, [shown, self.explained(link)]))

    def save(self, folder: Path, content: Content) -> None:
        """Write to `folder` the `<name>.json` that a report reads, and `content`, as it was given: a figure as .png,
        .svg and .pdf, a table as .tex, and both as .csv."""
        file = folder / f"{self.name}.json"
        keep_file(file, json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n")
        if self.kind == "table":
            keep_file(file.with_suffix(".tex"), self.displayed().bundle["text/latex"] + "\n")
            keep_file(file.with_suffix(".csv"), content.to_csv(index=False))
        elif self.kind == "figure":
            keep_file(file.with_suffix(".svg"), vlc.vegalite_to_svg(self.content))
            keep_file(file.with_suffix(".png"), self.picture[0])
            keep_file(file.with_suffix(".pdf"), vlc.vegalite_to_pdf(self.content))
            keep_file(file.with_suffix(".csv"), drawn_data(self.content).to_csv(index=False))


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


def drawn_data(spec: dict[str, Any]) -> pd.DataFrame:
    """Return what a Vega-Lite `spec` draws: its data sets one after the other, numbered in `data_set` if several."""
    sets = spec.get("datasets", {}).values()
    frames = [pd.read_csv(StringIO(data), dtype=str) if isinstance(data, str) else pd.DataFrame(data) for data in sets]
    if len(frames) > 1:
        return pd.concat([frame.assign(data_set=at) for at, frame in enumerate(frames, 1)], ignore_index=True)
    return frames[0] if frames else pd.DataFrame()
