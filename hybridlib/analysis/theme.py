"""What all figures share: colours fixed by name, Okabe and Ito's, print sizes, and small data."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

BLACK, ORANGE, SKY, GREEN, YELLOW = "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILLION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#999999"
WINE, OLIVE, TEAL = "#882255", "#999933", "#44AA99"  # of Tol's muted colours, where those do not suffice
COLOURS = dict(
    baseline=BLACK, hybrid=BLUE, memory_optimized=GREEN, hold=ORANGE, sham=VERMILLION, baseline_bf16=GREY,
    hybrid_bf16=SKY, hybrid_accumulation=PURPLE, hybrid_offload=YELLOW, spectral=BLUE, nesterov=PURPLE, linear=SKY,
    drift=GREEN, ridge=BLACK, dmd=GREY, wnn=YELLOW, hybrid_tuned=SKY, adamw=WINE, muon=PURPLE,
    soap=GREEN, schedule_free=GREY, lookahead=YELLOW, soap_10=OLIVE, over_muon=VERMILLION, snoo=TEAL, ema_nesterov=WINE,
    warmup=GREY, full=BLUE, predict=ORANGE, correct=GREEN, PASS=GREEN, FAIL=VERMILLION, INCONCLUSIVE=GREY,
)  # fmt: skip
SPARE = (SKY, PURPLE, YELLOW, GREY)  # for names that are not above, in the order of their appearance
NO_RECORDS = {"records": 0}  # marks a chart without records, for those who leave it out
TEXT_WIDTH_PX = 640  # a figure this wide fills the text's 16 cm; a narrower one keeps its scale
WIDTH, HEIGHT, FONT = 575, 250, 12  # px; with its axis a chart fills the text, and 12 px print at 8.5 pt


@alt.theme.register("print", enable=True)
def _theme() -> alt.theme.ThemeConfig:
    titles = dict(labelFontSize=FONT, titleFontSize=FONT, titleFontWeight="normal")
    lines = dict(gridColor="#e5e5e5", domainColor="#555555", tickColor="#555555")
    config = dict(
        axis=titles | lines | dict(labelFontSize=FONT - 1),
        legend=titles | dict(orient="top", symbolStrokeWidth=2.5, columns=5, labelLimit=220),
        title=dict(fontSize=FONT, fontWeight="bold", anchor="start"),
        view=dict(strokeWidth=0, continuousWidth=WIDTH, continuousHeight=HEIGHT),
        background="white",
        header=dict(labelFontSize=FONT, titleFontSize=FONT),
    )
    return {"config": config}


def _as_csv(data: pd.DataFrame, **_: Any) -> dict[str, Any]:
    """Return a chart's data as one CSV text, a third of the size of a list of records, and which columns are numbers.

    An empty cell of those is null then, as in a list of records, and not a text of which a chart makes 0 or NaN.
    """
    numbers = dict.fromkeys(data.select_dtypes("number").columns, "number")
    return {"values": data.to_csv(index=False), "format": {"type": "csv", "parse": numbers}}


alt.data_transformers.register("csv", _as_csv)
alt.data_transformers.enable("csv")
alt.renderers.enable("png", ppi=144)  # drawn here: a front end may know older Vega-Lite only, or have no network


def drawn(figure: Callable[..., alt.TopLevelMixin]) -> Callable[..., alt.TopLevelMixin]:
    """Make `figure`, a function of a frame, draw "no records" where the frame has no rows, instead of failing."""

    @wraps(figure)
    def safe(frame: pd.DataFrame, *args: Any, **settings: Any) -> alt.TopLevelMixin:
        if len(frame):
            return figure(frame, *args, **settings)
        said = pd.DataFrame({"said": ["no records to draw"]})
        words = alt.Chart(said).mark_text(fontSize=FONT, color=GREY).encode(text="said:N")
        return words.properties(height=60, usermeta=NO_RECORDS)

    return safe


def colour(field: str, names: list[str], title: str | None = None, legend: bool = True) -> alt.Color:
    """Return the colour channel of the nominal `field`, in which each of `names` has its colour in all figures.

    `title` stands over the `legend`, which can be left out.
    """
    taken = {COLOURS.get(name) for name in names}
    spare = iter([ink for ink in SPARE if ink not in taken] + list(SPARE) * len(names))
    chosen = [COLOURS.get(name) or next(spare) for name in names]
    shown = alt.Legend(title=title) if legend else None
    return alt.Color(f"{field}:N", scale=alt.Scale(domain=names, range=chosen), legend=shown, sort=names)


def small(frame: pd.DataFrame, digits: int = 4) -> pd.DataFrame:
    """Return `frame` with its floats cut to `digits` significant digits: a chart carries its data with it."""
    out = frame.copy()
    for column in out.select_dtypes("float"):
        values = out[column].to_numpy(dtype=float, copy=True)
        usable = np.isfinite(values) & (values != 0)
        scale = 10.0 ** (digits - 1 - np.floor(np.log10(np.abs(values[usable]))))
        values[usable] = np.round(values[usable] * scale) / scale
        out[column] = values
    return out


def thinned(frame: pd.DataFrame, keys: list[str], points: int = 40) -> pd.DataFrame:
    """Return about `points` rows of `frame` for each group by `keys`, evenly spread, the last always among them."""
    place = frame.groupby(keys).cumcount(ascending=False)
    size = frame.groupby(keys)[keys[0]].transform("size")
    return frame[place % np.ceil(size / points).astype(int) == 0]


def in_order(frame: pd.DataFrame, column: str) -> list[str]:
    """Return the names in a `column` of `frame` in the order of COLOURS, then the others as they appear."""
    there = list(dict.fromkeys(frame[column]))
    return sorted(there, key=lambda name: list(COLOURS).index(name) if name in COLOURS else len(COLOURS))


def on_top(frame: pd.DataFrame, column: str, name: str = "hybrid") -> pd.DataFrame:
    """Return `frame` with the rows last whose `column` is `name`: what comes last is drawn over the others."""
    return frame.sort_values(column, key=lambda names: names == name, kind="stable")


def zoomed(chart: alt.Chart | alt.LayerChart) -> alt.Chart | alt.LayerChart:
    """Return `chart` with axes that a reader of the page moves by dragging and zooms by Shift and the wheel."""
    return chart.add_params(alt.selection_interval(bind="scales", zoom="wheel![event.shiftKey]"))


def panels(charts: list[alt.Chart], columns: int) -> alt.ConcatChart | alt.Chart:
    """Return the `charts` in `columns`, with one legend; a single chart as it is."""
    if len(charts) == 1:
        return charts[0]
    return alt.concat(*charts, columns=columns, spacing=12).resolve_scale(color="shared", shape="shared")
