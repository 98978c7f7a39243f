"""Tables against hand figures; how numbers are written; sentences that follow the records."""

import math
from dataclasses import replace

import pandas as pd
import pytest
from hybridlib.analysis.criteria import verdicts
from hybridlib.analysis.measured import measured_parts, sources_with_power
from hybridlib.analysis.stats import Effect

from hybridlib.analysis import ablation, load, prose, tables, tables_effects, tables_verdict, wording
from hybridlib.analysis.rules import read_rules
from hybridlib.analysis.series import gradient_health


@pytest.fixture
def records(fake_study) -> load.Records:
    return load.read(fake_study.name, fake_study.outputs)


@pytest.mark.parametrize(
    "value, text",
    [
        (2.1347, "2.13"),
        (0.05, "0.0500"),
        (-3.0, "−3"),
        (1234.5, "1234"),
        (110.82, "110.8"),
        (math.inf, "∞"),
        (math.nan, "–"),
        (1e-5, "1.00e−05"),
        (-0.0, "0"),
    ],
)
def test_numbers_are_written_with_three_digits(value, text) -> None:
    assert wording.number(value) == text


@pytest.mark.parametrize(
    "effect, unit, text",
    [
        (Effect(2.1347, 2.0283, 2.2731, 0.01, 3), "×", "2.13× [2.03, 2.27]"),
        (Effect(-0.0004, -1.4, 1.3, 0.9, 3), "%", "0.0 % [−1.4, 1.3]"),
        (Effect(110.82, 110.81, 110.83, 0.9, 3), "%", "110.8 % [110.8, 110.8]"),
        (Effect(1.8, math.nan, math.nan, 1.0, 3), "×", "1.80×"),
    ],
)
def test_an_interval_decides_the_decimals(effect, unit, text) -> None:
    assert wording.estimate(effect, unit) == text


def test_mean_and_sd_share_their_decimals() -> None:
    assert wording.mean_sd([4.07, 4.08, 4.09]) == "4.080 ± 0.010"
    assert wording.mean_sd([14350.0, 14509.0, 14680.0]) == "14513 ± 165"
    assert (
        wording.mean_sd([453, 453]) == "453 ± 0" and wording.mean_sd([4.07]) == "4.070" and wording.mean_sd([]) == "–"
    )


def test_lists_in_words() -> None:
    assert [wording.listed(x) for x in ([], "a", "ab", "abc")] == ["none", "a", "a and b", "a, b and c"]


def test_phases_are_shares_of_the_steps_after_warmup(records) -> None:
    row = tables.phases(records.runs).set_index("arm").loc["hybrid"]
    assert row[["warmup", "full", "predict", "correct"]].tolist() == ["10.0 %", "33.3 %", "55.6 %", "11.1 %"]
    assert row["jumps accepted"] == 12  # four a run, three seeds


def test_percentiles_are_pandas_own(records) -> None:
    row = tables.percentiles(records.steps).query("arm == 'baseline' and of == 'step time (ms)'").iloc[0]
    assert row[["mean", "median", "5%", "95%"]].tolist() == ["100"] * 4


def test_speed_says_not_reached(records) -> None:
    late = records.runs.assign(
        time_to_target_s=records.runs.time_to_target_s.where(records.runs.arm != "hold", math.inf)
    )
    row = tables_effects.speed(late).set_index("arm").loc["hold"]
    assert row["time to target"] == "not reached" and row["never reached"] == "3 of 3"


def test_a_baseline_that_slows_down_is_named_and_its_speedup_given_without_it(records) -> None:
    main = read_rules().criteria["C2"].parts[0]
    assert prose.steadiness(records, main).startswith("Every run on `text` kept its pace")
    slowed = (records.runs.arm == "baseline") & (records.runs.seed == 2)
    runs = records.runs.assign(
        slowdown=records.runs.slowdown.where(~slowed, 1.5), nominal_tokens_per_s=records.runs.nominal_tokens_per_s.where(~slowed, 320.0)
    )
    said = prose.steadiness(replace(records, runs=runs), main)
    assert "in `baseline` with seed 2 (1.50×)" in said and "have had 1.987×" in said and "where 2.5×" in said
    row = tables_effects.pace(runs).set_index("arm").loc["baseline"]
    assert row["slowest tenth over fastest"] == "1, 1.50, 1"


