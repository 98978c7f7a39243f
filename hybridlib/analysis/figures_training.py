"""Figures of training: losses against steps and seconds, gradient norms, predictors, and a fault recovered from."""

import altair as alt
import pandas as pd

from hybridlib.analysis.load import BASELINE, KEYS
from hybridlib.analysis.series import smoothed
from hybridlib.analysis.theme import (
    BLUE,
    GREY,
    HEIGHT,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    WIDTH,
    colour,
    drawn,
    in_order,
    panels,
    small,
    thinned,
)

LOSS_TITLES = {"markov": "held-out loss above the floor (nats)"}


@drawn
def held_out_loss(evals: pd.DataFrame, nominal_steps: int, against: str = "step") -> alt.TopLevelMixin:
    """Held-out loss (evals, any data sources) against `step` or `train_s`, one line a run; dashed: the target.

    Loss on `markov` is in excess of its known floor. Seconds include the extension for time to target.
    """
    shown = evals[evals.reported_loss_nats.notna()].sort_values([*KEYS, "step"])
    sources = list(dict.fromkeys(shown.data))
    arms = in_order(shown, "arm")
    x_title = {"step": "nominal step", "train_s": "training time (s)"}[against]
    charts = []
    for data in sources:
        part = shown[shown.data == data]
        final = part[(part.arm == BASELINE) & (part.step == nominal_steps)].reported_loss_nats
        rows = small(thinned(part, KEYS, 40 if len(sources) == 1 else 20), 5)
        lines = (
            alt.Chart(rows[["arm", "seed", against, "reported_loss_nats"]])
            .mark_line(strokeWidth=1.4)
            .encode(
                x=alt.X(f"{against}:Q", title=x_title, axis=alt.Axis(tickCount=5)),
                y=alt.Y(
                    "reported_loss_nats:Q",
                    title=LOSS_TITLES.get(data, "held-out loss (nats)"),
                    scale=alt.Scale(zero=False),
                ),
                color=colour("arm", arms),
                detail="seed:N",
                tooltip=["arm", "seed", against, "reported_loss_nats"],
            )
        )
        target = alt.Chart(pd.DataFrame({"target": [final.mean()]})).mark_rule(strokeDash=[5, 4], color="#444444")
        layers = [lines] + ([target.encode(y="target:Q")] if len(final) else [])
        chart = alt.layer(*layers).properties(**_size(len(sources)))
        charts.append(chart.properties(title=data) if len(sources) > 1 else chart)
    return panels(charts, 2)


@drawn
def training_loss(steps: pd.DataFrame, width: int = 25) -> alt.TopLevelMixin:
    """Training loss of real steps, a mean over `width` nominal steps, one line a run."""
    return _smoothed_lines(steps, "loss", width, "training loss (nats)", alt.Scale(zero=False))


@drawn
def gradient_norms(steps: pd.DataFrame, width: int = 25) -> alt.TopLevelMixin:
    """Global gradient norm of real steps, a mean over `width` steps, log scale; dashed: 10 × the baseline's median."""
    lines = _smoothed_lines(steps, "grad_norm", width, "gradient norm", alt.Scale(type="log", nice=False))
    norm = steps[(steps.arm == BASELINE) & (steps.real == 1)].grad_norm.median()
    if pd.isna(norm):
        return lines
    limit = alt.Chart(pd.DataFrame({"limit": [10 * norm]})).mark_rule(strokeDash=[5, 4], color=VERMILLION)
    return lines + limit.encode(y="limit:Q")


@drawn
def step_times(steps: pd.DataFrame, width: int = 25) -> alt.TopLevelMixin:
    """Median time of the real steps in bins of `width` nominal steps, one line a run."""
    return _smoothed_lines(steps.assign(step_ms=1000 * steps.step_s), "step_ms", width, "time of a real step (ms)", alt.Scale(), "median")


