"""Workers of a Dask cluster: which are used, what they send, what they see, how well they are kept at work."""

import gc
import io
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import crowd
import distributed
import psutil
import pytest
import yaml
from field import Field, checkout, study_file, wait_for
from rich.console import Console
from tiny import run

from hybridlib.study import progress
from hybridlib.study.cluster import connect, crew, landing, notebook, worker
from hybridlib.study.cluster.blocks import Block, Machine, NoCluster, Task, Waiting, block_of
from hybridlib.study.cluster.order import Orders
from hybridlib.study.parameters import ROOT
from hybridlib.study.plan import Job
from hybridlib.study.records import EvalRecord, RunFolder
from hybridlib.study.run import Run

# What each worker of a crowd need not do for one process: profile itself, and look at the system twice a second.
QUIET = {
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "10s",
}


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
        assert not list(field.outputs.rglob("run.json"))


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


def trained(client: distributed.Client, *runs: Run, said: io.StringIO | None = None, **options) -> dict[str, str]:
    """Train `runs` on the workers of `client`; the message with which each ended, by its id. `said` gets the output."""
    ended = {}

    def end(task: Task, message: str, seconds: float) -> bool:
        ended[task.run.id] = message
        return True

    blocks = [block_of(each.id, [Task(each, None, 1.0)]) for each in runs]
    crew.Crew(client, Orders("cpu"), Console(file=said or io.StringIO(), width=200), **options).train(blocks, end)
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


def test_no_future_is_left_to_its_destructor_in_which_python_loses_an_interrupt(
    own_outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, destroy = [], distributed.Future.__del__

    def watched(future: distributed.Future) -> None:
        if not future._cleared and threading.current_thread() is threading.main_thread():
            left.append(future.key)
        destroy(future)

    with connect.local_workers(1) as client:
        monkeypatch.setattr(distributed.Future, "__del__", watched)
        assert trained(client, run()) == {"hybrid-markov-s5": ""}
        gc.collect()
        assert not left


def test_what_the_client_asks_for_itself_makes_no_worker_lost(own_outputs: Path, monkeypatch) -> None:
    """Every two seconds a client asks for the scheduler without its workers; here after all that it is asked for."""
    monkeypatch.setattr(crew, "LOOK_S", 0.1)
    monkeypatch.setattr(crew.Crew, "_say", lambda self, text: pytest.fail(text))
    with connect.local_workers(1) as client:
        sync, until_s = client.sync, time.monotonic() + 60

        def asked_between(*given, **options) -> object:
            assert time.monotonic() < until_s, "no worker is seen"
            found = sync(*given, **options)
            sync(client._update_scheduler_info)
            return found

        monkeypatch.setattr(client, "sync", asked_between)
        assert trained(client, run()) == {"hybrid-markov-s5": ""}


def slow(order: str) -> dict:
    """Works for a while the first time that it is asked, so that something can happen to it, and then not."""
    begun = Path(json.loads(order)["outputs"]) / "begun"
    first = not begun.exists()
    with begun.open("a") as out:
        out.write("x")
    if first:
        time.sleep(2)
    return dict(message="ended")


def test_a_client_that_connects_again_gives_its_workers_their_blocks_again(own_outputs: Path) -> None:
    begun = own_outputs / "begun"

    def cut(client: distributed.Client) -> None:
        wait_for(begun.exists, "the task")
        client.loop.add_callback(client.scheduler_comm.comm.abort)

    with connect.local_workers(1) as client:
        threading.Thread(target=cut, args=[client], daemon=True).start()
        assert trained(client, run(), work=slow) == {"hybrid-markov-s5": "ended"}
    assert begun.read_text() == "xx"


def test_a_result_whose_transfer_breaks_is_no_failure_of_its_run(own_outputs: Path, monkeypatch) -> None:
    gathers, gather = [], distributed.Client._gather

    async def breaks_once(client: distributed.Client, futures, *given, **options) -> object:
        gathers.append(futures)
        if len(gathers) == 2:  # the first is what the worker says of itself
            raise distributed.comm.CommClosedError("cut")
        return await gather(client, futures, *given, **options)

    with connect.local_workers(1) as client:
        monkeypatch.setattr(distributed.Client, "_gather", breaks_once)
        assert trained(client, run(), said=(said := io.StringIO()), work=slow) == {"hybrid-markov-s5": "ended"}
    assert "is lost" in said.getvalue() and len(gathers) == 4


def test_a_worker_that_dies_while_its_result_is_fetched_is_lost_and_nobody_waits(
    own_outputs: Path, monkeypatch
) -> None:
    fetch = distributed.Future.result

    def killed_first(future: distributed.Future) -> object:
        if (own_outputs / "begun").exists() and not (own_outputs / "killed").exists():
            (own_outputs / "killed").touch()
            with suppress(Exception):
                future.client.run(os._exit, 1)
        return fetch(future)

    with connect.local_workers(1) as client:
        monkeypatch.setattr(distributed.Future, "result", killed_first)
        assert trained(client, run(), said=(said := io.StringIO()), work=slow) == {"hybrid-markov-s5": "ended"}
    assert "is lost" in said.getvalue()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"address": 3}'])
