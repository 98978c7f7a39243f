"""The chapters that read records, executed against a study made by formula: complete, and with what may be missing."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from chapter import READING, Executed, run_chapter
from conftest import ARMS, SEEDS, FakeStudy

from hybridlib.analysis.load import read_records
from hybridlib.analysis.rules import read_rules
from hybridlib.analysis.show import PIPELINE, Show

JUDGING = ["00_question", "06_benchmark", "08_ablation", "09_report"]  # they compare arms
DRAWN = ["loss_by_step", "loss_by_seconds", "training_loss", "gradient_norms", "step_times", "speedup", "quality",
         "phase_timeline", "jumps", "memory_by_phase", "ablation_ladder", "verdict_overview"]  # fmt: skip


def made(folder: Path, arms: list[str] = ARMS, seeds: list[int] = SEEDS, late: tuple[str, ...] = ()) -> FakeStudy:
    """A study of these arms and seeds; those that are `late` never reach the baseline's loss."""
    fake = FakeStudy(folder)
    for seed in seeds:
        for arm in arms:
            fake.write(arm, seed, gap_nats=0.5) if arm in late else fake.write(arm, seed)
    return fake


def executed(fake: FakeStudy, names: list[str], pipeline: bool = True) -> dict[str, Executed]:
    with pytest.MonkeyPatch.context() as patched:
        return {name: run_chapter(name, fake, patched, pipeline) for name in names}


@pytest.fixture(scope="module")
def fake(tmp_path_factory) -> FakeStudy:
    return made(tmp_path_factory.mktemp("complete"))


@pytest.fixture(scope="module")
def complete(fake) -> dict[str, Executed]:
    return executed(fake, READING)


@pytest.fixture(scope="module")
def benchmark(complete) -> Executed:
    return complete["06_benchmark"]


@pytest.fixture(scope="module")
def report(complete) -> Executed:
    return complete["09_report"]


def test_what_is_shown_has_its_words_and_files_and_is_small(report) -> None:
    for name, shown in report.shown.items():
        there = {path.suffix for path in (report.folder / "shown").glob(f"{name}.*")}
        wanted = dict(figure={".png", ".svg", ".pdf", ".csv"}, table={".tex", ".csv"}, text=set())[shown.kind]
        assert there == wanted | {".json"} and shown.chapter in READING, name
        assert shown.kind == "text" or shown.caption, name
        if shown.kind == "figure":
            assert shown.reading and len(str(shown.content)) < 60_000, name


def test_a_complete_study_draws_every_figure_of_its_own_records(report) -> None:
    assert [name for name in DRAWN if report.shown[name].empty] == []


def test_every_seed_is_drawn(benchmark) -> None:
    for name in ("loss_by_step", "loss_by_seconds", "training_loss", "gradient_norms"):
        rows = [line.split(",")[:2] for line in benchmark.data(name).splitlines()]
        assert {tuple(row) for row in rows} >= {(arm, str(s)) for arm in ("baseline", "sham") for s in SEEDS}, name


def test_without_records_all_is_empty_and_said_so(tmp_path) -> None:
    found = executed(made(tmp_path, arms=[]), READING)
    shown = found["09_report"].shown
    assert {name for name, one in shown.items() if one.kind == "figure" and not one.empty} == set()
    assert [
        name
        for name in ("summary", "speed_tests", "quality_changes", "phases", "memory", "runs")
        if not shown[name].empty
    ] == []
    assert len(shown["quality_tests"].content["columns"]) == 9
    said = " ".join([*(one.content for one in shown.values() if one.kind == "text"), found["09_report"].said])
    assert "There are no records." in said and " nan" not in said
    assert set(shown["verdicts"].frame.verdict) == {"INCONCLUSIVE"}


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (dict(seeds=SEEDS[:1]), "no complete pair with the baseline for seeds 2 and 3"),
        (
            dict(arms=[arm for arm in ARMS if arm != "baseline"]),
            "No pair of runs of hybrid and baseline on text is complete.",
        ),
        (
            dict(arms=[arm for arm in ARMS if arm != "hold"]),
            "What skipping alone costs is not known: `hold` on `text` has no runs",
        ),
        (dict(late=("hybrid", "memory_optimized")), "was not measured"),
    ],
)
def test_what_is_missing_is_said(tmp_path, what, says) -> None:
    assert says in executed(made(tmp_path, **what), JUDGING)["09_report"].said


def test_by_hand_no_chapter_changes_a_file(fake, complete) -> None:
    def state() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in fake.folder.rglob("*") if path.is_file()}

    before = state()
    executed(fake, READING, pipeline=False)
    assert state() == before


# --- the benchmark


