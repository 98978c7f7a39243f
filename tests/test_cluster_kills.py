"""A study trained on a Dask cluster is the study trained here, on whatever networks, and whoever is killed."""

import json
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from field import TTL_S, Field, checkout, signal_tree, study_file, wait_for
from tiny import same_run

from hybridlib.study import progress
from hybridlib.study.parameters import load_study
from hybridlib.study.plan import plan
from hybridlib.training import experiment

NAMESPACES = ("hybridlib-one", "hybridlib-two")
TRAINED = ("benchmark", "stress", "ablation")
KINDS = ("worker", "client", "scheduler", "nanny", "kernel", "interrupt", "frozen")


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two checkouts of the project."""
    return [checkout(tmp_path_factory.mktemp("home") / name) for name in ("one", "two")]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of the little study, trained here one after the other, without a cluster."""
    folder = tmp_path_factory.mktemp("here")
    train_here(str(study_file(folder)), folder)
    return folder


def train_here(name: str, folder: Path) -> None:
    """Train all runs of the study `name`, in the order of its plan, to the outputs `folder`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "OUTPUTS", folder)
        for job in plan(load_study(name), name, TRAINED):
            if job.run:
                experiment.train(job.run, "cpu")


@pytest.fixture
def networks() -> Iterator[list[str]]:
    """Two network namespaces that reach this one, at 10.87.<n>.1, and not each other."""

    def ip(*words: str) -> bool:
        return subprocess.run(["ip", *words], capture_output=True).returncode == 0

    for name in NAMESPACES:
        ip("netns", "del", name)
    made = [name for name in NAMESPACES if ip("netns", "add", name)]
    try:
        for at, name in enumerate(NAMESPACES):
            outer, inner = f"hlout{at}", f"hlin{at}"
            steps = [
                ["link", "add", outer, "type", "veth", "peer", "name", inner],
                ["link", "set", inner, "netns", name],
                ["addr", "add", f"10.87.{at}.1/24", "dev", outer],
                ["link", "set", outer, "up"],
                ["-n", name, "addr", "add", f"10.87.{at}.2/24", "dev", inner],
                ["-n", name, "link", "set", inner, "up"],
                ["-n", name, "link", "set", "lo", "up"],
                ["-n", name, "route", "add", "default", "via", f"10.87.{at}.1"],
            ]
            if name not in made or not all(ip(*step) for step in steps):
                pytest.skip("this machine makes no network namespaces")
        yield list(NAMESPACES)
    finally:
        for name in made:
            ip("netns", "del", name)


def differing(one: Path, other: Path) -> list[str]:
    """The runs whose records in the outputs `one` are not bitwise those in `other`, which has as many."""
    runs = {
        outputs: {path.parent.name: path.parent for path in outputs.glob("*/runs/*/run.json")}
        for outputs in (one, other)
    }
    assert runs[one].keys() == runs[other].keys() and runs[one]
    return [name for name, folder in runs[one].items() if not same_run(folder, runs[other][name])]


def complete(outputs: Path) -> dict[str, str]:
    """The complete runs in `outputs`, each with what its `run.json` holds."""
    return {path.parent.name: path.read_text() for path in outputs.glob("field/runs/*/run.json")}


def test_workers_of_other_networks_and_checkouts_train_what_would_be_trained_here(
    request: pytest.FixtureRequest, tmp_path: Path, homes: list[Path], here: Path, networks: list[str], measured_cluster
) -> None:
    """The little study; where there is time, the smoke study in all its stages."""
    study = "smoke" if request.config.getoption("cluster_runs") > 500 else str(study_file(tmp_path))
    if study == "smoke":
        here = tmp_path / "here"
        train_here(study, here)
    with Field(tmp_path) as field:
        field.start_scheduler("0.0.0.0")
        address = json.loads(field.scheduler_file.read_text())["address"]
        port = address.rsplit(":", 1)[1]
        for at, (home, namespace) in enumerate(zip(homes, networks)):
            where = ["-m", "dask", "worker", f"tcp://10.87.{at}.1:{port}", "--host", f"10.87.{at}.2", "--nthreads", "1"]
            how = ["--resources", "device=1", "--name", f"w{at}", "--no-dashboard", "--local-directory", str(tmp_path)]
            field.start(f"w{at}", [*where, *how], home, namespace)
        field.start_client("--only", *(TRAINED if study == "smoke" else TRAINED[:1]), study=study)
        wait_for(lambda: field.processes["client"].poll() is not None, "the study", 900)
        assert "jobs complete" in field.said("client") and field.processes["client"].poll() == 0, field.said("client")
        differences = differing(here, field.outputs)
        measured_cluster.add(
            separate_runs=len(list(field.outputs.glob("*/runs/*"))), separate_differences=len(differences)
        )
        assert differences == []
        for home in homes:
            assert not (home / "outputs").exists(), "a worker leaves nothing in its outputs"
            assert not list(home.glob(".cache/cluster/*/*/runs/*")), "what has landed is deleted"


def test_whoever_is_killed_the_same_comes_out_and_nothing_is_lost(
    request: pytest.FixtureRequest, tmp_path: Path, homes: list[Path], here: Path, measured_cluster
) -> None:
    wanted, seed = request.config.getoption("cluster_kills"), request.config.getoption("seed")
    chance, kills, differences, lost, rounds = random.Random(seed), [], [], 0, 0
    file, seen = study_file(tmp_path), {}
    with Field(tmp_path) as field:

        def restart() -> None:
            for name, begin in [("scheduler", field.start_scheduler), *zip(("w0", "w1"), workers), ("client", client)]:
                process = field.processes.get(name)
                if process is None or process.poll() is not None:
                    begin()

        workers = [lambda at=at: field.start_worker(f"w{at}", homes[at]) for at in (0, 1)]

        def client() -> None:
            field.start_client("--only", "benchmark", study=file)

        while len(kills) < wanted or len(seen) < 4:
            restart()
            if len(kills) < wanted:
                time.sleep(chance.uniform(2.0, 12.0))
                kind = KINDS[len(kills) % len(KINDS)]
                kills.append(dict(kill=len(kills) + 1, kind=kind, landed=len(complete(field.outputs))))
                strike(kind, field, chance)
            else:
                wait_for(lambda: field.processes["client"].poll() is not None, "the study", 300)
            found = complete(field.outputs)
            lost += sum(found.get(name) != text for name, text in seen.items())
            seen = found
            if len(found) == 4 and len(kills) < wanted:  # all is done: compare, and begin again
                rounds, differences = rounds + 1, differences + differing(here, field.outputs)
                left = field.processes.pop("client", None)
                if left and left.poll() is None:
                    left.kill()
                    left.wait()
                field.outputs = tmp_path / f"outputs-{rounds}"
                seen = {}
        differences += differing(here, field.outputs)
        for name in ("client", "w0", "w1", "scheduler"):
            if name in field.processes:
                field.processes[name].terminate()
        with suppress(AssertionError):
            wait_for(lambda: not field.left(), "everything to end", 60)
        orphans = [" ".join(process.cmdline()) for process in field.left()]
    measured_cluster.add(kills=len(kills), kill_differences=len(differences), lost_records=lost, orphans=len(orphans))
    measured_cluster.table("kills", kills)
    assert (differences, lost, orphans) == ([], 0, [])


def strike(kind: str, field: Field, chance: random.Random) -> None:
    """Kill, or freeze for good, one process of this `kind`; what cannot live without it is left to notice."""
    if kind == "interrupt":  # Ctrl-C: run_all.py ends when the workers have stopped, after a checkpoint
        field.processes["client"].send_signal(signal.SIGINT)
        assert field.processes.pop("client").wait(60) in (0, 1, 130), field.said("client")
        training = [each for each in field.left() if "ipykernel" in " ".join(each.cmdline())]
        assert not training
        return
    if kind in ("client", "scheduler"):
        field.kill(kind)
        if kind == "scheduler":
            for name in ("w0", "w1", "client"):
                process = field.processes.pop(name)
                if name == "client":
                    assert process.wait(60) in (0, 75), field.said("client")
                elif process.poll() is None:
                    process.terminate()
                    process.wait(60)
        return
    name = chance.choice(["w0", "w1"])
    nanny = psutil.Process(field.processes[name].pid)
    with suppress(psutil.NoSuchProcess):
        of_nanny = [each for each in nanny.children() if "resource_tracker" not in " ".join(each.cmdline())]
        kernels = [each for one in of_nanny for each in one.children() if "ipykernel" in " ".join(each.cmdline())]
        if kind == "nanny":
            field.kill(name)
        elif kind == "frozen":
            signal_tree(nanny, signal.SIGSTOP)
            time.sleep(1.5 * TTL_S)  # the scheduler has given it up
            signal_tree(nanny, signal.SIGKILL)
            field.processes.pop(name).wait()
        for one in dict(worker=of_nanny, kernel=kernels).get(kind, []):
            one.kill()
