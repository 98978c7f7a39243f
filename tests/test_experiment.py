"""Whole runs: records that add up, equal to the last digit when repeated, killed or extended later."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from hybridlib import progress
from hybridlib.config import Run
from hybridlib.records import RunFolder
from hybridlib.training.experiment import train

TINY = dict(
    study="tiny", data="markov", seed=5, steps=64, batch_size=4, seq_len=16, log_every=5, eval_every=8, eval_batches=2,
    snapshot_every=12, threads=1, model=dict(n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=48),
    source=dict(kind="markov"),
)  # fmt: skip
HYBRID = dict(
    arm="hybrid", schedule=dict(warmup=4, full=4, predict=8, correct=3), predictor=dict(name="spectral"), memory="offload"
)


@pytest.fixture(autouse=True)
def own_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(progress, "OUTPUTS", tmp_path)
    return tmp_path


def run(**changes) -> Run:
    return Run(**TINY | HYBRID | changes)


def baseline(**changes) -> Run:
    return Run(**TINY | dict(arm="baseline", role="baseline") | changes)


def timeless(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What must be the same on every machine day: all columns but time and memory."""
    records = RunFolder(folder)
    return records.steps().drop(columns=["step_s", "jump_s", "peak_mb"]), records.evals().drop(columns="train_s")


def test_records_add_up() -> None:
    facts = train(run(), "cpu")
    steps, evals = RunFolder(progress.folder(run())).steps(), RunFolder(progress.folder(run())).evals()
    assert list(steps.step) == list(range(1, 65))
    assert steps.tokens_trained.iloc[-1] == steps.real.sum() * 64 == facts["summary"]["real_steps"] * 64
    assert (steps.loss.isna() | (steps.real == 1) | (steps.step % 5 == 0) | steps.event.str.contains("jump")).all()
    assert evals.step.iloc[-1] == 64 and evals.held_out_loss.iloc[-1] == facts["summary"]["held_out_loss"]
    assert evals.train_s.iloc[-1] == pytest.approx(facts["summary"]["train_s"], rel=1e-9)
    assert facts["floor_nats"] < facts["summary"]["held_out_loss"] < 4.2
    assert progress.state(run()) == "complete" and progress.state(run(steps=70)) == "stale"


def test_two_runs_are_equal_to_the_last_digit(tmp_path: Path) -> None:
    train(run(), "cpu")
    train(run(study="again"), "cpu")
    for one, other in zip(timeless(progress.folder(run())), timeless(progress.folder(run(study="again")))):
        pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_batches_and_weights_at_the_start_are_every_arms() -> None:
    train(run(), "cpu")
    train(baseline(), "cpu")
    hybrid, plain = (timeless(progress.folder(r))[0] for r in (run(), baseline()))
    pd.testing.assert_frame_equal(hybrid[:8][["loss", "grad_norm"]], plain[:8][["loss", "grad_norm"]], check_exact=True)


def test_an_extension_made_later_is_the_one_made_at_once() -> None:
    """The baseline's loss may be known before the run or only after it: the records are the same."""
    at_once, later = run(study="a", extend=2.0), run(study="b", extend=2.0)
    train(baseline(study="a"), "cpu")
    train(at_once, "cpu")
    train(later, "cpu")
    assert progress.state(later) == "complete"
    train(baseline(study="b"), "cpu")
    if progress.target_loss(later) < RunFolder(progress.folder(later)).evals().held_out_loss.min():
        assert progress.state(later) == "extendable"
        train(later, "cpu")
    assert progress.state(later) == "complete"
    for one, other in zip(timeless(progress.folder(at_once)), timeless(progress.folder(later))):
        pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_the_clock_leaves_out_the_first_steps_and_the_evaluations() -> None:
    train(run(), "cpu")
    records = RunFolder(progress.folder(run()))
    steps, evals = records.steps(), records.evals()
    for row in evals.itertuples():
        assert row.train_s == pytest.approx(steps[(steps.step > 3) & (steps.step <= row.step)].step_s.sum())


CHILD = "import sys, json; from hybridlib.config import Run; from hybridlib.training.experiment import train; train(Run(**json.loads(sys.argv[1])), 'cpu')"


@pytest.mark.parametrize("rows", [7, 30, 52])
def test_a_run_killed_at_any_moment_ends_as_if_it_had_not_been(tmp_path: Path, rows: int) -> None:
    killed, whole = run(study="killed", steps=200), run(study="whole", steps=200)
    train(whole, "cpu")
    command = [sys.executable, "-c", CHILD, killed.model_dump_json()]
    steps_csv = progress.folder(killed) / "steps.csv"
    child = subprocess.Popen(command, env=os.environ | {"HYBRIDLIB_OUTPUTS": str(tmp_path)})
    deadline = time.monotonic() + 60
    while child.poll() is None and (not steps_csv.exists() or steps_csv.read_text().count("\n") < rows):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert progress.state(killed) == "partial"
    with steps_csv.open("a") as file:
        file.write("199,full,1,3.1")  # a line cut short
    facts = train(killed, "cpu")
    assert facts["resumed"] and progress.state(killed) == "complete"
    for one, other in zip(timeless(progress.folder(killed)), timeless(progress.folder(whole))):
        pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_a_learning_rate_spike_is_recorded_rolled_back_and_recovered_from() -> None:
    schedule = dict(warmup=4, full=12, predict=8, correct=4)
    facts = train(run(steps=160, schedule=schedule, fault=dict(kind="lr_spike", step=55, factor=3000.0)), "cpu")
    steps = RunFolder(progress.folder(run())).steps()
    fault = steps[steps.event.str.contains("fault")].step.iloc[0]
    rollback = steps[steps.event.str.contains("rollback")].step
    assert fault == 55 and len(rollback) == facts["summary"]["divergences"] >= 1 and 0 < rollback.iloc[0] - fault <= 3
    before = steps[(steps.step <= fault) & (steps.real == 1)].loss.tail(20).mean()
    assert steps[(steps.step > rollback.iloc[0]) & (steps.real == 1)].loss.tail(20).mean() < before


def test_an_unknown_gpu_is_said_so() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match="no usable CUDA GPU; use cpu or auto"):
        train(run(), "cuda:0")


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_steps_are_the_plain_ones_to_rounding_and_compilation_is_off_the_clock() -> None:
    plain, compiled = run(arm="plain"), run(arm="compiled", compile=True)
    facts = [train(each, "cpu") for each in (plain, compiled)]
    losses = [RunFolder(progress.folder(each)).steps().loss.dropna() for each in (plain, compiled)]
    assert abs(losses[0] - losses[1]).max() < 1e-2
    assert facts[0]["compile_s"] == 0 < facts[1]["summary"]["train_s"] < facts[1]["compile_s"], "tiny steps"
