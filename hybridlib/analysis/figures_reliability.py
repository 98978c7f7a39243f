"""Figures of faults: what the loss does around each kind."""

import altair as alt
import pandas as pd

from hybridlib.analysis.reliability import SHOWN
from hybridlib.analysis.theme import VERMILLION, WIDTH, colour, drawn, small

COLUMNS = 2


@drawn
def around_faults(traces: pd.DataFrame) -> alt.TopLevelMixin:
    """Training loss from 60 steps before a fault to 120 after, less its mean before; a panel a kind, a line a seed."""
    real = traces[(traces.real == 1) & traces.loss.notna()].assign(since=traces.step - traces.fault)
    before = real[real.since < 0].groupby(["kind", "seed"]).loss.mean().rename("level")
    shown = real.join(before, on=["kind", "seed"]).assign(excess=lambda frame: frame.loss - frame.level)
    shown = shown.assign(fault=shown.kind.map(SHOWN), seed=shown.seed.astype(str))[["fault", "seed", "since", "excess"]]
    seeds = sorted(shown.seed.unique())
    lines = (
        alt.Chart()
        .mark_line(strokeWidth=1.2, point=alt.OverlayMarkDef(size=8))
        .encode(
            x=alt.X("since:Q", title="nominal steps since the fault"),
            y=alt.Y("excess:Q", title="training loss less its mean before (nats)"),
            color=colour("seed", seeds, title="seed"),
        )
    )
    at = alt.Chart().mark_rule(color=VERMILLION, strokeDash=[4, 3]).encode(x=alt.datum(0))
    panel = alt.layer(at, lines, data=small(shown)).properties(width=WIDTH // COLUMNS - 40, height=110)
    order = [name for name in SHOWN.values() if name in set(shown.fault)]
    return panel.facet(facet=alt.Facet("fault:N", title=None, sort=order), columns=COLUMNS)
