"""Verdicts on records made by formula; rules refused when wrong; records refused when mixed."""

import json
import math

import pandas as pd
import pytest
import yaml
from conftest import FakeStudy

from hybridlib.analysis import load, measured
from hybridlib.analysis.effects import by_seed, effect
from hybridlib.analysis.results import write_results
from hybridlib.analysis.rules import read_rules
from hybridlib.analysis.show import PIPELINE
from hybridlib.analysis.verdicts import FAIL, INCONCLUSIVE, PASS, judge_criteria, judge_parts
from hybridlib.study.parameters import PARAMS, ParameterError, load_study
from hybridlib.study.records import RunFolder
from hybridlib.training import NUMERICS


def judged(fake) -> pd.DataFrame:
    return judge_criteria(load.read_records(fake.name, fake.outputs), read_rules()).set_index("criterion")


def rules_with(tmp_path, change):
    content = yaml.safe_load((PARAMS / "criteria.yaml").read_text())
    change(content)
    path = tmp_path / "criteria.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_speedup_by_hand(fake_study) -> None:
    """37 timed steps, 20 of them predicted at a tenth of the cost: 37 / (17 + 2), and 1 % faster per seed."""
    runs = load.read_records(fake_study.name, fake_study.outputs).runs
    assert by_seed(runs, "speedup", "hybrid", "text").tolist() == pytest.approx(
        [37 / 19 / (1 - s / 100) for s in (1, 2, 3)]
    )


def test_level_hybrid_passes_and_controls_fail(fake_study) -> None:
    found = judged(fake_study)
    assert found.verdict[["C3", "C5", "C6", "H2"]].tolist() == [PASS] * 4
    assert found.grade["C3"] == "exceeds"
    assert found.value["H2"] == pytest.approx(100 * 0.02 * 20 / 5.2, rel=1e-3)  # 20 steps skipped, of a loss of 5.2


def test_a_loss_above_the_margin_fails_c3_and_leaves_h2_open(fake_study) -> None:
    for seed in (1, 2, 3):
        fake_study.rewrite("hybrid", seed, gap_nats=0.2 + 0.01 * seed)
    found = judged(fake_study)
    assert found.verdict["C3"] == FAIL and found.grade["C3"] == "missed"
    assert found.verdict["H2"] == INCONCLUSIVE


def test_a_target_never_reached_fails_h1_with_a_reason(fake_study) -> None:
    for seed in (1, 2, 3):
        fake_study.rewrite("hybrid", seed, gap_nats=0.5, last_step=80)
    found = judged(fake_study)
    assert found.verdict["H1"] == FAIL and found.value["H1"] == 0.0
    assert "3 of 3 seeds never reached" in found.why["H1"]


@pytest.mark.parametrize(
    ("peers_s", "beaten"),
    [
        ([20.0, 21.0, 22.0, 23.0], True),
        ([9.0, 30.0, 30.0, 30.0], False),  # slower in the mean alone
        ([5.0, 5.1, 5.2, 5.3], False),
        ([20.0, 21.0, 22.0, math.inf], False),  # a sign test, for which four seeds are too few
        ([20.0, 21.0, 22.0, math.nan], True),  # over the seeds that both have
    ],
)
def test_a_peer_is_beaten_seed_by_seed_or_not_at_all(peers_s, beaten) -> None:
    rows = [("hybrid", 10.0 + at / 10, at) for at in range(4)] + [("peer", s, at) for at, s in enumerate(peers_s)]
    runs = pd.DataFrame(rows, columns=["arm", "time_to_target_s", "seed"]).assign(data="text", batch_size=4, seq_len=16)
    (part,) = read_rules().criteria["H1"].parts
    assert measured._beats(part, runs, "text", "peer", 0.05) == beaten


def test_a_run_that_stopped_before_its_extension_ended_is_unknown_not_infinite(fake_study) -> None:
    fake_study.rewrite("hybrid", 1, gap_nats=0.5)
    runs = load.read_records(fake_study.name, fake_study.outputs).runs
    assert math.isnan(runs[(runs.arm == "hybrid") & (runs.seed == 1)].time_to_target_s.item())
    assert judged(fake_study).verdict["H1"] == INCONCLUSIVE


def test_a_missing_run_is_inconclusive_and_named(fake_study) -> None:
    (fake_study.folder / "runs" / "hybrid-text-s2" / "run.json").unlink()
    found = judged(fake_study)
    assert found.verdict[["C2", "C3", "C5", "C6", "H1", "H2"]].tolist() == [INCONCLUSIVE] * 6
    assert "seed 2" in found.why["C2"]
    missing = load.read_records(fake_study.name, fake_study.outputs).missing
    assert missing[["arm", "seed", "why"]].values.tolist() == [["hybrid", 2, "started, not complete"]]


def test_no_records_at_all_are_inconclusive(tmp_path, fake_study) -> None:
    nothing = load.read_records(fake_study.name, tmp_path / "elsewhere")
    assert set(judge_criteria(nothing, read_rules()).verdict) == {INCONCLUSIVE}


def test_checks_and_pipeline(fake_study) -> None:
    results = fake_study.folder / "results"
    results.mkdir()
    tests = [f"FT-{i}" for i in range(1, 9)]
    frame = pd.DataFrame({"test": tests, "about": "", "passed": True, "evidence": ""})
    frame.to_csv(results / "functionality.csv", index=False)
    jobs = pd.DataFrame(
        {"job": ["a", "09_report"], "stage": ["benchmark", "report"], "status": ["complete", "missing"]}
    )
    jobs.to_csv(results / "pipeline.csv", index=False)
    found = judged(fake_study)
    assert found.verdict[["C1", "C7", "C8"]].tolist() == [PASS, INCONCLUSIVE, PASS]
    frame.assign(passed=[t != "FT-3" for t in tests]).to_csv(results / "functionality.csv", index=False)
    jobs.assign(status="failed").to_csv(results / "pipeline.csv", index=False)
    found = judged(fake_study)
    assert found.verdict[["C1", "C8"]].tolist() == [FAIL, FAIL] and "FT-3" in found.why["C1"]


