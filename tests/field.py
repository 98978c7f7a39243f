"""A Dask cluster for tests: a scheduler and workers as processes, each worker in a checkout of its own if asked for."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil
import yaml

from hybridlib.study.parameters import ROOT

MARK = "HYBRIDLIB_FIELD"  # in the environment of every process here and of its children: by it orphans are found
TTL_S = 30  # after which the scheduler gives up a worker that says nothing
STUDY = dict(
    study="field",
    model=dict(preset="nano", n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=48),
    sources=dict(markov=dict(kind="markov")),
    steps=400, batch_size=4, seq_len=16, eval_every=40, eval_batches=2, log_every=5, snapshot_every=20, threads=1,
    seeds=[1, 2],
    plan=dict(benchmark=[dict(arms=["baseline", "hybrid"], data=["markov"])]),
)  # fmt: skip


def checkout(folder: Path) -> Path:
    """A copy of the project in `folder`, without its outputs and its git."""
    for name in ("hybridlib", "params", "notebooks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("run_all.py", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    if (ROOT / ".cache" / "corpora").is_dir():
        shutil.copytree(ROOT / ".cache" / "corpora", folder / ".cache" / "corpora")
    return folder


def study_file(folder: Path, **changes) -> Path:
    """A study of four runs of seconds, in `folder`."""
    file = folder / "field.yaml"
    file.write_text(yaml.safe_dump(STUDY | changes, sort_keys=False))
    return file


class Field:
    """Processes of a cluster, whose files lie in `folder`; all of them end with the block."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.scheduler_file, self.outputs = folder, folder / "scheduler.json", folder / "outputs"
        self.processes: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def start(self, name: str, command: list[str], home: Path = ROOT, namespace: str = "", **variables: str) -> None:
        """Start the process `name` in the checkout `home`, in a network `namespace` if it has a name."""
        own = os.environ | {MARK: str(self.folder), "PYTHONPATH": str(home), "OMP_NUM_THREADS": "1"} | variables
        own |= {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": f"{TTL_S}s", "DASK_DISTRIBUTED__ADMIN__LOG_LENGTH": "10"}
        inside = ["ip", "netns", "exec", namespace] if namespace else []
        log = (self.folder / f"{name}.log").open("a")
        options = dict(cwd=home, env=own, stdout=log, stderr=log, start_new_session=True)
        self.processes[name] = subprocess.Popen([*inside, sys.executable, *command], **options)

    def start_scheduler(self, host: str = "127.0.0.1") -> None:
        self.scheduler_file.unlink(missing_ok=True)
        where = ["--host", host, "--port", "0", "--scheduler-file", str(self.scheduler_file)]
        names = f"{ROOT}{os.pathsep}{Path(__file__).parent}"  # a scheduler reads which functions tasks call
        self.start("scheduler", ["-m", "dask", "scheduler", *where, "--no-dashboard"], PYTHONPATH=names)
        wait_for(self.scheduler_file.exists, "the scheduler")

    def start_worker(self, name: str, home: Path, namespace: str = "", host: str = "127.0.0.1", **variables) -> None:
        where = ["--scheduler-file", str(self.scheduler_file), "--host", host, "--local-directory", str(self.folder)]
        how = ["--nthreads", "1", "--resources", "device=1", "--name", name, "--no-dashboard"]
        self.start(name, ["-m", "dask", "worker", *where, *how], home, namespace, **variables)

    def start_client(self, *options: str, study: Path | str) -> None:
        """Start `run_all.py` on the cluster."""
        command = ["run_all.py", "--study", str(study), "--scheduler", str(self.scheduler_file), *options]
        self.start("client", command, HYBRIDLIB_OUTPUTS=str(self.outputs))

    def said(self, name: str) -> str:
        """What the process `name` has printed."""
        return (self.folder / f"{name}.log").read_text()

    def kill(self, name: str) -> None:
        """Kill the process `name` and forget it; what it started is on its own."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def end(self) -> None:
        """Kill every process here."""
        for process in self.left():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for process in self.processes.values():
            process.wait()
        self.processes = {}

    def left(self) -> list[psutil.Process]:
        """Processes, other than zombies, that were started here, directly or not."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == str(self.folder) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


def wait_for(holds: Callable[[], object], what: str, seconds: float = 90.0) -> None:
    """Wait until `holds` returns something true."""
    until_s = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until_s, f"waited {seconds} s for {what}"
        time.sleep(0.05)


def signal_tree(process: psutil.Process, number: signal.Signals) -> None:
    """Send a signal to `process` and to all that it started."""
    for one in [*process.children(recursive=True), process]:
        with suppress(psutil.NoSuchProcess):
            one.send_signal(number)
