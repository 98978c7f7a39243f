"""Ratios of trials to their baselines, worked out by hand; peers beside the arm that they are compared with."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from chapter import run_chapter
from conftest import FACTS, FakeStudy
from scipy import stats

from hybridlib.analysis.load import read_records
from hybridlib.analysis.research import REFERENCE, TO_BASELINE, TRIAL_COLUMNS, Research, with_baselines
from hybridlib.study.records import RunFolder


def curve(*losses: float) -> pd.DataFrame:
    """Held-out losses at steps 10, 20, …, all computed."""
    steps = [10 * (i + 1) for i in range(len(losses))]
    return pd.DataFrame(dict(step=steps, real_steps=steps, train_s=steps, held_out_loss=losses))


def trial(
    sweep: str, name: str, loss: float, real_steps: int = 15, steps: int = 40, predictor: str | None = "spectral"
) -> dict:
    row = dict.fromkeys(TRIAL_COLUMNS, 0.0) | dict.fromkeys(TO_BASELINE, math.nan)  # unknown until there is a baseline
    named = dict(sweep=sweep, trial=name, about="", seed=1, predictor=predictor)
    return row | named | dict(steps=steps, real_steps=real_steps, held_out_loss=loss, speedup=2.0)


def test_a_trial_against_its_sweeps_baseline() -> None:
    evals = {("carry_x", "baseline", 1): curve(5.0, 4.0, 3.0, 2.5)}
    rows = [
        trial("carry_x", "baseline", 2.5, 40, predictor=None),
        trial("carry_x", "hybrid", 2.9),
        trial("carry_x", "better", 2.0),
    ]
    found = with_baselines(pd.DataFrame(rows), evals).set_index("trial")
    assert found.delta_pct["hybrid"] == pytest.approx(16)
    assert found.hold_loss["hybrid"] == 4.5, "the baseline at 15 steps"
    assert found.hold_delta_pct["hybrid"] == pytest.approx(80)
    assert found.steps_worth["hybrid"] == 40 and math.isnan(found.steps_worth["better"])
    assert math.isnan(found.delta_pct["baseline"])


def test_a_shorter_baseline_gives_hold_but_no_change() -> None:
    evals = {("carry_x", "baseline", 1): curve(5.0, 4.0)}
    found = with_baselines(pd.DataFrame([trial("carry_x", "hybrid", 3.9)]), evals).iloc[0]
    assert found.hold_loss == 4.5 and math.isnan(found.delta_pct)


def test_time_to_the_baselines_loss_counts_what_was_computed() -> None:
    """The baseline ends at 2.5 after 40 steps; the trial has that at its 15th real step of 20, which cost 22."""
    own = curve(5.0, 2.4, 2.3).assign(real_steps=[5, 15, 20])
    evals = {("over_x", "baseline", 1): curve(5.0, 4.0, 3.0, 2.5), ("over_x", "60", 1): own}
    row = trial("over_x", "60", 2.3, real_steps=20, steps=60) | dict(equivalents=22.0)
    found = with_baselines(pd.DataFrame([row]), evals).iloc[0]
    assert found.target_ratio == pytest.approx(40 / (22 * 15 / 20)) and math.isnan(found.delta_pct)


def test_ablations_are_held_to_the_reference_and_other_settings_are_not() -> None:
    evals = {(REFERENCE, "baseline", 1): curve(5.0, 4.0, 3.0, 2.5)}
    rows = [trial("ablation_gain", "2.0", 2.5), trial("carry_x", "hybrid", 2.5)]
    assert with_baselines(pd.DataFrame(rows), evals).delta_pct.isna().tolist() == [False, True]


def research() -> Research:
    evals = {(REFERENCE, "baseline", 1): curve(5.0, 4.0, 3.0, 2.5)}
    rows = [
        trial(REFERENCE, "frozen", 2.0),
        trial(REFERENCE, "baseline", 2.5, 40, predictor=None),
        trial("ablation_gain", "gain=9", 2.6),
        trial("ablation_gain", "gain=2", 2.001),
        trial("tradeoff_linear", "0.6", 4.8, predictor="linear"),
        trial("tradeoff_linear", "0.8", 9.0, predictor="linear"),
        trial("tuning_hybrid", "gain=1,momentum=0.5", 2.2),
        trial("tuning_hybrid", "gain=2,momentum=0.5", 2.1),
    ]
    return Research(with_baselines(pd.DataFrame(rows), evals), [])


def test_failures_are_what_ends_behind_the_frozen_settings_the_worst_first(fake_study, monkeypatch) -> None:
    executed = run_chapter("11_failures", fake_study, monkeypatch, draw=False, found=research(), share="0.6")
    assert executed.shown["failures"].frame.tried.tolist() == ["predictor linear", "gain: gain=9"]
    assert "Worse than hold at a predicted share of 0.6: linear." in executed.said


def test_the_tuning_table_names_the_best(fake_study, monkeypatch) -> None:
    executed = run_chapter("10_research", fake_study, monkeypatch, found=research())
    row = executed.shown["tuned"].frame.iloc[0]
    assert (row["settings tried"], row.best, row["loss, best"]) == ("2", "gain=2, momentum=0.5", "2.100")
    assert not executed.shown["ablations"].empty and not executed.shown["tradeoff"].empty


def yardsticks() -> Research:
    """AdamW loses 0.4 nats with each e-fold of steps; after 410 the hybrids are where it is after 700 and about 900."""
    law = lambda steps, seed: 6 - 0.4 * math.log(steps) + 0.01 * seed  # noqa: E731
    rows = [
        trial("yardstick_adamw", str(steps), law(steps, seed), steps, steps, None) | dict(seed=seed)
        for steps in (600, 800, 1000)
        for seed in (1, 2)
    ]
    for seed in (1, 2):
        like = dict(seed=seed)
        rows += [
            trial("worth_of_adam", "hybrid", law(700, seed), 410, 1000) | like,
            trial("worth_of_adamw", "hybrid_tuned", law(900 + seed % 2, seed), 410, 970) | like,
            trial("worth_of_adamw", "adamw", law(410, seed), 410, 410, None) | like,
            trial("worth_of_muon", "muon", law(900, seed) * (1.004 + 0.001 * seed), 410, 410, None) | like,
            trial("worth_of_muon_in_equal_time", "muon", law(800, seed), 300, 300, None) | like,
        ]
    return Research(pd.DataFrame(rows), [])


def ratio_ends(ratios: pd.Series) -> tuple[float, float]:
    """The ends of the 95 % interval of a geometric mean, by the t distribution on logarithms."""
    logs, n = np.log(ratios), len(ratios)
    half = stats.t.ppf(0.975, n - 1) * logs.std(ddof=1) / math.sqrt(n)
    return math.exp(logs.mean() - half), math.exp(logs.mean() + half)


def test_muon_is_faster_where_its_step_costs_no_more_than_it_is_worth(fake_study, monkeypatch) -> None:
    """Its step costs 4, 2 and 1 of the hybrid's at 64, 256 and 1024 tokens; it is worth 0.955 of one."""
    rows = [
        dict(round=0, device="cpu: any", study="fake", tokens=tokens, arm=arm, computed_step_s=cost)
        for tokens, muon in ((64, 4.4), (256, 2.2), (1024, 1.1), (4096, 1.0))
        for arm, cost in (("baseline", 1.0), ("hybrid_tuned", 1.1), ("muon", muon))
    ]
    (fake_study.folder / "results").mkdir(exist_ok=True)
    pd.DataFrame(rows).to_csv(fake_study.folder / "results" / "speed_tokens.csv", index=False)
    executed = run_chapter("10_research", fake_study, monkeypatch, found=yardsticks())
    row = executed.shown["tokens_table"].frame.iloc[0]
    by_seed = executed.names["worths"]["muon"] / executed.names["worths"]["hybrid_tuned"]
    share = -np.log(by_seed).mean() / math.log(1.1)  # of the way from 1024 to 4096 tokens, both by logarithm
    assert row["muon is faster from"] == f"about {round(1024 * 4**share, -2):.0f}"
    ends = [executed.names["said_of"](executed.names["step"], end) for end in ratio_ends(by_seed)]
    assert row["interval"] == f"{ends[1]} to {ends[0]}" and "about" in row["interval"]
    assert row["study, device"] == "fake, cpu"
    said_of, step = executed.names["said_of"], executed.names["step"]
    assert said_of(step, 5.0) == "fewer than 64" and said_of(step, 0.5) == "more than 4096"
    assert not executed.shown["step_by_tokens"].empty