def test_phases_are_shares_of_the_steps_after_warmup(benchmark) -> None:
    row = benchmark.table("phases", "arm").loc["hybrid"]
    assert row[["warmup", "full", "predict", "correct"]].tolist() == ["10.0 %", "33.3 %", "55.6 %", "11.1 %"]
    assert row["jumps accepted"] == "12"  # four a run, three seeds
    assert "20–30 % Full, 50–60 % Predict, 10–20 % Correct" in benchmark.shown["phases"].caption


def test_percentiles_are_pandas_own(benchmark) -> None:
    row = benchmark.shown["percentiles"].frame.query("arm == 'baseline' and of == 'step time (ms)'").iloc[0]
    assert row[["mean", "median", "5%", "95%"]].tolist() == ["100"] * 4


def test_speed_says_not_reached(fake, tmp_path, monkeypatch) -> None:
    records = read_records(fake.name, fake.outputs)
    late = records.runs.assign(
        time_to_target_s=records.runs.time_to_target_s.where(records.runs.arm != "hold", math.inf)
    )
    row = aside(fake, tmp_path, monkeypatch, replace(records, runs=late)).table("speed_tests", "arm").loc["hold"]
    assert row["time to target"] == "not reached" and row["never reached"] == "3 of 3"


def test_a_baseline_that_slows_down_is_named_and_its_speedup_given_without_it(
    fake, benchmark, tmp_path, monkeypatch
) -> None:
    assert benchmark.shown["steadiness"].content.startswith("Every run on `text` kept its pace")
    records = read_records(fake.name, fake.outputs)
    slowed = (records.runs.arm == "baseline") & (records.runs.seed == 2)
    rate = records.runs.nominal_tokens_per_s.where(~slowed, 320.0)
    runs = records.runs.assign(slowdown=records.runs.slowdown.where(~slowed, 1.5), nominal_tokens_per_s=rate)
    found = aside(fake, tmp_path, monkeypatch, replace(records, runs=runs))
    said = found.shown["steadiness"].content
    assert "in `baseline` with seed 2 (1.50×)" in said and "have had 1.987×" in said and "where 2.5×" in said
    assert found.table("pace", "arm").loc["baseline", "slowest tenth over fastest"] == "1, 1.50, 1"


def test_of_many_runs_that_slow_down_the_slowest_stands_for_all(fake, tmp_path, monkeypatch) -> None:
    records = read_records(fake.name, fake.outputs)
    worst = (records.runs.arm == "hold") & (records.runs.seed == 3)
    runs = records.runs.assign(slowdown=(1.5 + worst).astype(float))
    said = aside(fake, tmp_path, monkeypatch, replace(records, runs=runs)).shown["steadiness"].content
    assert f"in {len(runs)} of {len(runs)} runs, most in `hold` with seed 3 (2.50×). Had every run" in said


def aside(fake: FakeStudy, folder: Path, monkeypatch, records) -> Executed:
    """The benchmark with other records, whose results go elsewhere."""
    monkeypatch.setenv(PIPELINE, "06_benchmark")
    return replace(run_chapter("06_benchmark", fake, monkeypatch, records=records, show=Show(folder)), folder=folder)


def test_sentences_follow_the_records(benchmark) -> None:
    shown = benchmark.shown
    assert "the speedup would be S" in shown["speed_bound"].content
    assert shown["missing_runs"].content == "No planned run is missing."
    assert shown["provenance"].content.startswith(
        "15 runs, made between 2026-01-01T00:00 and 2026-01-01T00:01 UTC on cpu: by hand"
    )


# --- the ablation


def test_ladder_and_interactions_by_hand(tmp_path, monkeypatch) -> None:
    rates = dict(baseline=100.0, hybrid=200.0, baseline_bf16=120.0, hybrid_bf16=216.0, hybrid_accumulation=180.0,
                 hybrid_offload=190.0, memory_optimized=200.0)  # fmt: skip
    base = dict(data="text", steps=10, batch_size=1, seq_len=1, held_out_loss=4.0, peak_mb_run=100.0,
                peak_mb_predict=50.0, nominal_steps=10, divergences=0)  # fmt: skip
    runs = pd.DataFrame(
        [base | dict(arm=arm, seed=s, nominal_tokens_per_s=rate * s) for arm, rate in rates.items() for s in (1, 2)]
    )
    found = run_chapter("08_ablation", FakeStudy(tmp_path), monkeypatch, runs=runs)
    assert found.shown["ablation"].frame.speedup.tolist() == ["2×", "1.08×", "0.900×", "0.950×", "1×", "1.20×"]
    values = [effect.value for effect in found.names["interactions"].values()]
    assert values == pytest.approx([1.08 / 1.2, 1.0 / (1.08 * 0.9 * 0.95)])
    found = run_chapter("08_ablation", FakeStudy(tmp_path), monkeypatch, runs=runs[runs.arm == "baseline"])
    assert found.shown["ablation"].empty and found.shown["interactions"].empty
    assert "Rungs that no pair of runs shows: AB-1 (prediction), AB-2 (mixed precision)" in found.said


