"""The phase machine as a picture."""

import altair as alt
import pandas as pd

from hybridlib.analysis.theme import COLOURS, FONT, GREY, VERMILLION, WIDTH

PLACES = {"warmup": 0.0, "full": 1.0, "predict": 2.0, "correct": 3.0}
ROUTES = [  # from, to, what leads there, height of the detour above or below the row of phases
    ("warmup", "full", "done", 0.0),
    ("full", "predict", "jump", 0.0),
    ("predict", "correct", "landed", 0.0),
    ("correct", "full", "next cycle", -0.8),
    ("predict", "full", "jump rejected", 0.55),
    ("correct", "full", "rollback", 1.0),
]


def state_machine(lengths: dict[str, int]) -> alt.TopLevelMixin:
    """The four phases with their lengths in nominal steps, and what leads from one to the next."""
    lines, heads, labels = [], [], []
    for i, (start, end, event, height) in enumerate(ROUTES):
        alarm = event in ("jump rejected", "rollback")
        a, b, side = PLACES[start], PLACES[end], 0.28 * (1 if height > 0 else -1)
        path = [(a + 0.33, 0), (b - 0.33, 0)] if height == 0 else [(a, side), (a, height), (b + side / 3, height), (b + side / 3, side)]
        lines += [dict(route=i, order=k, x=x, y=y, alarm=alarm) for k, (x, y) in enumerate(path)]
        heads.append(dict(x=path[-1][0], y=path[-1][1], angle=90 if height == 0 else (180 if height > 0 else 0), alarm=alarm))
        labels.append(dict(x=(path[0][0] + path[-1][0]) / 2, y=height + 0.12, text=event))
    nodes = pd.DataFrame([dict(phase=p, x=x, y=0.0, text=f"{p}\n{lengths[p]} step" + "s" * (lengths[p] != 1)) for p, x in PLACES.items()])
    x = alt.X("x:Q", axis=None, scale=alt.Scale(domain=[-0.45, 3.45]))
    y = alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[-1.05, 1.25]))
    ink = alt.condition("datum.alarm", alt.value(VERMILLION), alt.value("#555555"))
    edges = alt.Chart(pd.DataFrame(lines)).mark_line(strokeWidth=1.5).encode(x=x, y=y, detail="route:N", order="order:Q", color=ink)
    tips = alt.Chart(pd.DataFrame(heads)).mark_point(shape="triangle-up", filled=True, size=70, opacity=1).encode(
        x=x, y=y, angle=alt.Angle("angle:Q", scale=None), color=ink)
    words = alt.Chart(pd.DataFrame(labels)).mark_text(fontSize=FONT - 1, color="#333333").encode(x=x, y=y, text="text:N")
    fills = alt.Color("phase:N", legend=None, scale=alt.Scale(domain=list(PLACES), range=[COLOURS.get(p, GREY) for p in PLACES]))
    boxes = alt.Chart(nodes).mark_point(shape="square", size=6500, filled=True, opacity=0.25).encode(x=x, y=y, color=fills)
    names = alt.Chart(nodes).mark_text(fontSize=FONT, lineBreak="\n", dy=-6).encode(x=x, y=y, text="text:N")
    return (edges + tips + words + boxes + names).properties(width=WIDTH, height=230)
