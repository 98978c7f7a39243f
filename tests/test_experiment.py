"""Whole runs: records that add up, equal to the last digit when repeated or extended later."""

import math
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from tiny import baseline, run, timeless

from hybridlib.study import progress
from hybridlib.study.records import RunFolder
from hybridlib.training import checkpoint, experiment
from hybridlib.training.assemble import pick_device
from hybridlib.training.experiment import train
from hybridlib.training.meter import Meter
from hybridlib.training.trainer import HybridTrainer


@pytest.fixture(autouse=True)
def own_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(progress, "OUTPUTS", tmp_path)
    return tmp_path


def test_records_add_up() -> None:
    facts = train(run(), "cpu")
    steps, evals = RunFolder(progress.run_folder(run())).steps(), RunFolder(progress.run_folder(run())).evals()
    assert list(steps.step) == list(range(1, 65))
    assert steps.tokens_trained.iloc[-1] == steps.real.sum() * 64 == facts["summary"]["real_steps"] * 64
    assert (steps.loss.notna() == (steps.real == 1)).all() and (steps.real == 0).any()
    assert evals.step.iloc[-1] == 64 and evals.held_out_loss.iloc[-1] == facts["summary"]["held_out_loss"]
    assert evals.train_s.iloc[-1] == pytest.approx(facts["summary"]["train_s"], rel=1e-9)
    assert facts["floor_nats"] < facts["summary"]["held_out_loss"] < evals.held_out_loss.iloc[0] < math.log(48)
    assert progress.run_state(run()) == "complete" and progress.run_state(run(steps=70)) == "stale"


def test_two_runs_are_equal_to_the_last_digit(tmp_path: Path) -> None:
    train(run(), "cpu")
    train(run(study="again"), "cpu")
    for one, other in zip(timeless(progress.run_folder(run())), timeless(progress.run_folder(run(study="again")))):
        pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_batches_and_weights_at_the_start_are_every_arms() -> None:
    train(run(), "cpu")
    train(baseline(), "cpu")
    hybrid, plain = (timeless(progress.run_folder(r))[0] for r in (run(), baseline()))
    pd.testing.assert_frame_equal(hybrid[:8][["loss", "grad_norm"]], plain[:8][["loss", "grad_norm"]], check_exact=True)


def test_an_extension_made_later_is_the_one_made_at_once() -> None:
    """The baseline's loss may be known before the run or only after it: the records are the same."""
    at_once, later = run(study="a", extend=2.0), run(study="b", extend=2.0)
    train(baseline(study="a"), "cpu")
    train(at_once, "cpu")
    train(later, "cpu")
    assert progress.run_state(later) == "complete"
    train(baseline(study="b"), "cpu")
    target = progress.target_loss(later)
    assert target < RunFolder(progress.run_folder(later)).evals().held_out_loss.min(), "else there is nothing to extend"
    assert progress.run_state(later) == "extendable"
    facts, evals = train(later, "cpu"), RunFolder(progress.run_folder(later)).evals()
    assert facts["resumed"] and 64 < facts["last_step"] == evals.step.iloc[-1] <= 128
    assert evals.held_out_loss.iloc[-1] <= target < evals.held_out_loss.iloc[:-1].min()
    assert progress.run_state(later) == "complete"
    for one, other in zip(timeless(progress.run_folder(at_once)), timeless(progress.run_folder(later))):
        pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_a_run_whose_rate_has_fallen_to_zero_does_not_go_on() -> None:
    decayed = run(extend=2.0, optimizer=dict(lr=6e-4, lr_decay=0.5))
    train(baseline(), "cpu")
    facts = train(decayed, "cpu")
    assert progress.target_loss(decayed) < facts["summary"]["held_out_loss"], "else there is nothing to extend"
    assert facts["last_step"] == decayed.steps and progress.run_state(decayed) == "complete"


def test_a_checkpoint_of_another_form_is_not_gone_on_from() -> None:
    hybrid = run(extend=2.0)
    train(hybrid, "cpu")
    whole = checkpoint.read(progress.checkpoint_path(hybrid))
    del whole["state"]["average"]
    checkpoint.write(part := progress.run_folder(hybrid) / "part", whole)
    for file in progress.run_folder(hybrid).glob("checkpoint*"):
        file.unlink()
    part.rename(progress.checkpoint_path(hybrid))
    train(baseline(), "cpu")
    assert progress.run_state(hybrid) == "extendable" and not train(hybrid, "cpu")["resumed"]
    assert progress.run_state(hybrid) == "complete"


def test_what_was_read_keeps_no_file_in_memory(tmp_path: Path) -> None:
    """A mapped checkpoint would count as the run's own memory after a resume, as long as one of its tensors lives."""
    file = tmp_path / "state.safetensors"
    checkpoint.write(file, dict(step=torch.tensor(1.0), moments=torch.ones(1 << 18)))
    state = checkpoint.read(file)
    assert str(file) not in Path("/proc/self/maps").read_text(encoding="utf-8") and state["step"] == 1


