"""What is read out of a run's steps, by hand; the figures that chapters share survive missing records."""

import numpy as np
import pandas as pd
import pytest
from chapter import definitions

from hybridlib.analysis import load, series


@pytest.fixture
def records(fake_study) -> load.Records:
    return load.read_records(fake_study.name, fake_study.outputs)


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
        "ffppccfppcf",
        [5.0, 4.0, None, None, 6.0, 3.8, 3.5, None, None, 9.0, 3.4],
        {3: "jump", 8: "jump", 10: "rejected"},
    )
    found = definitions("06_benchmark")["jumps"](steps)
    assert found.step.tolist() == [3, 8] and found.accepted.tolist() == [True, False]
    assert found.loss_before.tolist() == pytest.approx([4.5, (5.0 + 4.0 + 6.0 + 3.8 + 3.5) / 5])
    assert found.loss_after_jump.tolist() == [6.0, 9.0]
    assert found.loss_after_correct.tolist() == pytest.approx([4.9, np.nan], nan_ok=True)


def test_segments_tile_the_run(records) -> None:
    segments = series.phase_segments(records.where(arm=["hybrid"]).steps)
    one = segments[segments.seed == 1]
    assert one.start.tolist() == [0, *one.end.tolist()[:-1]] and one.end.iloc[-1] == 40
    assert one.phase.tolist()[:4] == ["warmup", "full", "predict", "correct"]


def test_smoothing_averages_real_steps_alone() -> None:
    steps = hand_run("ffpp" + "ffff", [1.0, 3.0, 9.0, None, 5.0, 5.0, 5.0, 5.0], {})
    assert series.smoothed(steps, "loss", 4)[["step", "value"]].values.tolist() == [[2.5, 2.0], [6.5, 5.0]]


def test_phase_shares_sum_to_one(records) -> None:
    shares = series.phase_shares(records.steps).groupby("arm")[["steps", "seconds"]].sum()
    assert shares.to_numpy() == pytest.approx(1.0)


def test_gradient_health_counts_explosions_and_vanishing() -> None:
    norms = [1.0, 1.0, 1.0, 1.0, 11.0, 0.001, 1.0, 1.0]
    steps = pd.DataFrame({"data": "text", "arm": ["baseline"] * 4 + ["hybrid"] * 4, "real": 1, "grad_norm": norms})
    row = definitions("06_benchmark")["gradient_health"](steps).set_index("arm").loc["hybrid"]
    assert (row.explosion_pct, row.vanishing_pct) == (25.0, 25.0)


@pytest.mark.parametrize(
    "draw",
    [
        lambda records: series.smoothed_lines(records.steps, "loss", "loss", width=5),
        lambda records: series.phase_timeline(records.where(arm=["hybrid"]).steps),
        lambda records: series.fault_recovery(series.around_fault(records.steps)),
    ],
)
def test_figures_that_chapters_share_survive_records_that_are_not_there(records, draw) -> None:
    assert "no records to draw" in str(draw(records.where(arm=["none"])).to_dict())
