"""A study trained on a Dask cluster is the study trained here, whoever is killed; what workers send is data."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import crowd
import distributed
import psutil
import pytest
from field import TTL_S, Field, checkout, signal_tree, study_file, wait_for
from rich.console import Console
from tiny import run, same_run

from hybridlib.study import progress
from hybridlib.study.cluster import connect, crew, worker
from hybridlib.study.cluster.blocks import Block, Task, block_of
from hybridlib.study.cluster.order import Orders
from hybridlib.study.parameters import ROOT, load_study
from hybridlib.study.records import RunFolder
from hybridlib.study.run import Run
from hybridlib.training import experiment

NAMESPACES = ("hybridlib-one", "hybridlib-two")
# What each worker of a crowd need not do for one process: profile itself, and look at the system twice a second.
QUIET = {
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "10s",
}
KINDS = ("worker", "client", "scheduler", "nanny", "kernel", "frozen")


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two checkouts of the project."""
    return [checkout(tmp_path_factory.mktemp("home") / name) for name in ("one", "two")]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of the little study, trained here one after the other, without a cluster."""
    folder = tmp_path_factory.mktemp("here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "OUTPUTS", folder)
        for each in runs_of(study_file(folder)):
            experiment.train(each, "cpu")
    return folder


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


def runs_of(file: Path) -> list[Run]:
    study = load_study(str(file))
    return [study.run(arm, "markov", seed) for seed in study.seeds for arm in ("baseline", "hybrid")]


def differing(one: Path, other: Path) -> list[str]:
    """The runs of the little study whose records in `one` are not bitwise those in `other`."""
    names = sorted(path.name for path in (one / "field/runs").iterdir())
    assert len(names) == 4
    return [name for name in names if not same_run(one / "field/runs" / name, other / "field/runs" / name)]


def complete(outputs: Path) -> dict[str, str]:
    """The complete runs in `outputs`, each with what its `run.json` holds."""
    return {path.parent.name: path.read_text() for path in outputs.glob("field/runs/*/run.json")}


def test_workers_of_other_networks_and_checkouts_train_what_would_be_trained_here(
    tmp_path: Path, homes: list[Path], here: Path, networks: list[str]
) -> None:
    with Field(tmp_path) as field:
        field.start_scheduler("0.0.0.0")
        address = json.loads(field.scheduler_file.read_text())["address"]
        port = address.rsplit(":", 1)[1]
        for at, (home, namespace) in enumerate(zip(homes, networks)):
            where = ["-m", "dask", "worker", f"tcp://10.87.{at}.1:{port}", "--host", f"10.87.{at}.2", "--nthreads", "1"]
            how = ["--resources", "device=1", "--name", f"w{at}", "--no-dashboard", "--local-directory", str(tmp_path)]
            field.start(f"w{at}", [*where, *how], home, namespace)
        field.start_client("--only", "benchmark", study=study_file(tmp_path))
        wait_for(lambda: field.processes["client"].poll() is not None, "the study", 300)
        assert "7 of 7 jobs complete" in field.said("client"), field.said("client")
        assert differing(here, field.outputs) == []
        by_worker = {line.split(":")[0].strip() for line in field.said("client").splitlines() if line.startswith("  w")}
        assert by_worker <= {"w0", "w1"}
        executed = json.loads((field.outputs / "field/runs/hybrid-markov-s1/run.ipynb").read_text())
        assert "field.yaml" in json.dumps(executed["cells"]) and executed["cells"][-1]
        for home in homes:
            assert not (home / "outputs").exists(), "a worker leaves nothing in its outputs"
            assert not list(home.glob(".cache/cluster/*/field/runs/*")), "what has landed is deleted"


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
                if (left := field.processes.pop("client")).poll() is None:
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


@pytest.mark.parametrize("file", ["hybridlib/training/__init__.py", "requirements.lock"])
def test_a_worker_of_other_code_or_versions_is_refused_and_both_are_named(tmp_path: Path, file: str) -> None:
    home = checkout(tmp_path / "home")
    numerics = f"NUMERICS is {worker.NUMERICS + 1} there, {worker.NUMERICS} here"
    if file.endswith(".lock"):  # the package that its lock names and its Python lacks
        (home / file).write_text((home / file).read_text() + "an-unknown-package==1.0\n")
        said = "an-unknown-package is missing there, None here"
    else:
        source = (home / file).read_text()
        (home / file).write_text(source.replace(f"NUMERICS = {worker.NUMERICS}", f"NUMERICS = {worker.NUMERICS + 1}"))
        said = numerics
    with Field(tmp_path) as field:
        field.start_scheduler()
        field.start_worker("other", home)
        field.start_client("--only", "benchmark", study=study_file(tmp_path))
        wait_for(lambda: "is not used" in field.said("client"), "the refusal")
        assert f"other is not used: {said}" in " ".join(field.said("client").split())
        field.processes["client"].send_signal(signal.SIGINT)
        assert field.processes["client"].wait(60) == 130
        assert complete(field.outputs) == {}


def test_a_scheduler_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with Field(tmp_path) as field:
        field.scheduler_file = "tcp://127.0.0.1:9"
        field.start_client("--only", "benchmark", study=study_file(tmp_path))
        assert field.processes["client"].wait(120) == 1
        assert "--scheduler tcp://127.0.0.1:9: no Dask scheduler answers" in field.said("client")


@pytest.fixture
def own_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(progress, "OUTPUTS", tmp_path)
    return tmp_path


def trained(client: distributed.Client, *runs: Run, **options) -> dict[str, str]:
    """Train `runs` on the workers of `client`; the message with which each ended, by its id."""
    ended = {}

    def end(task: Task, message: str, seconds: float) -> bool:
        ended[task.run.id] = message
        return True

    blocks = [block_of(each.id, [Task(each, None, 1.0)]) for each in runs]
    crew.Crew(client, Orders("cpu"), Console(file=io.StringIO()), **options).train(blocks, end)
    return ended


def test_a_local_cluster_listens_on_loopback_only_and_a_failed_run_says_why(own_outputs: Path) -> None:
    bad = run(arm="bad", model=dict(n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=300))
    bad = bad.model_copy(update=dict(source=bad.source.model_copy(update=dict(kind="text", paths=["nowhere"]))))
    with connect.local_workers(1) as client:
        me = psutil.Process()
        processes = [me, *me.children(recursive=True)]
        listening = [c.laddr.ip for p in processes for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
        assert listening and set(listening) == {"127.0.0.1"}
        ended = trained(client, run(), bad)
    assert ended["hybrid-markov-s5"] == "" and "nowhere" in ended["bad-markov-s5"]
    assert progress.run_state(run()) == "complete" and not progress.run_folder(bad).joinpath("run.json").exists()


class Trap:
    """What a worker might send to have its code run here."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("trapped",)