def test_memory_of_a_resumed_run_counts_from_its_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    entered, load = [], HybridTrainer.load_state_dict
    monkeypatch.setattr(HybridTrainer, "load_state_dict", lambda *given: (load(*given), entered.append("loaded"))[0])
    monkeypatch.setattr(Meter, "enter_phase", lambda meter: entered.append("counts anew"))
    hybrid = run(extend=2.0)
    train(hybrid, "cpu")
    train(baseline(), "cpu")
    entered.clear()
    assert train(hybrid, "cpu")["resumed"]
    assert entered[entered.index("loaded") + 1 :][:1] == ["counts anew"]


def test_the_clock_leaves_out_the_first_steps_and_the_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_s, judge = 0.5, experiment.held_out_loss
    monkeypatch.setattr(experiment, "held_out_loss", lambda *given: (time.sleep(slow_s), judge(*given))[1])
    train(run(), "cpu")
    records = RunFolder(progress.run_folder(run()))
    steps, evals = records.steps(), records.evals()
    assert len(evals) >= 4 and evals.train_s.iloc[-1] < slow_s * len(evals), "64 tiny steps take less"
    for row in evals.itertuples():
        assert row.train_s == pytest.approx(steps[(steps.step > 3) & (steps.step <= row.step)].step_s.sum())


def test_a_learning_rate_spike_is_recorded_rolled_back_and_recovered_from() -> None:
    schedule = dict(warmup=4, full=12, predict=8, correct=4)
    facts = train(run(steps=160, schedule=schedule, fault=dict(kind="lr_spike", step=55, factor=3000.0)), "cpu")
    steps = RunFolder(progress.run_folder(run())).steps()
    fault = steps[steps.event.str.contains("fault")].step.iloc[0]
    rollback = steps[steps.event.str.contains("rollback")].step
    assert fault == 55 and len(rollback) == facts["summary"]["divergences"] >= 1 and 0 < rollback.iloc[0] - fault <= 3
    before = steps[(steps.step <= fault) & (steps.real == 1)].loss.tail(20).mean()
    assert steps[(steps.step > rollback.iloc[0]) & (steps.real == 1)].loss.tail(20).mean() < before


@pytest.mark.parametrize("stop", [55, 56])
def test_a_run_told_to_stop_between_a_fault_and_its_rollback_rolls_back_to_where_it_would_have(
    monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    faulty = dict(
        steps=100,
        schedule=dict(warmup=4, full=12, predict=8, correct=4),
        fault=dict(kind="lr_spike", step=55, factor=3000.0),
    )
    train(run(study="whole", **faulty), "cpu")
    take = experiment.Loop._step

    def told(loop: experiment.Loop) -> None:
        loop.preemption = SimpleNamespace(asked=loop.trainer.state.step == stop)
        take(loop)

    stopped = run(study="stopped", **faulty)
    with monkeypatch.context() as patch:
        patch.setattr(experiment.Loop, "_step", told)
        with pytest.raises(SystemExit, match="stopped by SIGTERM"):
            train(stopped, "cpu")
    assert not RunFolder(progress.run_folder(stopped)).flushed_steps().event.str.contains("rollback").any()
    facts = train(stopped, "cpu")
    assert facts["resumed"] and facts["summary"]["divergences"] >= 1
    assert not list(progress.run_folder(stopped).glob("checkpoint*")), "what was kept to go on from is gone, too"
    for one, other in zip(*(timeless(progress.run_folder(run(study=name))) for name in ("whole", "stopped"))):
        pd.testing.assert_frame_equal(one, other, check_exact=True)


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
    losses = [RunFolder(progress.run_folder(each)).steps().loss.dropna() for each in (plain, compiled)]
    assert len(losses[0]) == len(losses[1]) > 30 and abs(losses[0] - losses[1]).max() < 1e-4
    assert facts[0]["compile_s"] == 0 < facts[1]["summary"]["train_s"] < facts[1]["compile_s"], "tiny steps"


def test_a_batch_that_is_too_large_to_compile_for_is_halved_by_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs ahead of the steps to be compiled needs the memory that they need."""
    monkeypatch.setattr(torch, "compile", lambda function: function)
    scarce = run(compile=True, fault=dict(kind="out_of_memory", step=1))
    train(scarce, "cpu")
    steps = RunFolder(progress.run_folder(scarce)).steps()
    assert len(steps) >= scarce.steps and steps.event[0].startswith("fault+halved")


def test_a_gpu_beyond_the_last_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="device cuda:2: this machine's last CUDA GPU is cuda:1"):
        pick_device("cuda:2", 1)


def test_a_run_with_no_step_on_the_clock_is_refused() -> None:
    with pytest.raises(ValidationError, match="steps 3 leaves nothing to time"):
        baseline(steps=3)
