"""Runs trained again: what is equal is said to be, what is not ends with a failure, and records are never touched."""

import io
import json
import re
from pathlib import Path

import conftest
import pandas as pd
import pytest
import yaml
from rich.console import Console

from hybridlib.study import agreement, alone, pipeline, progress, reproduce
from hybridlib.study.parameters import ROOT, load_study
from hybridlib.study.records import RunFolder
from hybridlib.study.schema import Study

STUDY = dict(
    study="little", model=dict(n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=48),
    sources=dict(markov=dict(kind="markov")), steps=60, batch_size=4, seq_len=16, eval_every=10, eval_batches=2,
    threads=1, seeds=[3, 4],
    plan=dict(benchmark=[dict(arms=["baseline", "hybrid"], data=["markov"], seeds=[3])]),
)  # fmt: skip


@pytest.fixture
def little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    for module in (progress, pipeline, reproduce):
        monkeypatch.setattr(module, "OUTPUTS", tmp_path / "outputs")
    monkeypatch.setenv("HYBRIDLIB_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "little.yaml").write_text(yaml.safe_dump(STUDY))
    return load_study(str(tmp_path / "little.yaml"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*.*")) if path.suffix in (".csv", ".json")}


def saying(function, *given) -> tuple[bool, str]:
    console = Console(file=io.StringIO(), width=200)
    return function(*given, console), console.file.getvalue()


def test_the_pair_is_trained_again_beside_its_records_and_is_equal(little: Study, tmp_path: Path) -> None:
    from hybridlib.training.experiment import train

    folder = tmp_path / "outputs" / "little"
    for run in reproduce.pair(little):
        train(run, "cpu")
    before = contents(folder / "runs")
    agree, said = saying(reproduce.reproduce, little, "cpu")
    assert agree and "equal to the last digit" in said and "recorded: hybrid is" in said and "here: hybrid is" in said
    found = json.loads((folder / "reproduced" / "reproduced.json").read_text())
    assert found["agree"] and [row["weights_equal"] for row in found["runs"]] == [True, True]
    assert contents(folder / "runs") == before

    made = {
        run.id: RunFolder(folder / "reproduced" / "runs" / run.id).facts["ended_at"] for run in reproduce.pair(little)
    }
    # As a start that was cut off leaves it: one run is not complete, and nothing has been judged since.
    (folder / "reproduced" / "runs" / "hybrid-markov-s3" / "run.json").unlink()
    (folder / "reproduced" / "reproduced.json").unlink()
    assert saying(reproduce.reproduce, little, "cpu")[0]
    assert (
        RunFolder(folder / "reproduced" / "runs" / "baseline-markov-s3").facts["ended_at"] == made["baseline-markov-s3"]
    )
    agree, said = saying(reproduce.verify, little, 1, 7, "cpu")
    again = saying(reproduce.verify, little, 1, 7, "cpu")[1]
    assert (
        agree
        and "1 of 2 complete runs, chosen by --choice 7" in said
        and said.split("Training")[0] == again.split("Training")[0]
    )
    assert contents(folder / "runs") == before


def test_without_records_there_is_nothing_to_reproduce(little: Study, tmp_path: Path) -> None:
    agree, said = saying(reproduce.reproduce, little, "cpu")
    assert agree and "Nothing to reproduce" in said
    agree, said = saying(reproduce.verify, little, 2, None, "cpu")
    assert not agree and "Nothing to verify: no run of little is complete" in said, "nothing that was compared agrees"
    assert not (tmp_path / "outputs").exists()


def test_a_run_that_cannot_be_trained_is_named(little: Study) -> None:
    run = reproduce.again(
        reproduce.pair(little)[0],
        source=little.sources["markov"].model_copy(update=dict(kind="text", paths=["nowhere"])),
        model=little.model.model_copy(update=dict(vocab_size=300)),
    )
    with pytest.raises(alone.CannotTrain, match="baseline-markov-s3 could not be trained: .*nowhere"):
        alone.train_alone(run, "cpu")


@pytest.mark.parametrize(
    ("gap_nats", "device", "agrees", "said"),
    [
        (0.0, None, True, "equal to the last digit"),
        (1e-5, "cpu: another", True, "e-06 of them .another processor rounds differently"),
        (1e-5, None, True, "on the same processor"),
        (1e-3, None, False, "DO NOT AGREE: the final held-out loss of hold-text-s3 differs by"),
    ],
)
def test_the_verdict_depends_on_how_far_the_final_losses_are_apart(fake_study, gap_nats, device, agrees, said) -> None:
    facts = dict(weights_sha256="a") | (dict(device=device) if device else {})
    fake_study.rewrite("hold", 3, weights_sha256="a")
    fake_study.rewrite("sham", 3, **facts) if not gap_nats else fake_study.rewrite(
        "sham", 3, gap_nats=gap_nats, **facts
    )
    then, now = (RunFolder(fake_study.folder / "runs" / f"{arm}-text-s3") for arm in ("hold", "sham"))
    rows = [agreement.compare("hold-text-s3", then, now)]
    assert agreement.agree(rows) == agrees
    assert re.search(said, agreement.verdict(rows))


MUON = dict(optimizer=dict(name="muon", lr_matrices=0.001))
JUMPS = dict(predictor=dict(name="spectral", precision="bf16"))


@pytest.mark.parametrize(("arm", "agrees"), [({}, False), (dict(precision="bf16"), True), (MUON, True), (JUMPS, True)])
def test_what_another_processor_may_round_otherwise_depends_on_the_precision(tmp_path, arm, agrees) -> None:
    arms = conftest.STUDY["arms"] | dict.fromkeys(("hold", "sham"), arm)
    fake = conftest.FakeStudy(tmp_path, arms=arms)
    fake.write("hold", 3, weights_sha256="a")
    fake.write("sham", 3, weights_sha256="b", gap_nats=3e-3)  # 5e-4 of the loss
    then, now = (RunFolder(fake.folder / "runs" / f"{arm}-text-s3") for arm in ("hold", "sham"))
    assert agreement.agree([agreement.compare("hold-text-s3", then, now)]) == agrees


@pytest.mark.parametrize(("early", "here", "agrees"), [(1e-6, "b", True), (1e-3, "b", False), (1e-6, "a", False)])
def test_where_rounding_grows_another_processor_is_held_to_the_first_steps(early, here, agrees) -> None:
    row = dict(run="x", early_losses=early, final_loss=3e-2, allowed=1e-4, recorded_on="a", here=here, equal=False)
    assert agreement.agree([row]) == agrees
    assert agreement.verdict([row]).startswith("Not contradicted" if agrees else "DO NOT AGREE")


@pytest.mark.parametrize(
    ("then", "now", "apart"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.0], [1.0, 2.5], 0.25),
        ([1.0, None], [1.0, None], 0.0),
        ([1.0, None], [1.0, 2.0], float("inf")),
        ([-2.0], [2.0], 2.0),
        ([1.0, 2.0], [1.0], float("inf")),
    ],
)
def test_the_largest_relative_difference(then: list, now: list, apart: float) -> None:
    assert agreement.largest(pd.Series(then, dtype=float), pd.Series(now, dtype=float)) == apart


def test_the_pair_is_of_the_source_that_the_study_is_judged_on(little: Study) -> None:
    two = little.model_copy(update=dict(sources=dict(even=dict(kind="uniform")) | little.sources))
    assert [run.data for run in reproduce.pair(little)] == ["markov"] * 2
    assert [run.data for run in reproduce.pair(two.model_copy(update=dict(judged_on="markov")))] == ["markov"] * 2


def test_a_study_without_the_pair_is_refused(little: Study) -> None:
    without = little.model_copy(update=dict(arms={name: arm for name, arm in little.arms.items() if name != "hybrid"}))
    with pytest.raises(ValueError, match="--reproduce: no arm 'hybrid'"):
        reproduce.pair(without)