def trap(order: str) -> dict:
    return dict(warnings=Trap())


def climb(order: str) -> dict:
    """Sends files whose names lead elsewhere."""
    files = {"../../../climbed": b"x", "/tmp/climbed": b"x", "run.ipynb": b"{}"}
    return dict(files=files, message="no")


def babble(order: str) -> dict:
    return dict(files=1, warnings=2)


def test_what_a_worker_sends_is_data_and_has_the_names_of_records(
    own_outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own_outputs)
    with connect.local_workers(1) as client:
        assert "able to deserialize data with ['msgpack']" in trained(client, run(), work=trap)["hybrid-markov-s5"]
        assert trained(client, run(), work=climb)["hybrid-markov-s5"] == "no"
        assert "Input should be a valid dictionary" in trained(client, run(), work=babble)["hybrid-markov-s5"]
    assert not Path("trapped").exists() and not list(own_outputs.rglob("climbed"))
    assert (progress.run_folder(run()) / "run.ipynb").read_bytes() == b"{}"


def test_a_run_on_a_worker_sees_its_own_gpu_and_outputs_and_nothing_is_left_of_them(monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    monkeypatch.delenv("HYBRIDLIB_OUTPUTS", raising=False)
    show = [
        sys.executable,
        "-c",
        "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['HYBRIDLIB_OUTPUTS'])",
    ]
    with worker.environment(dict(gpu="1"), Path("/there")):
        assert subprocess.run(show, capture_output=True, text=True).stdout.split() == ["5", "/there"]
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")  # as Dask tells its workers
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # as it does not
    threads = [sys.executable, "-c", "import os; print(*(f'{k}={v}' for k, v in os.environ.items()))"]
    with worker.environment(dict(gpu=""), Path("/there")):
        said = subprocess.run(threads, capture_output=True, text=True).stdout.split()
        assert "OMP_NUM_THREADS=3" in said and "MALLOC_TRIM_THRESHOLD_=65536" not in said
    assert os.environ["MALLOC_TRIM_THRESHOLD_"] == "65536"
    with worker.environment(dict(gpu=""), Path("/there")):
        assert subprocess.run(show, capture_output=True, text=True).stdout.split() == ["4,5", "/there"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,5" and "HYBRIDLIB_OUTPUTS" not in os.environ


def test_many_workers_are_kept_at_work_though_some_are_lost(
    request: pytest.FixtureRequest, own_outputs: Path, monkeypatch: pytest.MonkeyPatch, measured_cluster
) -> None:
    """Made-up runs of known length on a real scheduler; of every twentieth the worker is lost on the way."""
    count, chance = request.config.getoption("cluster_runs"), random.Random(request.config.getoption("seed"))
    workers, mean_s = round(count / 31.25), 4.0 if count > 500 else 0.5
    lengths = [max(0.05, chance.lognormvariate(0, 0.5) * mean_s) for _ in range(count)]
    runs = [
        run(arm=f"r{at}", about=json.dumps(dict(s=s, lost=chance.random() if at % 20 == 0 else None)))
        for at, s in enumerate(lengths)
    ]
    tasks, blocks = [Task(each, None, s) for each, s in zip(runs, lengths)], []
    while tasks:
        part = chance.randint(1, 9)
        blocks.append(Block(f"block {len(blocks)}", tasks[:part]))
        tasks = tasks[part:]
    monkeypatch.setattr(crew, "why_not_whole", lambda run: "")
    ended, me = [], psutil.Process()
    with Field(own_outputs) as field:
        field.start_scheduler()
        here = str(Path(__file__).parent)
        for at in range(0, workers, 32):  # a process has so many
            some = str(min(32, workers - at))
            command = [f"{here}/crowd.py", str(field.scheduler_file), some]
            field.start(f"crowd-{at}", command, PYTHONPATH=f"{ROOT}{os.pathsep}{here}", **QUIET)
        with connect.connected(str(field.scheduler_file)) as client:
            client.wait_for_workers(workers, timeout=120)
            before_mb, started = me.memory_info().rss / 1e6, time.monotonic()
            end = lambda task, message, seconds: ended.append((task.run.id, message)) is None  # noqa: E731
            crew.Crew(client, Orders("cpu"), Console(file=io.StringIO()), crowd.fake).train(blocks, end)
            took_s, client_mb = time.monotonic() - started, me.memory_info().rss / 1e6
        scheduler_mb = psutil.Process(field.processes["scheduler"].pid).memory_info().rss / 1e6
    bound_s = max(sum(lengths) / workers, *(sum(task.seconds for task in block.tasks) for block in blocks))
    facts = dict(workers=workers, runs=count, lost=len(runs[::20]), took_s=took_s, bound_s=bound_s)
    facts |= dict(over_bound=took_s / bound_s, scheduler_mb=scheduler_mb)
    facts |= dict(client_mb=client_mb, client_grew_mb=client_mb - before_mb)
    measured_cluster.add(**{f"simulated_{key}": value for key, value in facts.items()})
    assert sorted(ended) == sorted((each.id, "") for each in runs)
    assert took_s <= (1.15 if count > 500 else 2.0) * bound_s, facts


@pytest.mark.timed
def test_through_dask_a_run_takes_a_fiftieth_of_a_nano_run_longer_at_most(own_outputs: Path, measured_cluster) -> None:
    alone, through = [], []
    with connect.local_workers(1) as client:
        trained(client, run(arm="first"))
        for at in range(5):
            started = time.perf_counter()
            worker.train_alone(run(arm=f"alone-{at}"), "cpu")
            alone.append(time.perf_counter() - started)
            started = time.perf_counter()
            trained(client, run(arm=f"through-{at}"))
            through.append(time.perf_counter() - started)
    pair = (ROOT / "outputs/cpu/runs" / f"{arm}-text-s42" for arm in ("baseline", "hybrid"))
    nano_s = min(RunFolder(folder).facts["summary"]["train_s"] for folder in pair)
    more_s = sorted(through)[2] - sorted(alone)[2]
    measured_cluster.add(overhead_s=more_s, overhead_of_a_nano_run_pct=100 * more_s / nano_s)
    assert more_s <= 0.02 * nano_s