def test_a_file_that_names_no_scheduler_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "scheduler.json"
    file.write_text(content)
    with (
        pytest.raises(NoCluster, match=f"--scheduler {file}: no Dask scheduler answers: "),
        connect.connected(str(file)),
    ):
        pass


def test_what_extends_a_run_is_to_do_while_its_baseline_is(own_outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = {"baseline": "partial", "hybrid": "complete"}
    monkeypatch.setattr(progress, "run_state", lambda each: states[each.arm])
    monkeypatch.setattr(progress, "awaits_target", lambda each: states["baseline"] != "complete")
    monkeypatch.setattr(RunFolder, "facts", dict(device="cpu: A, 2 threads"))
    jobs = [Job("benchmark", "05_run", {}, run(extend=2.0), extends=extends) for extends in (False, True)]
    tasks = [Task(jobs[0].run, jobs[0], 1.0), Task(run(arm="baseline"), None, 1.0), Task(jobs[1].run, jobs[1], 1.0)]
    assert block_of("pair", tasks).todo == tasks[1:]
    states["baseline"] = "complete"
    assert block_of("pair", tasks).todo == []


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


@pytest.mark.parametrize(
    ("visible", "names"),
    [(None, ["A", "B", "C"]), ("2", ["C"]), ("2, 0", ["C", "A"]), ("GPU-b", ["B"]), ("", []), ("-1", [])],
)
def test_a_worker_names_the_gpus_that_it_may_use(monkeypatch, visible: str | None, names: list[str]) -> None:
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 3,
        nvmlDeviceGetHandleByIndex=lambda at: at,
        nvmlDeviceGetHandleByUUID={"GPU-b": 1}.__getitem__,
        nvmlDeviceGetName="ABC".__getitem__,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert worker.gpus() == names


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
    monkeypatch.setattr(landing, "why_not_whole", lambda run: "")
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


def clocked(order: str) -> dict:
    """Work as a worker does, and write beside the run how long training took, and what the worker did meanwhile."""

    def how(asked: dict, run: Run, folder: Path) -> str:
        started_s, worked_s = time.perf_counter(), time.process_time()
        worker.train_alone_there(asked, run, folder)
        took = dict(train_s=time.perf_counter() - started_s, worked_s=time.process_time() - worked_s)
        folder.with_suffix(".json").write_text(json.dumps(took))
        return ""

    return worker.work(order, how)


@pytest.mark.timed
def test_through_dask_a_run_takes_a_fiftieth_of_a_nano_run_longer_at_most(
    own_outputs: Path, monkeypatch: pytest.MonkeyPatch, measured_cluster
) -> None:
    """Measured within one run, for two runs of seconds differ by more: what comes before and after training."""
    monkeypatch.setenv("HYBRIDLIB_OUTPUTS", str(own_outputs))
    more_s, cores = [], []
    with connect.local_workers(1) as client:
        trained(client, run(arm="first"))
        for at in range(3):
            each, started_s = run(arm=f"through-{at}"), time.perf_counter()
            assert trained(client, each, work=clocked) == {each.id: ""}
            whole_s = time.perf_counter() - started_s
            took = json.loads(progress.run_folder(each).with_suffix(".json").read_text())
            more_s.append(whole_s - took["train_s"])
            cores.append(took["worked_s"] / took["train_s"])
    pair = (ROOT / "outputs/cpu/runs" / f"{arm}-text-s42" for arm in ("baseline", "hybrid"))
    nano_s = min(RunFolder(folder).facts["summary"]["train_s"] for folder in pair)
    longer_s = statistics.median(more_s)
    measured_cluster.add(overhead_s=longer_s, overhead_of_a_nano_run_pct=100 * longer_s / nano_s)
    measured_cluster.add(worker_core_pct=100 * statistics.median(cores))
    assert 0 < longer_s <= 0.02 * nano_s, more_s


def test_any_character_and_any_file_name_reaches_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "ROOT", tmp_path)
    (tmp_path / os.fsdecode(b"\xff.txt")).write_text("text")
    assert worker.text_sha256(".")
    asked = dict(
        job=dict(parameters=dict(study="none such")), study=dict(about="\N{ROCKET}"), token="token",
    )  # fmt: skip
    written = Path(notebook.study_here(asked, run()))
    assert yaml.safe_load(written.read_text(encoding="utf-8")) == dict(about="\N{ROCKET}")