@drawn
def predictor_errors(errors: pd.DataFrame) -> alt.TopLevelMixin:
    """Error against horizon (predictor, horizon_steps, error_ratio, seed), mean as a line, every seed as a point."""
    names = in_order(errors, "predictor")
    base = alt.Chart(small(errors)).encode(
        x=alt.X("horizon_steps:Q", title="horizon (nominal steps)", scale=alt.Scale(type="log", nice=False)),
        color=colour("predictor", names),
    )
    ratio = alt.Y("error_ratio:Q", title="distance to the true weights ÷ hold's", scale=alt.Scale(type="log", nice=False))
    mean = alt.Y("mean(error_ratio):Q")
    hold = alt.Chart(pd.DataFrame({"hold": [1.0]})).mark_rule(strokeDash=[5, 4], color=GREY).encode(y="hold:Q")
    return alt.layer(hold, base.mark_line(strokeWidth=2).encode(y=mean), base.mark_point(size=22).encode(y=ratio))


@drawn
def predictor_losses(losses: pd.DataFrame) -> alt.TopLevelMixin:
    """Held-out loss before a jump, right after it, and after Correct, one point a seed and predictor; dashed: the loss
    of as many computed steps. Columns: predictor, seed, loss_before, loss_after_jump, loss_after_correct and
    loss_computed."""
    moments = {
        "loss_before": "before the jump",
        "loss_after_jump": "right after it",
        "loss_after_correct": "after Correct",
    }
    long = losses.melt(["predictor", "seed"], list(moments), "moment", "loss").replace({"moment": moments})
    points = (
        alt.Chart(small(long, 5))
        .mark_point(filled=True, size=55, opacity=0.85)
        .encode(
            x=alt.X("loss:Q", title="loss (nats)", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=8)),
            y=alt.Y("predictor:N", title=None, sort=in_order(losses, "predictor")),
            color=alt.Color(
                "moment:N",
                title=None,
                sort=list(moments.values()),
                scale=alt.Scale(domain=list(moments.values()), range=[GREY, VERMILLION, BLUE]),
            ),
            shape=alt.Shape(
                "moment:N",
                title=None,
                sort=list(moments.values()),
                scale=alt.Scale(domain=list(moments.values()), range=["circle", "triangle-up", "square"]),
            ),
        )
    )
    computed = alt.Chart(pd.DataFrame({"loss": [losses.loss_computed.mean()]})).mark_rule(strokeDash=[5, 4])
    return (computed.encode(x="loss:Q") + points).properties(height=34 * losses.predictor.nunique())


@drawn
def fault_recovery(near: pd.DataFrame) -> alt.TopLevelMixin:
    """Training loss around a fault, from `series.around_fault`; the fault and the answers as rules, dashed: the level."""
    x = alt.X("step:Q", title="nominal step", scale=alt.Scale(zero=False, nice=False))
    rows = small(near, 5)
    line = (
        alt.Chart(rows)
        .mark_line(point=alt.OverlayMarkDef(size=14, color=BLUE), strokeWidth=1.2, color=BLUE)
        .encode(x=x, y=alt.Y("loss:Q", title="training loss (nats)", scale=alt.Scale(zero=False)))
    )
    level = alt.Chart(rows.head(1)).mark_rule(strokeDash=[5, 4], color="#444444").encode(y="running_mean:Q")
    kinds = ["fault", "high", "skipped", "rollback"]
    events = rows.assign(what=rows.event.str.extract(f"({'|'.join(kinds)})", expand=False)).dropna(subset="what")
    rules = (
        alt.Chart(events[["step", "what"]])
        .mark_rule(strokeWidth=2)
        .encode(x=x, color=alt.Color("what:N", title=None, scale=alt.Scale(domain=kinds, range=[VERMILLION, SKY, PURPLE, ORANGE])))
    )
    return alt.layer(rules, level, line)


def _smoothed_lines(
    steps: pd.DataFrame, column: str, width: int, title: str, scale: alt.Scale, by: str = "mean"
) -> alt.Chart:
    rows = small(thinned(smoothed(steps, column, width, by), KEYS))
    return (
        alt.Chart(rows[["arm", "seed", "step", "value"]])
        .mark_line(strokeWidth=1.3)
        .encode(
            x=alt.X("step:Q", title="nominal step"),
            y=alt.Y("value:Q", title=title, scale=scale),
            color=colour("arm", in_order(rows, "arm")),
            detail="seed:N",
        )
    )


def _size(panels: int) -> dict[str, int]:
    return dict(width=WIDTH, height=HEIGHT + 30) if panels == 1 else dict(width=WIDTH // 2 - 40, height=HEIGHT - 50)