# --- reliability


def test_what_was_not_measured_is_said_so(complete) -> None:
    shown = complete["07_stress"].shown
    assert all(shown[name].empty for name in ("reliability", "faults", "faults_by_kind", "kills"))


def test_reliability_stands_beside_its_promises_and_the_worst_cases_are_shown(tmp_path, monkeypatch) -> None:
    fake = FakeStudy(tmp_path)
    results = fake.folder / "results"
    results.mkdir(parents=True)
    (results / "reliability.json").write_text(json.dumps(dict(kills=100, inputs_fuzzed=10000, detection_rate=1.0)))
    kinds = ["nan_gradient"] * 2 + ["corrupt_batch"]
    faults = pd.DataFrame(
        dict(kind=kinds, seed=[1, 2, 1], step=9, detected_steps=[0, 1, None], recovered_steps=[1, 7, None])
    )
    faults.to_csv(results / "reliability_faults.csv", index=False)
    kills = pd.DataFrame(dict(kill=[1, 2, 3], place=["jump", "full", "jump"], resumed=[False, True, True], study="x"))
    kills.to_csv(results / "reliability_kills.csv", index=False)
    found = run_chapter("07_stress", fake, monkeypatch)
    rows = found.table("reliability", "what")
    assert rows.measured["sound baselines watched"] == "not measured"
    assert rows.measured["random kills of a run"] == "100" and rows.promised["random kills of a run"] == "≥ 100"
    assert rows.measured["broken parameter files, notebooks and corpora"] == "10,000"
    assert found.shown["cluster"].empty
    by_kind, by_place = found.table("faults_by_kind", "fault"), found.table("kills", "killed in")
    assert tuple(by_kind.loc["gradient not a number"]) == ("2", "2", "1.0", "7.0")
    assert by_kind.detected["batch of noise"] == "0", "what was missed is not counted"
    assert tuple(by_place.loc["jump"]) == ("2", "1") and tuple(by_place.loc["full"]) == ("1", "1")


# --- the report


def test_the_answer_follows_the_verdicts(fake, report, tmp_path, monkeypatch) -> None:
    assert "**no**: H1 did" in report.names["abstract"]  # 1.99× where 2× is asked for
    assert "Skipping alone (`hold`) cost 0.4" in report.said
    judged = report.names["judged"]
    for grade, says in (("exceeds", "**yes**"), ("met", "**yes by the brief's thresholds**")):
        given = judged.assign(verdict="PASS", grade=grade)
        found = run_chapter("09_report", fake, monkeypatch, pipeline=False, judged=given)
        assert says in found.names["abstract"]


def test_thresholds_name_demand_value_and_verdict(report) -> None:
    found = {tuple(row[:3]): row[3:] for row in report.shown["thresholds"].content["rows"]}
    measured, verdict = found["throughput", "hybrid", "≥ 1.5× (acceptable ≥ 1.3)"]
    assert measured.startswith("1.9") and verdict == "PASS"
    assert found["memory in Predict", "memory_optimized", "≤ 60 %"] == ["60 %", "PASS"]
    assert found["divergences per 1000 nominal steps", "hybrid", "≤ 0 (acceptable ≤ 1)"] == ["0", "PASS"]


def test_power_of_a_source_is_that_hold_misses_there(report, tmp_path) -> None:
    assert report.shown["sources_with_power"].frame.power.tolist() == ["yes"]
    alone = executed(made(tmp_path, arms=["baseline"]), ["09_report"])["09_report"]
    assert alone.shown["sources_with_power"].frame.power.tolist() == ["not shown"]


def test_the_report_writes_its_results_for_programs(report) -> None:
    content = json.loads((report.folder / "results.json").read_text())
    assert content == json.loads(json.dumps(report.names["results"]))
    of_others = {"C9", "H3", "H4", "H5"}  # it reads no other study, and has no yardstick
    assert list(content["criteria"]) == [name for name in read_rules().criteria if name not in of_others]


def test_the_report_shows_every_part_and_says_what_no_chapter_made(report) -> None:
    assert report.said.count("was not made") == 5  # what the chapters on phases and predictors compute
    assert "[Chapter 06, benchmark](06_benchmark.ipynb)" in report.said