def test_what_no_run_reads_in_a_folder_of_texts_makes_no_other_text_of_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(worker, "ROOT", tmp_path)
    (tmp_path / "texts" / "more").mkdir(parents=True)
    (tmp_path / "texts" / "more" / "a.txt").write_text("a")
    before = worker.text_sha256("texts")
    for name in (".git/index", "more/.DS_Store", "__pycache__/a.pyc"):
        (tmp_path / "texts" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "texts" / name).write_text("of this machine")
    assert worker.text_sha256("texts") == before
    (tmp_path / "texts" / "more" / "a.txt").write_text("b")
    assert worker.text_sha256("texts") != before


def test_damaged_records_of_a_baseline_are_not_sent(own_outputs: Path) -> None:
    hybrid = run(arm="hybrid", extend=2.0)
    baseline = RunFolder(progress.baseline_folder(hybrid))
    baseline.add(EvalRecord(1, 1, 1.0, 1.0))
    baseline.finish(dict(arm="baseline", data=hybrid.data, seed=hybrid.seed))

    def sent() -> dict[str, str]:
        return json.loads(Orders("cpu").order(Task(hybrid, None, 1.0), "", "a"))["beside"]["baseline-markov-s5"]

    assert "evals.csv" in sent()
    (baseline.path / "evals.csv").write_bytes(b"\xff")
    assert sent() == {}


def test_a_block_that_begins_anew_elsewhere_finds_nothing_of_the_lost_machine(own_outputs: Path, monkeypatch) -> None:
    """Outputs on a shared disk: what a lost machine completed would otherwise be taken for the new one's."""
    one, two = run(arm="one"), run(arm="two")
    for each in (one, two):
        folder = progress.run_folder(each)
        folder.mkdir(parents=True)
        (folder / "run.json").write_text("{}")
    block = Block("pair", [Task(each, None, 1.0) for each in (one, two)], machine=Machine("cpu: A", "lost"))
    block.done.append(block.tasks[0])
    taken = crew.Crew.__new__(crew.Crew)
    taken.hands, taken.waiting, taken.going_on = {}, Waiting([block]), True
    taken.hands["tcp://new"] = SimpleNamespace(machine=Machine("cpu: A", "new"), block=None, name="new")
    taken.console, began = Console(file=io.StringIO(), width=200), []
    monkeypatch.setattr(taken, "_next", lambda hand: began.append(hand.block))
    taken._give()
    assert began == [block] and "trains all of it anew" in taken.console.file.getvalue()
    for each in (one, two):
        assert progress.run_state(each) == "missing"
        assert (own_outputs / "tiny" / "superseded" / f"{each.id}.1" / "run.json").exists(), "nothing is lost"


def test_force_deletes_what_a_machine_made_before_once_and_not_what_it_made_for_this_start(own_outputs: Path) -> None:
    orders, job = Orders("cpu", fresh=True), Job("benchmark", "05_run", {}, run(), extends=True)
    first, later = Task(run(), None, 1.0), Task(run(), job, 1.0)

    def fresh(task: Task, host: str) -> bool:
        return json.loads(orders.order(task, "", host))["fresh"]

    assert fresh(first, "a") and not fresh(later, "a"), "the extension goes on from what was made for this start"
    assert fresh(first, "b"), "what another machine has is of another start"
    orders.refused(first, "b")
    assert fresh(first, "b"), "it did not begin"
