"""Kills at random moments, of a run, its kernel and the whole pipeline: what is resumed ends as if nothing had been."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from tiny import run, same_run

from hybridlib.method.offload import OptimizerOffload
from hybridlib.study import progress
from hybridlib.study.parameters import ROOT, load_study
from hybridlib.study.records import RunFolder
from hybridlib.study.run import Run
from hybridlib.study.storage import InUse, locked
from hybridlib.training import checkpoint, experiment, trainer

PLACES = ("warmup", "full", "predict", "correct", "checkpoint", "jump", "offload", "records")
STEPS = 120
WITHIN_S = 0.004  # of coming to a place: longer than any of them takes here


@pytest.fixture(autouse=True)
def own_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(progress, "OUTPUTS", tmp_path)
    return tmp_path


def train_until_killed(settings: str, outputs: Path, place: str, nth: int, delay_s: float) -> None:
    """Trains a run in this process, which is killed `delay_s` after it comes to a place for the n-th time."""
    progress.OUTPUTS = outputs
    come = 0

    def here(at: str) -> None:
        nonlocal come
        come += at == place
        if at == place and come == nth:
            threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGKILL)).start()

    def watch(owner: type, method: str, at: str) -> None:
        original = getattr(owner, method)
        setattr(owner, method, lambda self, *given, **named: (here(at), original(self, *given, **named))[1])

    step = trainer.HybridTrainer.step
    trainer.HybridTrainer.step = lambda self, *given: (here(str(self.state.phase)), step(self, *given))[1]
    watch(trainer.HybridTrainer, "_jump", "jump")
    watch(checkpoint.CheckpointFile, "save", "checkpoint")
    watch(OptimizerOffload, "offload", "offload")
    watch(OptimizerOffload, "restore", "offload")
    watch(RunFolder, "flush", "records")
    experiment.train(Run.model_validate_json(settings), "cpu")


def in_a_process(run: Run, *aim) -> int:
    """The exit status of a process that trains a run; negative if it was killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hybridlib.training.experiment"])
    child = context.Process(target=train_until_killed, args=(run.model_dump_json(), progress.OUTPUTS, *aim))
    child.start()
    child.join(120)
    return child.exitcode


def test_a_killed_run_ends_as_if_it_had_not_been(request, measured) -> None:
    wanted, seed = request.config.getoption("kills"), request.config.getoption("seed")
    chance, kills, ended, differences = random.Random(seed), [], 0, 0
    whole = run(study="whole", steps=STEPS)
    experiment.train(whole, "cpu")
    while len(kills) < wanted:
        killed = run(study=f"killed-{ended}", steps=STEPS)
        place = PLACES[len(kills) % len(PLACES)]
        aim = place, chance.randint(1, 12), chance.uniform(0, WITHIN_S)
        before = progress.run_state(killed)
        if (status := in_a_process(killed, *aim)) == -signal.SIGKILL:
            kills.append(dict(kill=len(kills) + 1, place=place, resumed=before == "partial", study=killed.study))
            if len(kills) < wanted:
                continue
            status = in_a_process(killed, "nowhere", 1, 0.0)
        assert status == 0
        ended, differences = (
            ended + 1,
            differences + (not same_run(progress.run_folder(killed), progress.run_folder(whole))),
        )
    measured.add(kills=len(kills), kill_differences=differences, kill_seed=seed, runs_killed=ended)
    measured.table("kills", kills)
    assert differences == 0
    assert {kill["place"] for kill in kills} == set(PLACES[:wanted]) and any(kill["resumed"] for kill in kills)


