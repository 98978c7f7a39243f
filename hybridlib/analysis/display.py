"""Puts a figure or a table into a notebook, and into files, in every form that a reader may meet it in."""

import html
from base64 import b64encode
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from textwrap import wrap
from typing import Any

import altair as alt
import pandas as pd
import vl_convert as vlc
from PIL import Image

from hybridlib.analysis.theme import NOTHING, TEXT_WIDTH_PX

# JupyterLab draws Vega-Lite 5, of which these charts use nothing that version 6 changed.
JUPYTERLAB_SCHEMA = "https://vega.github.io/schema/vega-lite/v5.20.1.json"

LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}
WIDE_CHARACTERS = 28  # a column with longer cells is set as a paragraph
LINEWIDTHS_A_CHARACTER = 0.0105  # in a table's font, about


@dataclass(frozen=True)
class Shown:
    """What a notebook displays: one content in several mime types, of which each front end takes the best it knows.

    `report` holds the forms that only the report's exporters may see: other readers of a notebook would prefer them
    to the picture, and find no file at their end. What is `empty` has no record in it, and a report leaves it out.
    """

    bundle: dict[str, Any]
    caption: str
    report: dict[str, str] = field(default_factory=dict)
    empty: bool = False

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.bundle, {"caption": self.caption, "report": self.report, "empty": self.empty}


def figure(chart: alt.TopLevelMixin, name: str, caption: str, study_folder: Path) -> Shown:
    """Saves `plots/<name>.png`, `.svg` and `.pdf`; shows the interactive chart, a picture, or a LaTeX float."""
    plots = study_folder / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    spec = chart.to_dict()
    png, width = _png(spec)
    svg = vlc.vegalite_to_svg(spec)
    (plots / f"{name}.png").write_bytes(png)
    (plots / f"{name}.svg").write_text(svg, encoding="utf-8")
    (plots / f"{name}.pdf").write_bytes(vlc.vegalite_to_pdf(spec))
    share = min(1.0, width / TEXT_WIDTH_PX)
    latex = "\n".join(
        [
            r"\begin{figure}[H]",
            r"\centering",
            rf"\includegraphics[width={share:.3f}\linewidth]{{plots/{name}.pdf}}",
            rf"\caption{{{escaped(caption)}}}",
            r"\end{figure}",
        ]
    )
    return Shown(
        {
            "application/vnd.vegalite.v5+json": spec | {"$schema": JUPYTERLAB_SCHEMA},
            "image/png": b64encode(png).decode(),
            "text/plain": f"Figure {name}: {caption}",
        },
        caption,
        {"text/latex": latex, "text/markdown": f"![{caption}](plots/{name}.png)\n\n*{caption}*"},
        empty=chart.usermeta == NOTHING,
    )


def table(frame: pd.DataFrame, name: str, caption: str, study_folder: Path) -> Shown:
    """Saves `tables/<name>.tex` (booktabs); shows an HTML, Markdown or LaTeX table. What is missing is a
    dash, as is a frame without rows."""
    tables = study_folder / "tables"
    tables.mkdir(parents=True, exist_ok=True)
    rows = frame.astype(object).where(frame.notna(), "–")
    text = (rows if len(rows) else pd.DataFrame([dict.fromkeys(frame, "–")])).astype(str)
    latex = _latex_table(text, caption)
    (tables / f"{name}.tex").write_text(latex + "\n", encoding="utf-8")
    page = (
        text.style.hide(axis="index").set_caption(html.escape(caption)).format(escape="html").to_html(table_uuid=name)
    )
    markdown = (
        f"*{caption}*\n\n{text.map(lambda c: c.replace('|', '¦')).to_markdown(index=False, disable_numparse=True)}"
    )
    return Shown(
        {
            "text/html": page,
            "text/latex": latex,
            "text/markdown": markdown,
            "text/plain": f"{caption}\n{text.to_string(index=False)}",
        },
        caption,
        empty=not len(frame),
    )


def escaped(text: str) -> str:
    """Plain text as LaTeX that prints the same."""
    return "".join(LATEX.get(c, c) for c in text)


def _latex_table(text: pd.DataFrame, caption: str) -> str:
    """A float as wide as its content, shrunk to the text's width only if it is wider; long cells wrap."""
    right = {c: text[c].str.match(r"[−<]? ?\d|–$|∞$").all() for c in text}
    cells = {c: text[c].str.len().max() for c in text}
    heads = {c: wrap(str(c), max(cells[c], 9), break_long_words=False) for c in text}
    widest = {c: max(cells[c], *map(len, heads[c])) for c in text}
    wrapped = [c for c in text if widest[c] > WIDE_CHARACTERS]
    left = max(0.3, 1.0 - LINEWIDTHS_A_CHARACTER * sum(widest[c] + 2 for c in text if c not in wrapped))
    shares = {c: left * widest[c] / sum(widest[c] for c in wrapped) for c in wrapped}
    columns = "".join(
        rf">{{\raggedright\arraybackslash}}p{{{shares[c]:.3f}\linewidth}}" if c in shares else "r" if right[c] else "l"
        for c in text
    )
    titles = [_head([escaped(line) for line in heads[c]], "r" if right[c] else "l") for c in text]
    body = text.map(escaped).set_axis(titles, axis=1)
    tabular = body.style.hide(axis="index").to_latex(column_format=columns, hrules=True).strip()
    return "\n".join(
        [
            r"\begin{table}[H]",
            r"\centering\small",
            rf"\caption{{{escaped(caption)}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            tabular + "}",
            r"\end{table}",
        ]
    )


def _head(lines: list[str], side: str) -> str:
    return lines[0] if len(lines) == 1 else rf"\shortstack[{side}]{{\strut " + r" \\ ".join(lines) + "}"


def _png(spec: dict[str, Any], scale: int = 2) -> tuple[bytes, float]:
    """A chart's picture, and its width at scale 1; a palette keeps a notebook full of pictures small."""
    picture = Image.open(BytesIO(vlc.vegalite_to_png(spec, scale=scale))).convert("RGB")
    out = BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue(), picture.width / scale