@pytest.mark.parametrize("loss, verdict", [(5.0, PASS), (None, FAIL)])
def test_scaling_reads_the_other_study_where_it_is_asked_for(tmp_path, loss, verdict) -> None:
    fake_study, medium = FakeStudy(tmp_path, also_reads=["gpt2-medium"]), load_study("gpt2-medium")
    shares = dict.fromkeys(("warmup", "full", "predict", "correct"), 0.25)

    def write(arm: str, numerics: int = NUMERICS, **other) -> None:
        run = medium.run(arm, "text", 42)
        facts = dict(numerics=numerics, parameters=run.model_dump(mode="json") | other)
        summary = dict(held_out_loss=loss, phase_share=shares)
        RunFolder(fake_study.outputs / "gpt2-medium" / "runs" / run.id).finish(facts | dict(summary=summary))

    assert "gpt2-medium was not run here" in judged(fake_study).why["C9"]
    write("hybrid", NUMERICS - 1)
    write("memory_optimized", steps=74)
    one = judged(fake_study)
    assert one.verdict["C9"] == (FAIL if verdict == FAIL else INCONCLUSIVE), "what is planned otherwise is not there"
    assert " of 2 runs" in one.why["C9"]
    write("memory_optimized")
    assert judged(fake_study).verdict["C9"] == verdict
    fake_study.write("baseline", 1)
    assert f"1 of them were made under NUMERICS {NUMERICS - 1}, not" in judged(fake_study).why["C9"]
    write("hybrid")
    assert "NUMERICS" not in judged(fake_study).why["C9"]
    assert "C9" not in judged(FakeStudy(tmp_path)).index, "no verdict is borrowed unasked"


def test_holm_decides_in_the_family(fake_study, tmp_path) -> None:
    for arm, spread in (("hybrid", 0.012), ("memory_optimized", 0.03)):
        for seed in (1, 2, 3):
            fake_study.rewrite(arm, seed, gap_nats=spread * (seed - 2))
    records = load.read_records(fake_study.name, fake_study.outputs)
    alpha = 1.1 * judge_criteria(records, read_rules()).set_index("criterion").p["C3"]
    found = {}
    for family in (["C3"], ["C3", "C4"]):  # C4's p is the larger, so C3's is doubled
        path = rules_with(tmp_path, lambda c, family=family: c.update(alpha=float(alpha), family=family))
        found[len(family)] = judge_criteria(records, read_rules(path)).set_index("criterion").loc["C3"]
    assert found[1].verdict == PASS and found[1].p_holm == pytest.approx(found[1].p)
    assert found[2].verdict == INCONCLUSIVE and found[2].p_holm == pytest.approx(2 * found[2].p)


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda c: c["criteria"]["C2"].update(oops=1), "criteria.C2.measured.oops: unknown key"),
        (lambda c: c["criteria"]["C2"]["parts"][0].update(at_most=3.0), "either at_least or at_most"),
        (lambda c: c["criteria"]["C2"]["parts"][0].update(exceeds=1.0), "stricter"),
        (lambda c: c["criteria"]["C2"]["parts"][0].update(metric="speed"), "metric"),
        (lambda c: c["criteria"]["H2"].update(of="C99"), "'C99' is no measured criterion"),
        (lambda c: c.update(alpha=2.0), "alpha"),
        (lambda c: c["phase_mix"]["full"].update(at_least=2.0), "phase_mix.full.at_least"),
        (lambda c: c["stress"].pop("detect_steps"), "stress"),
        (lambda c: c["speed"]["gemm_share"].update(aims={}), "speed.gemm_share.aims"),
    ],
)
def test_wrong_rules_are_refused_by_name(tmp_path, change, says) -> None:
    path = rules_with(tmp_path, change)
    with pytest.raises(ParameterError) as refused:
        read_rules(path)
    assert says in str(refused.value) and str(path) in str(refused.value)


def test_results_json_has_the_contracts_keys_and_no_infinities(fake_study, monkeypatch) -> None:
    monkeypatch.setenv(PIPELINE, "09_report")
    records = load.read_records(fake_study.name, fake_study.outputs)
    rules = read_rules()
    write_results(records, judge_criteria(records, rules), judge_parts(records, rules))
    text = (fake_study.folder / "results.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    content = json.loads(text)
    assert list(content) == ["study", "commit", "device", "numerics", "criteria", "arms"]
    assert list(content["criteria"]) == [*(f"C{i}" for i in range(1, 9)), "H1", "H2"]
    assert all(list(c) == ["verdict", "value", "low", "high", "unit", "p", "why"] for c in content["criteria"].values())
    hold = content["arms"]["text/hold"]
    assert hold["time_to_target_ratio"] is None and "time_to_target_ratio" in hold["why"]  # controls are not extended
    assert hold["speedup"] == pytest.approx(effect(records.runs, "speedup", "hold", "text").value)
    assert set(hold["peak_mb"]) == {"warmup", "full", "predict", "correct", "run"}
    baseline = content["arms"]["text/baseline"]
    assert baseline["speedup"] == 1.0 and baseline["peak_mb"]["predict"] is None