def test_sigterm_makes_a_checkpoint_within_five_seconds(measured) -> None:
    told, whole = (
        run(study="told", steps=2000, snapshot_every=5000),
        run(study="whole", steps=2000, snapshot_every=5000),
    )
    child = multiprocessing.get_context("forkserver").Process(
        target=train_until_killed, args=(told.model_dump_json(), progress.OUTPUTS, "nowhere", 1, 0.0)
    )
    child.start()
    steps_csv = progress.run_folder(told) / "steps.csv"
    while not steps_csv.exists() or steps_csv.read_text().count("\n") < 100:
        time.sleep(0.01)
    asked_s = time.monotonic()
    child.terminate()
    child.join(60)
    took_s = time.monotonic() - asked_s
    rows = steps_csv.read_text().count("\n") - 1
    assert child.exitcode == -signal.SIGTERM and took_s < 5 and progress.run_state(told) == "partial"
    facts = experiment.train(told, "cpu")
    assert facts["resumed"] and rows < 2000
    experiment.train(whole, "cpu")
    assert same_run(progress.run_folder(told), progress.run_folder(whole))
    measured.add(sigterm_checkpoint_s=took_s)


def test_a_run_has_one_process_at_a_time_and_the_dead_hold_no_lock() -> None:
    taken = run(study="taken", steps=STEPS)
    with locked(progress.run_folder(taken), "trains it"):
        with pytest.raises(InUse, match=f"process {os.getpid()} trains it since"):
            experiment.train(taken, "cpu")
    assert in_a_process(taken, "full", 3, 0.0) == -signal.SIGKILL
    assert (progress.run_folder(taken) / ".lock").exists()
    experiment.train(taken, "cpu")
    assert progress.run_state(taken) == "complete"


def test_killed_pipelines_leave_no_process_and_end_as_if_they_had_not_been(request, tmp_path, measured) -> None:
    chance = random.Random(request.config.getoption("seed"))
    wanted, orphans, killed = request.config.getoption("pipeline_kills"), 0, []
    content = yaml.safe_load((ROOT / "params" / "smoke.yaml").read_text())
    content |= dict(study="killed", sources=dict(markov=dict(kind="markov")), seeds=[42], steps=600, snapshot_every=40)
    content["plan"] = dict(benchmark=[dict(arms=["hybrid"], data=["markov"])])
    file = tmp_path / "killed.yaml"
    file.write_text(yaml.safe_dump(content))
    one = load_study(str(file)).run("hybrid", "markov", 42)
    whole = one.model_copy(update=dict(study="whole"))
    experiment.train(whole, "cpu")
    steps_csv = progress.run_folder(one) / "steps.csv"
    command = [sys.executable, "run_all.py", "--study", str(file), "--only", "benchmark", "--arms", "hybrid"]
    environment = os.environ | {"HYBRIDLIB_OUTPUTS": str(tmp_path)}
    while len(killed) < wanted:
        pipeline = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        before, until_s = rows(steps_csv), time.monotonic() + 60
        aim = before + chance.randint(10, 150)
        while pipeline.poll() is None and rows(steps_csv) < min(aim, 590) and time.monotonic() < until_s:
            time.sleep(0.01)
        target = chance.choice(["run_all.py", "kernel"])
        victims = [pipeline.pid] if target == "run_all.py" else descendants(pipeline.pid)
        assert victims and pipeline.poll() is None, "it was killed at work"
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        killed.append(dict(target=target, rows=rows(steps_csv)))
        pipeline.wait(60)
        until_s = time.monotonic() + 10
        while using(tmp_path) and time.monotonic() < until_s:
            time.sleep(0.05)
        orphans += len(using(tmp_path))
        if progress.run_state(one) == "complete":
            forget(one)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    same = same_run(progress.run_folder(one), progress.run_folder(whole))
    measured.add(pipeline_kills=len(killed), pipeline_kill_differences=int(not same), orphans=orphans)
    assert progress.run_state(one) == "complete", done.stdout
    assert same and orphans == 0 and any(kill["rows"] for kill in killed)


def rows(file: Path) -> int:
    return file.read_text().count("\n") if file.exists() else 0


def forget(run: Run) -> None:
    for file in progress.run_folder(run).glob("*"):
        file.unlink()


def descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for listing in children for child in listing.read_text().split()]


def using(outputs: Path) -> list[int]:
    """Processes, other than this one, that were started with these outputs."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"HYBRIDLIB_OUTPUTS={outputs}".encode() in environ.read_bytes():
                found.append(int(environ.parent.name))
        except OSError:
            pass  # it has just ended, or is another user's
    return found