def test_a_yardstick_is_drawn_where_no_arm_lies_on_it(fake_study, monkeypatch) -> None:
    rows = [
        trial("yardstick_adamw", "1000", 4.4, 1000, 1000, None),
        trial("worth_of_muon", "muon", 4.1, 410, 410, None),
    ]
    executed = run_chapter("10_research", fake_study, monkeypatch, draw=False, found=Research(pd.DataFrame(rows), []))
    assert not executed.shown["worth_curve"].empty
    assert executed.table("worth_table", "arm")["steps of AdamW"].tolist() == ["> 1000 in 1 of 1"]


def test_a_few_settings_are_told_by_the_best_of_each(fake_study, monkeypatch) -> None:
    rows = [
        trial("equal_steps", "adamw-0.001", 4.9, 410, 410, None),
        trial("equal_steps", "adamw-0.002", 4.8, 410, 410, None),
    ]
    rows += [
        trial("equal_steps", "muon-0.001", 4.1, 410, 410, None),
        trial("adamw_1000", "lr=0.001", 4.4, 1000, 1000, None),
    ]
    executed = run_chapter("10_research", fake_study, monkeypatch, draw=False, found=Research(pd.DataFrame(rows), []))
    assert executed.shown["few_settings"].frame.optimizer.tolist() == ["muon", "adamw", "adamw", "adamw"]
    first, second, third = executed.shown["few_said"].content.split(". ")
    assert (
        first == "After 410 computed steps the best of a few settings each ends at 4.100 (`muon`) and 4.800 (`adamw`)"
    )
    assert second.startswith("After 1,000 computed steps the best of a few settings each ends at 4.400 (`adamw`);")
    assert third.startswith("The best rate lies at an end") and third.endswith("it: `adamw` after 410 (0.002).")


