"""Trials trained side by side: all of them, once, and none that outlives the command."""

import json
import multiprocessing
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import yaml
from test_crash import using
from tiny import run as tiny_run

from hybridlib.study import progress, sweeps
from hybridlib.study.alone import CannotTrain, train_alone
from hybridlib.study.storage import StorageError
from hybridlib.training import trials

STUDY = dict(
    study="tiny",
    model=dict(preset="nano", n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=32),
    sources=dict(text=dict(kind="markov", successors=2)),
    steps=40, batch_size=4, seq_len=8, eval_batches=1, seeds=[1], pilot_seeds=[9],
)  # fmt: skip
SWEEP = dict(about="two gains", seeds=[9], grid={"predictor.gain": [0.5, 1.0]})


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "research").mkdir()
    (tmp_path / "research" / "tiny.yaml").write_text(yaml.safe_dump({"gains": SWEEP}))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(STUDY))
    monkeypatch.setattr(sweeps, "PARAMS", tmp_path)
    monkeypatch.setattr(progress, "OUTPUTS", tmp_path / "outputs")
    monkeypatch.setenv("HYBRIDLIB_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path


def test_every_trial_is_trained_and_none_twice(tiny: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["--study", str(tiny / "tiny.yaml"), "--workers", "2"]
    assert trials.main(command) == 0
    records = sorted((tiny / "outputs/tiny/research/gains/runs").glob("*/run.json"))
    gains = [json.loads(path.read_text())["parameters"]["predictor"]["gain"] for path in records]
    assert gains == [0.5, 1.0] and "2 trials, 2 to train" in capsys.readouterr().out
    assert trials.main([*command, "--dry-run"]) == 0
    assert "2 trials, 0 to train" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA GPU")
def test_a_device_that_is_not_there_is_named_and_nothing_is_left(tiny: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["--study", str(tiny / "tiny.yaml"), "--workers", "1", "--device", "cuda:0"]
    assert trials.main(command) == 1
    assert "device cuda:0: this machine has no usable CUDA GPU; use cpu or auto" in capsys.readouterr().out
    assert not list(tiny.rglob("run.json"))


def test_an_unknown_sweep_is_refused_with_the_names_that_there_are(tiny: Path, capsys: pytest.CaptureFixture) -> None:
    assert trials.main(["--study", str(tiny / "tiny.yaml"), "--sweeps", "gain"]) == 2
    assert "no sweep 'gain'; there are gains" in capsys.readouterr().err


def test_a_run_trained_alone_ends_with_the_process_that_started_it(tiny: Path) -> None:
    study = trials.load_study(str(tiny / "tiny.yaml"))
    run = study.run("hybrid", "text", 9).model_copy(update=dict(steps=10**6, log_every=1))
    parent = multiprocessing.get_context("spawn").Process(target=train_alone, args=(run, "cpu"))
    parent.start()
    until_s, steps_csv = time.monotonic() + 60, progress.run_folder(run) / "steps.csv"
    while not steps_csv.exists() and time.monotonic() < until_s:
        time.sleep(0.05)
    assert steps_csv.exists() and len(using(tiny / "outputs")) >= 2
    parent.kill()
    parent.join()
    while using(tiny / "outputs") and time.monotonic() < until_s:
        time.sleep(0.05)
    assert not using(tiny / "outputs") and progress.run_state(run) != "complete"


TOLD = """
import os, signal, sys, time
def end(*_):
    time.sleep(1)
    open(sys.argv[1], "w").write("whole")
    sys.exit()
signal.signal(signal.SIGTERM, end)
time.sleep(1)  # by then who started it waits for it
open(sys.argv[1] + ".begun", "w").close()
time.sleep(60)
"""
TELLS = """
import subprocess, sys
from hybridlib.study import alone
alone.interrupt_at_signals()
with subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], start_new_session=True) as process:
    alone.said_by(process)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_beside_has_time_to_end_whole(tmp_path: Path, number: signal.Signals) -> None:
    file = tmp_path / "file"
    with subprocess.Popen([sys.executable, "-c", TELLS, TOLD, str(file)], stderr=subprocess.DEVNULL) as process:
        until_s = time.monotonic() + 60
        while not Path(f"{file}.begun").exists() and time.monotonic() < until_s:
            time.sleep(0.05)
        process.send_signal(number)
    assert file.read_text() == "whole"


def test_a_search_for_a_device_says_which_there_are(tiny: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        trials.main(["--study", str(tiny / "tiny.yaml"), "--device", "gpu"])
    assert "'gpu' is none of auto, cpu, cuda:0" in capsys.readouterr().err


def test_what_a_run_trained_alone_warns_of_is_returned_and_a_signal_is_named(tmp_path: Path, monkeypatch) -> None:
    script = tmp_path / "python"

    def as_if(*lines: str) -> None:
        script.write_text("\n".join(["#!/bin/sh", *lines]))
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))

    warning = "echo 'a.py:3: UserWarning: b is damaged' >&2; echo '  warnings.warn(b)' >&2"
    as_if(warning)
    assert train_alone(tiny_run(), "cpu") == "b is damaged"
    as_if(warning, "kill -9 $$")
    with pytest.raises(
        CannotTrain, match="could not be trained: its process was ended by SIGKILL, as where memory runs"
    ):
        train_alone(tiny_run(), "cpu")


def test_a_full_disk_is_said_in_one_line(tiny: Path, monkeypatch, capsys: pytest.CaptureFixture) -> None:
    def full(*given: object) -> int:
        raise StorageError("no room in there")

    monkeypatch.setattr(trials, "workers_of", lambda *given: nullcontext())
    monkeypatch.setattr(trials, "train_side_by_side", full)
    assert trials.main(["--study", str(tiny / "tiny.yaml")]) == 1
    assert "no room in there" in capsys.readouterr().out
