"""What is said of reliability follows from its figures and tables."""

import json

import pandas as pd
import pytest

from hybridlib.analysis import figures_reliability, reliability, sizes
from hybridlib.study.records import RunFolder


def test_what_was_not_measured_is_said_so(tmp_path) -> None:
    found = reliability.read(tmp_path)
    assert found.figures == {} and all(table.empty for table in found.tables.values())
    assert set(reliability.promises(found).measured) == {"not measured"}
    assert reliability.by_kind(found.tables["faults"]).empty and reliability.by_place(found.tables["kills"]).empty
    assert "no records" in json.dumps(figures_reliability.around_faults(found.tables["traces"]).to_dict())


def test_promises_stand_beside_what_was_measured(tmp_path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "reliability.json").write_text(json.dumps(dict(kills=100, inputs_fuzzed=10000, detection_rate=1.0)))
    rows = reliability.promises(reliability.read(tmp_path)).set_index("what")
    assert rows.measured["random kills of a run"] == "100" and rows.promised["random kills of a run"] == "≥ 100"
    assert rows.measured["broken parameter files, notebooks and corpora"] == "10,000"


def test_the_worst_cases_are_shown_and_what_was_missed_is_not_counted() -> None:
    faults = pd.DataFrame(
        dict(kind=["nan_gradient"] * 2 + ["corrupt_batch"], seed=[1, 2, 1], step=9, detected_steps=[0, 1, None], recovered_steps=[1, 7, None])
    )
    table = reliability.by_kind(faults).set_index("fault")
    worst = table.loc["gradient not a number"]
    assert tuple(worst) == (2, 2, 1.0, 7.0)
    assert table.detected["batch of noise"] == 0


def test_kills_are_counted_by_place() -> None:
    kills = pd.DataFrame(dict(kill=[1, 2, 3], place=["jump", "full", "jump"], resumed=[False, True, True], study="x"))
    table = reliability.by_place(kills).set_index("killed in")
    assert tuple(table.loc["jump"]) == (2, 1) and tuple(table.loc["full"]) == (1, 1)


@pytest.mark.parametrize("steps", [1000, 40])
def test_gains_by_size_are_of_like_runs_alone(fake_study, monkeypatch, steps) -> None:
    monkeypatch.setattr(sizes, "OUTPUTS", fake_study.outputs)
    monkeypatch.setattr(sizes, "LIKE", dict(steps=steps, tokens_per_step=64, tokenizer_vocab=512))
    gains = sizes.gains()
    if steps == 1000:
        assert gains.empty
        return
    assert sorted(gains.seed.unique()) == [1, 2, 3] and set(gains.arm) == {"hybrid", "hold"}
    facts = RunFolder(fake_study.folder / "runs" / "hybrid-text-s1").facts
    plain = RunFolder(fake_study.folder / "runs" / "baseline-text-s1").facts
    mine = gains[(gains.seed == 1) & (gains.arm == "hybrid")].delta_pct.iloc[0]
    assert mine == pytest.approx(100 * (facts["summary"]["held_out_loss"] / plain["summary"]["held_out_loss"] - 1))
    assert (gains[gains.arm == "hold"].delta_pct > 1).all()