def test_the_three_yardsticks_say_what_computed_steps_are_worth(fake_study, monkeypatch) -> None:
    executed = run_chapter("10_research", fake_study, monkeypatch, found=yardsticks())
    table = executed.table("worth_table", "arm")
    best_first = ["2.196× [2.181, 2.212]", "2.10× [1.99, 2.21]", "1.71×", "1.00×"]
    assert table["a step in adamw's"].tolist() == best_first
    assert table["steps of AdamW"]["hybrid"] == "700" and table["over"].to_dict()["muon"] == "muon"
    steps = executed.table("equal_steps", "arm")
    assert list(steps.index) == ["hybrid_tuned", "muon", "hybrid", "adamw"] and steps.seeds.tolist() == ["2"] * 4
    assert steps["above hybrid_tuned (%)"]["muon"].startswith("0.56")
    assert executed.table("equal_time", "arm")["computed steps"].to_dict() == {"hybrid_tuned": "410", "muon": "300"}
    kept = pd.read_csv(fake_study.folder / "results" / "worth.csv")
    assert set(kept.base) == {"adam", "adamw", "muon"} and len(kept) == 10
    assert "410 computed steps of `hybrid` are worth 1.71×" in executed.shown["worth_said"].content
    assert "A computed step of a tuned `muon` is no better" in executed.shown["users_said"].content
    assert executed.shown["level_said"].empty, "where AdamW was trained beside it, on the same seeds"
    assert not executed.shown["ends"].empty and not executed.shown["worth_curve"].empty


def test_peers_stand_beside_the_same_seeds_arm(fake_study, monkeypatch) -> None:
    records = read_records(fake_study.name, fake_study.outputs)
    runs = records.runs.copy()
    runs.loc[runs.arm == "sham", "role"] = "peer"
    executed = run_chapter("10_research", fake_study, monkeypatch, draw=False, records=replace(records, runs=runs))
    mine, theirs = (runs[runs.arm == arm].set_index("seed") for arm in ("hybrid", "sham"))
    for row in executed.names["against"].itertuples():
        assert row.change_pct == pytest.approx(
            100 * (theirs.held_out_loss[row.seed] / mine.held_out_loss[row.seed] - 1)
        )
        assert row.time_ratio == pytest.approx(theirs.train_s[row.seed] / mine.train_s[row.seed])
    assert executed.shown["peers"].frame["hybrid better in"].tolist() == ["3 of 3"]


