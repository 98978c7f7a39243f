"""The command when things go wrong: a run that fails, an interrupt, a kill, a second start."""

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from command import finish, start
from tiny import same_run

from hybridlib.study import progress
from hybridlib.study.parameters import load_study
from hybridlib.training.experiment import train

# A study of one small run after another, long enough to be interrupted.
TINY = dict(
    study="tiny",
    model=dict(preset="nano", n_layer=1, n_head=2, n_embd=32, block_size=32, vocab_size=257),
    sources=dict(markov=dict(kind="markov"), text=dict(kind="text", tokenizer_vocab=257, paths=["no such file"])),
    steps=4000,
    batch_size=2,
    seq_len=16,
    eval_every=500,
    eval_batches=1,
    snapshot_every=100,
    threads=1,
    seeds=[1],
    plan=dict(benchmark=[dict(arms=["baseline"], data=["text", "markov"])]),
)


def written(folder: Path, **changes: Any) -> str:
    """The path of the little study's file, with these `changes`."""
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY | changes))
    return str(file)


def test_a_failed_run_stops_the_others_unless_told_to_keep_going(tmp_path):
    study = written(tmp_path, steps=100)
    status, said = finish(tmp_path, "--study", study, "--only", "benchmark")
    assert status == 1 and "no such file" in said and "CorpusError" in said and "--keep-going" in said
    assert "06_benchmark: complete" not in said
    status, said = finish(tmp_path, "--study", study, "--only", "benchmark", "--keep-going")
    assert status == 1 and "failed: baseline-text-s1" in said and "06_benchmark: complete" in said
    assert (tmp_path / "tiny" / "runs" / "baseline-markov-s1" / "run.json").exists()
    table = pd.read_csv(tmp_path / "tiny" / "results" / "pipeline.csv", index_col="job")
    assert table.status["baseline-text-s1"] == "failed" and "no such file" in table.message["baseline-text-s1"]
    assert table.status["baseline-markov-s1"] == "complete"


def until_checkpoint(folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not (folder / "checkpoint.safetensors").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def test_interrupted_locked_killed_and_resumed_is_as_if_nothing_was(tmp_path, monkeypatch):
    study = written(tmp_path)
    args = ("--study", study, "--only", "benchmark", "--data", "markov")
    folder = tmp_path / "a" / "tiny" / "runs" / "baseline-markov-s1"
    first = start(tmp_path / "a", *args)
    until_checkpoint(folder, first)
    kernels = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    status, said = finish(tmp_path / "a", *args)
    assert status == 1 and f"process {first.pid}" in said, "a second start names the first"
    first.send_signal(signal.SIGTERM)
    said, _ = first.communicate(timeout=60)
    assert first.returncode == 75 and "goes on from here" in said and "Traceback" not in said
    assert kernels and not any(Path(f"/proc/{kernel}").exists() for kernel in kernels), "no kernel is left behind"
    assert not (folder / "run.json").exists()

    second = start(tmp_path / "a", *args)
    time.sleep(1.0)
    second.kill()
    second.communicate()
    status, said = finish(tmp_path / "a", *args)
    assert status == 0 and "partial" in said, said
    monkeypatch.setattr(progress, "OUTPUTS", tmp_path / "b")
    train(load_study(study).run("baseline", "markov", 1), "cpu")
    assert same_run(folder, tmp_path / "b" / "tiny" / "runs" / "baseline-markov-s1")
    assert not list((tmp_path / "a").rglob("*.safetensors")), "a complete run keeps no checkpoint"
