"""Reading records: what is mixed is refused, what is missing or left out is named."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import STUDY, FakeStudy

from hybridlib.analysis import load
from hybridlib.analysis.alike import precisions
from hybridlib.training import NUMERICS


@pytest.mark.parametrize(
    "facts, says",
    [
        (dict(device="cuda: other"), "the runs on text must have one device"),
        (dict(corpus_sha256="other"), "the runs on text must have one corpus_sha256"),
    ],
)
def test_a_mixture_is_refused_and_named(fake_study, facts, says) -> None:
    fake_study.rewrite("hold", 3, **facts)
    with pytest.raises(ValueError, match=says) as refused:
        load.read_records(fake_study.name, fake_study.outputs)
    assert "hold-text-s3" in str(refused.value)


def test_runs_of_other_parameters_are_left_out_and_named(fake_study) -> None:
    older = fake_study.study.run("hold", "text", 3).model_dump() | dict(eval_every=7)
    fake_study.rewrite("hold", 3, parameters=older)
    records = load.read_records(fake_study.name, fake_study.outputs)
    assert records.left_out == ["hold-text-s3"]
    assert records.missing.why.tolist() == ["made with other parameters than the study's"]


def test_runs_under_an_older_numerics_are_left_out_and_named(fake_study) -> None:
    """After NUMERICS was raised the plan is trained again, but what is left to --full perhaps not."""
    fake_study.rewrite("hold", 3, numerics=NUMERICS - 1)
    records = load.read_records(fake_study.name, fake_study.outputs)
    assert records.left_out == ["hold-text-s3"]
    assert records.missing.why.tolist() == ["made under an older NUMERICS than the study's"]


def test_data_sources_may_come_from_different_machines(fake_study) -> None:
    runs = load.read_records(fake_study.name, fake_study.outputs).runs
    elsewhere = runs.assign(data="uniform", device="cuda: other", numerics=0)
    load.refuse_mixture(pd.concat([runs, elsewhere]))


def test_seeds_may_come_from_different_processors_but_a_pair_may_not(fake_study) -> None:
    runs = load.read_records(fake_study.name, fake_study.outputs).runs
    one, other = "cpu: by hand, 1 threads", "cpu: another, 1 threads"
    mixed = runs.assign(device=runs.seed.map({1: one, 2: other, 3: one}))
    load.refuse_mixture(mixed)
    assert load.devices(mixed) == f"{one} (text, seeds 1, 3); {other} (text, seed 2)"
    assert load.devices(runs) == one
    mixed.loc[(mixed.seed == 2) & (mixed.arm == "hybrid"), "device"] = one
    with pytest.raises(ValueError, match="the runs on text with seed 2 must have one device to be compared") as refused:
        load.refuse_mixture(mixed)
    assert "hybrid-text-s2" in str(refused.value)


@pytest.mark.parametrize("file", ["run.json", "steps.csv", "evals.csv"])
@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize("content", ["", "{", "step,phase\n1", "\x00\xff"])
def test_damaged_records_are_missing_and_the_others_are_there(fake_study, file, checksums, content) -> None:
    run = fake_study.folder / "runs" / "hold-text-s3"
    if not checksums:  # as runs were recorded before there were any
        facts = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps({k: v for k, v in facts.items() if k not in ("sha256", "files")}))
    (run / file).write_text(content)
    records = load.read_records(fake_study.name, fake_study.outputs)
    assert records.missing[["arm", "seed", "why"]].values.tolist() == [["hold", 3, "its records are damaged"]]
    assert len(records.runs) == 14 and records.left_out == []


@pytest.mark.parametrize("content", ["", "a,b\n1,2", "\x00"])
def test_results_that_are_cut_off_are_none(fake_study, content) -> None:
    (fake_study.folder / "results").mkdir()
    (fake_study.folder / "results" / "stress.csv").write_text(content)
    records = load.read_records(fake_study.name, fake_study.outputs)
    assert records.results("stress", ["test", "passed"]).columns.tolist() == ["test", "passed"]
    assert load.facts_of(fake_study.folder / "results" / "stress.csv") == {}


def test_precisions_are_said_by_arm() -> None:
    runs = pd.DataFrame(dict(arm=["a", "b", "b", "c"], precision=["fp32", "bf16", "bf16", "fp32"]))
    assert precisions(runs) == "Precision: bf16 for `b`, fp32 for the others."
    assert precisions(runs[runs.arm != "b"]) == "Precision: fp32 for all." and precisions(runs.head(0)) == ""


def test_a_run_that_two_lines_plan_is_missing_once(tmp_path) -> None:
    lines = [
        dict(arms=["baseline", "hybrid"], data=["text"], seeds=[1]),
        dict(arms=["baseline"], data=["text"], full=True),
    ]
    fake = FakeStudy(tmp_path, plan=dict(benchmark=lines))
    missing = load.read_records(fake.name, fake.outputs).missing
    why = {(row.arm, row.seed): row.why for row in missing.itertuples()}
    assert len(why) == len(missing) == 1 + len(fake.study.seeds)
    assert why["baseline", 1] == "not run" and why["baseline", 2] == "left to --full"


def test_an_arm_whose_rate_falls_to_zero_has_never_reached_what_it_has_not_by_then(tmp_path) -> None:
    fake = FakeStudy(tmp_path, arms=dict(decayed=dict(like="hybrid", optimizer=dict(lr_decay=0.5))))
    fake.write("baseline", 1)
    fake.write("decayed", 1, gap_nats=0.5)
    runs = load.read_records(fake.name, fake.outputs).runs.set_index("arm")
    assert runs.extend["decayed"] > 1 and runs.most_steps["decayed"] == runs.last_step["decayed"] == fake.study.steps
    assert np.isinf(runs.time_to_target_s["decayed"])


def test_an_arm_that_is_not_extended_has_a_time_to_target_where_every_seed_reaches_it(tmp_path) -> None:
    arms = STUDY["arms"] | {name: dict(like="hybrid", extend=1.0) for name in ("always", "once")}
    fake = FakeStudy(tmp_path, arms=arms, plan=dict(benchmark=[dict(arms=["baseline", *arms], data=["text"])]))
    for seed in (1, 2):
        fake.write("baseline", seed)
        fake.write("always", seed)
        fake.write("once", seed, gap_nats=0.5 * (seed - 1))
    times = load.read_records(fake.name, fake.outputs).runs.groupby("arm").time_to_target_s
    assert np.isfinite(times.get_group("always")).all() and times.get_group("once").isna().all()