def test_thresholds_name_demand_value_and_verdict(records) -> None:
    found = tables_verdict.thresholds(measured_parts(records, read_rules())).set_index("metric")
    assert found.hybrid["throughput"].startswith("≥ 1.5× (acceptable ≥ 1.3): 1.9") and found.hybrid[
        "throughput"
    ].endswith("PASS")
    assert found.memory_optimized["memory in Predict"] == "≤ 60 %: 60 %, PASS"
    assert found.hybrid["divergences per 1000 steps"] == "≤ 0 (acceptable ≤ 1): 0, PASS"


def test_gradient_health_counts_explosions_and_vanishing() -> None:
    steps = pd.DataFrame(
        {
            "data": "text",
            "arm": ["baseline"] * 4 + ["hybrid"] * 4,
            "real": 1,
            "grad_norm": [1.0, 1.0, 1.0, 1.0, 11.0, 0.001, 1.0, 1.0],
        }
    )
    row = gradient_health(steps, "baseline").set_index("arm").loc["hybrid"]
    assert (row.explosion_pct, row.vanishing_pct) == (25.0, 25.0)


def test_ladder_and_interactions_by_hand() -> None:
    rates = dict(
        baseline=100.0,
        hybrid=200.0,
        baseline_bf16=120.0,
        hybrid_bf16=216.0,
        hybrid_accumulation=180.0,
        hybrid_offload=190.0,
        memory_optimized=200.0,
    )
    base = dict(
        data="text",
        steps=10,
        batch_size=1,
        seq_len=1,
        held_out_loss=4.0,
        peak_mb_run=100.0,
        peak_mb_predict=50.0,
        nominal_steps=10,
        divergences=0,
    )
    runs = pd.DataFrame(
        [
            base | dict(arm=arm, seed=seed, nominal_tokens_per_s=rate * seed)
            for arm, rate in rates.items()
            for seed in (1, 2)
        ]
    )
    assert ablation.rungs(runs, "text").speedup.tolist() == ["2×", "1.08×", "0.900×", "0.950×", "1×", "1.20×"]
    assert ablation.interactions(runs, "text").value.tolist() == pytest.approx([1.08 / 1.2, 1.0 / (1.08 * 0.9 * 0.95)])
    assert ablation.rungs(runs[runs.arm == "baseline"], "text").speedup.tolist() == ["–"] * 6


def test_tables_and_sentences_survive_records_that_are_not_there(records) -> None:
    none, rules = records.where(arm=["none"]), read_rules()
    for table in (
        tables.summary,
        tables_effects.speed,
        tables_effects.quality,
        tables.phases,
        tables.memory,
        tables.per_run,
    ):
        assert table(none.runs).empty and len(table(none.runs).columns)
    assert len(tables_effects.quality_tests(none.runs, [1, 2]).columns) == 9
    found, power = verdicts(none, rules), tables_verdict.power(none, rules)
    main = rules.criteria["C2"].parts[0]
    said = [
        prose.answer(none, found, main),
        prose.recovered(none, main),
        prose.speed_bound(none, main),
        prose.provenance(none),
        prose.over_sources(none, "speedup", "hybrid", "×"),
        prose.tally(found),
        prose.health(gradient_health(none.steps, "baseline")),
        prose.limitations(none, sources_with_power(none, rules.criteria["C3"]), power),
    ]
    assert all(said) and "nan" not in " ".join(said)


def test_sentences_follow_the_records(records) -> None:
    rules = read_rules()
    found, main = verdicts(records, rules), rules.criteria["C2"].parts[0]
    assert "**no**: H1 did" in prose.answer(records, found, main)  # 1.99× where 2× is asked for
    assert "bounded by S" in prose.speed_bound(records, main)
    assert prose.recovered(records, main).startswith("Skipping alone (`hold`) cost 0.4")
    assert prose.missing(records) == "No planned run is missing."
    passed = found.assign(verdict="PASS", grade="exceeds")
    assert "**yes**" in prose.answer(records, passed, main)
    assert "**yes by the brief's thresholds**" in prose.answer(records, passed.assign(grade="met"), main)
