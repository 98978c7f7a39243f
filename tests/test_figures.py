"""Figures hold every seed, keep an arm's colour, stay small, and survive missing records; the series beneath them."""

import altair as alt
import pandas as pd
import pytest
from hybridlib.analysis.measured import measured_parts

from hybridlib.analysis import effects, figures_phases, figures_training, figures_verdict, load, series, theme
from hybridlib.analysis.rules import read_rules

PAIR = ["speedup", "time_to_target"]


@pytest.fixture
def records(fake_study) -> load.Records:
    return load.read(fake_study.name, fake_study.outputs)


def charts(records: load.Records) -> dict[str, alt.TopLevelMixin]:
    """Every figure that a study's own records make."""
    hybrid = records.where(arm=["hybrid"])
    return {
        "loss_by_step": figures_training.held_out_loss(records.evals, 40),
        "loss_by_seconds": figures_training.held_out_loss(records.evals, 40, "train_s"),
        "training_loss": figures_training.training_loss(records.steps, 5),
        "gradient_norms": figures_training.gradient_norms(records.steps, 5),
        "memory": figures_phases.memory_by_phase(records.runs),
        "timeline": figures_phases.phase_timeline(hybrid.steps),
        "jumps": figures_phases.jump_effects(series.jumps(hybrid.steps)),
        "speedup": figures_verdict.effect_panels(
            effects.effects(records.runs, PAIR), effects.seed_values(records.runs, PAIR)
        ),
        "verdicts": figures_verdict.verdict_overview(measured_parts(records, read_rules())),
    }


def data_of(chart: alt.TopLevelMixin) -> str:
    return "\n".join(chart.to_dict()["datasets"].values())


def test_every_figure_is_valid_and_small(records) -> None:
    for name, chart in charts(records).items():
        assert len(str(chart.to_dict())) < 60_000, name


def test_every_figure_survives_records_that_are_not_there(records) -> None:
    for name, chart in charts(records.where(arm=["none"])).items():
        assert "no records to draw" in data_of(chart), name


def test_every_seed_is_drawn(records) -> None:
    for name in ("loss_by_step", "loss_by_seconds", "training_loss", "gradient_norms"):
        rows = [line.split(",")[:2] for line in data_of(charts(records)[name]).splitlines()]
        assert {tuple(row) for row in rows} >= {(arm, str(s)) for arm in ("baseline", "sham") for s in (1, 2, 3)}, name


def test_a_name_has_one_colour_whoever_stands_beside_it() -> None:
    for names in (["hybrid"], ["baseline", "hybrid"], ["new", "hybrid", "newer"]):
        scale = theme.colour("arm", names).to_dict()["scale"]
        assert dict(zip(scale["domain"], scale["range"]))["hybrid"] == theme.COLOURS["hybrid"]
        assert len(set(scale["range"])) == len(names)


def test_thinning_keeps_the_last_row_of_each_group() -> None:
    frame = pd.DataFrame({"arm": ["a"] * 101 + ["b"] * 3, "step": [*range(101), *range(3)]})
    kept = theme.thinned(frame, ["arm"], 10)
    assert kept.groupby("arm").step.max().tolist() == [100, 2]
    assert (kept.arm == "a").sum() <= 11 and (kept.arm == "b").sum() == 3


def test_small_keeps_significant_digits() -> None:
    out = theme.small(pd.DataFrame({"x": [123456.0, 0.00123456, 0.0, float("inf")]}), 3)
    assert out.x.tolist() == [123000.0, 0.00123, 0.0, float("inf")]


def hand_run(phases: str, losses: list[float | None], events: dict[int, str]) -> pd.DataFrame:
    names = {"f": "full", "p": "predict", "c": "correct"}
    return pd.DataFrame(
        {
            "arm": "hybrid",
            "data": "text",
            "seed": 1,
            "step": range(1, len(phases) + 1),
            "phase": [names[p] for p in phases],
            "real": [int(p != "p") for p in phases],
            "loss": losses,
            "event": [events.get(i + 1, "") for i in range(len(phases))],
        }
    )


def test_jumps_by_hand() -> None:
    steps = hand_run(
        "ffppccfppc", [5.0, 4.0, 6.0, None, 4.2, 3.8, 3.5, 9.0, None, 3.4], {3: "jump+checkpoint", 8: "rejected"}
    )
    found = series.jumps(steps)
    assert found.step.tolist() == [3, 8] and found.accepted.tolist() == [True, False]
    assert found.loss_before.tolist() == pytest.approx([4.5, (5.0 + 4.0 + 4.2 + 3.8 + 3.5) / 5])
    assert found.loss_after_jump.tolist() == [6.0, 9.0]
    assert found.loss_after_correct.tolist() == pytest.approx([4.0, 3.4])


def test_segments_tile_the_run(records) -> None:
    segments = series.phase_segments(records.where(arm=["hybrid"]).steps)
    one = segments[segments.seed == 1]
    assert one.start.tolist() == [0, *one.end.tolist()[:-1]] and one.end.iloc[-1] == 40
    assert one.phase.tolist()[:4] == ["warmup", "full", "predict", "correct"]


def test_smoothing_averages_real_steps_alone() -> None:
    steps = hand_run("ffpp" + "ffff", [1.0, 3.0, 9.0, None, 5.0, 5.0, 5.0, 5.0], {})
    assert series.smoothed(steps, "loss", 4)[["step", "value"]].values.tolist() == [[2.5, 2.0], [6.5, 5.0]]


def test_phase_shares_sum_to_one(records) -> None:
    shares = figures_phases.phase_shares(records.steps).groupby("arm")[["steps", "seconds"]].sum()
    assert shares.to_numpy() == pytest.approx(1.0)