def test_ways_to_flatten_are_held_to_the_frozen_one_seed_by_seed(fake_study, monkeypatch) -> None:
    rows = [
        trial("flattening", name, loss, 20, steps=60) | dict(seed=seed, equivalents=equivalents)
        for name, seed, loss, equivalents in (
            ("frozen", 1, 4.0, 24),
            ("frozen", 2, 5.0, 24),
            ("iterations-2", 1, 4.5, 22),
            ("iterations-2", 2, 3.75, 22),
        )
    ]
    baseline = trial("flattening", "baseline", 4.5, 60, steps=60, predictor=None)
    found = Research(pd.DataFrame([*rows, baseline]), [])
    nothing = replace(found, trials=found.trials.head(0))
    executed = run_chapter("10_research", fake_study, monkeypatch, found=found, pool=dict(fake=found, other=nothing))
    table = executed.shown["flattening"].frame
    assert table["predictor"].tolist() == ["frozen", "iterations-2"]
    assert table["against frozen (%)"].tolist() == ["0, 0", "+12.5, −25"]
    assert table["a predicted step, in computed ones"].tolist() == ["0.100", "0.0500"]


@pytest.mark.parametrize("read", [True, False])
def test_gains_by_size_are_of_like_runs_of_the_studies_that_are_read(fake_study, tmp_path, monkeypatch, read) -> None:
    larger = FakeStudy(tmp_path, study="gpt2-small")
    larger.folder = larger.outputs / "gpt2-small"
    for arm in ("baseline", "hybrid"):
        older = dict(numerics=FACTS["numerics"] - 1, model_parameters=70000)  # is left out everywhere
        larger.write(arm, 4, study="gpt2-small", **older)
    for seed in (1, 2, 3):
        for arm in ("baseline", "hybrid"):
            larger.write(arm, seed, study="gpt2-small", model_parameters=9000)
    fake_study = FakeStudy(tmp_path, also_reads=["gpt2-small"] if read else [])
    executed = run_chapter("10_research", fake_study, monkeypatch)
    gains = executed.names["gains"]
    if not read:
        assert gains.empty and executed.shown["by_size"].empty, "one size shows no growth"
        return
    assert sorted(gains.parameters.unique()) == [1000, 9000]
    gains = gains[gains.parameters == 1000]
    assert sorted(gains.seed.unique()) == [1, 2, 3] and set(gains.arm) == {"hybrid", "hold"}
    hybrid, plain = (
        RunFolder(fake_study.folder / "runs" / f"{arm}-text-s1").facts["summary"] for arm in ("hybrid", "baseline")
    )
    mine = gains[(gains.seed == 1) & (gains.arm == "hybrid")].delta_pct.iloc[0]
    assert mine == pytest.approx(100 * (hybrid["held_out_loss"] / plain["held_out_loss"] - 1))
    assert (gains[gains.arm == "hold"].delta_pct > 1).all()


def test_where_the_study_trained_adamw_itself_its_own_seeds_say_how_far_the_hybrids_end_from_it(
    tmp_path, monkeypatch
) -> None:
    tuned = dict(arms=dict(adamw=dict(like="baseline", role="peer"), hybrid_tuned=dict(like="hybrid")))
    fake = FakeStudy(tmp_path, **tuned)
    for seed in (1, 2, 3):
        fake.write("baseline", seed)
        fake.write("adamw", seed, gap_nats=-0.5)
        fake.write("hybrid", seed, gap_nats=-0.55)
        fake.write("hybrid_tuned", seed, gap_nats=-0.45 if seed == 3 else -0.6)
    few = pd.DataFrame([trial("equal_steps", f"adamw-{rate}", 5.0, 410, 410, None) for rate in (1, 2)])
    executed = run_chapter("10_research", fake, monkeypatch, draw=False, found=Research(few, []))
    said = executed.shown["level_said"].content
    assert said.startswith(
        "AdamW alone, in fp32, the best of 2 rates on the pilot seed, decayed for 410 computed steps, ends at"
    )
    assert "It has `baseline`'s final loss, " in said and "as fast. `hybrid`" in said
    assert "`hybrid`, in fp32, ends" in said and "below AdamW, lower in 3 of 3 seeds" in said
    assert "`hybrid_tuned`, in fp32, ends" in said and "lower in 2 of 3 seeds" in said
    assert said.count("AdamW's time.") == 2
