"""What a worker of a Dask cluster does: say what it is, and train a run when it is asked. Sent to it by name.

Orders arrive as JSON, and what goes back is JSON text, bytes and numbers: the side that asks loads no pickle. A worker
that reaches the folder of the side that asked trains there. Another one trains in `.cache/cluster/` of its own
checkout, and what it made is deleted there when it has landed.
"""

import contextlib
import functools
import hashlib
import json
import os
import platform
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from dask import config
from distributed import get_worker
from distributed.worker import Status

from hybridlib.study import provenance
from hybridlib.study.alone import CannotTrain, train_alone
from hybridlib.study.cluster.landing import FILES, Outcome, packed
from hybridlib.study.progress_line import how_far
from hybridlib.study.provenance import ROOT, from_root
from hybridlib.study.run import SKIPPED, Run
from hybridlib.study.storage import InUse, StorageError, locked, write_atomically
from hybridlib.training import NUMERICS

TOPIC = "hybridlib"  # of the events that say how far a worker is
TOKEN = ".cluster"  # the file by which a worker knows the folder of the side that asked
LOOK_S, SAY_S, WAIT_S = 0.2, 5.0, 120.0


@functools.cache
def about() -> str:
    """Return as JSON what must be the same on both sides, and the machine: its host, processor and GPUs."""
    text = json.dumps(Run.model_json_schema(), sort_keys=True)
    same = dict(NUMERICS=NUMERICS, schema=hashlib.sha256(text.encode()).hexdigest()[:12])
    same |= {"python": platform.python_version()} | dict(map(installed, locked_names()))
    return json.dumps(dict(same=same, host=platform.node(), processor=provenance.processor(), gpus=gpus()))


def locked_names() -> list[str]:
    """Return the names of the packages in `requirements.lock`."""
    return [line.split("==")[0] for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").split()]


def installed(name: str) -> tuple[str, str]:
    """Return `name` and the version of that package here, without what names a build of it: 2.13.0 for 2.13.0+cpu."""
    try:
        return name, version(name).split("+")[0]
    except PackageNotFoundError:
        return name, "missing"


def gpus() -> list[str]:
    """Return the names of the GPUs that this process may use, in the order in which it counts them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")  # numbers or UUIDs
    try:
        import pynvml

        pynvml.nvmlInit()
        chosen = range(pynvml.nvmlDeviceGetCount()) if visible is None else filter(None, visible.split(","))
        by_number, by_uuid = pynvml.nvmlDeviceGetHandleByIndex, pynvml.nvmlDeviceGetHandleByUUID
        names = [str(one).strip() for one in chosen]
        return [pynvml.nvmlDeviceGetName(by_number(int(one)) if one.isdigit() else by_uuid(one)) for one in names]
    except Exception:  # no driver, or one that says nothing: of many kinds
        return []


def text_sha256(path: str) -> str:
    """Return the checksum of the text file `path`, or of all in that folder that are read; empty where none is."""
    base, digest = ROOT / path, hashlib.sha256()
    files = [base] if base.is_file() else sorted(filter(Path.is_file, base.rglob("*")))
    names = {file: file.relative_to(base) for file in files}
    for file in (one for one, name in names.items() if not any(p in SKIPPED or p[0] == "." for p in name.parts)):
        digest.update(os.fsencode(names[file]) + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest() if files else ""


def place_of(asked_in: str, token: str) -> Path:
    """Return the folder of outputs to train in: `asked_in`, if that is here the folder that holds `token`."""
    try:
        if (Path(asked_in) / TOKEN).read_text(encoding="utf-8") == token:
            return Path(asked_in)
    except OSError:
        pass
    return own_place(token)


def own_place(token: str) -> Path:
    """Return the folder of this checkout for what is made for the side with `token`."""
    return ROOT / ".cache" / "cluster" / token


def train_alone_there(asked: dict[str, Any], run: Run, folder: Path) -> str:
    """Train `run`, whose records lie in `folder`, as `asked`, without a notebook; return its warnings."""
    return train_alone(run, asked["device"])


def work(order: str, how: Callable[[dict[str, Any], Run, Path], str] = train_alone_there) -> dict[str, Any]:
    """Train the run of `order`, which `Orders` made, in the way `how`; return an `Outcome` as plain data."""
    asked = json.loads(order)
    run, place = Run.model_validate(asked["run"]), place_of(asked["outputs"], asked["token"])
    found = Outcome()
    for path, sha256 in asked["texts"].items():
        if (here := text_sha256(path)) != sha256:
            return Outcome(refused=f"its text {path!r} {'is another' if here else 'is not there'}").model_dump()
    shared, folder = place == Path(asked["outputs"]), place / run.study / "runs" / run.id
    with environment(asked, place), reported(run, folder), stopped_when_cancelled() as stopping:
        try:
            for name, files in asked["beside"].items() if not shared else ():
                for file, content in files.items():
                    write_atomically(folder.with_name(name) / file, content)
            wait_for_another(folder, stopping)
            if asked["fresh"] and not shared and folder.exists():
                with locked(folder, "deletes it"):
                    shutil.rmtree(folder)
            found.warnings = how(asked, run, folder).replace(str(from_root(place)), asked["shown"])
        except (CannotTrain, StorageError, InUse) as error:
            found.message = str(error).replace(str(from_root(place)), asked["shown"])
    found.stopped = stopping.is_set()
    if not shared:
        found.files = packed(folder, ("run.ipynb",) if found.message else FILES)
    return found.model_dump()


def forget(study: str, runs: list[str], token: str) -> None:
    """Delete what this checkout made for the side with `token` of these `runs` of `study`, which have landed there."""
    for run in runs:
        shutil.rmtree(own_place(token) / study / "runs" / run, ignore_errors=True)


def wait_for_another(folder: Path, stopping: threading.Event) -> None:
    """Wait a while for another process that trains in `folder`, as one does that was cut off; not once `stopping`."""
    until_s = time.monotonic() + WAIT_S
    while time.monotonic() < until_s and not stopping.is_set():
        with contextlib.suppress(InUse), locked(folder, "is about to train it"):
            return
        stopping.wait(LOOK_S)


@contextlib.contextmanager
def environment(asked: dict[str, Any], place: Path) -> Iterator[None]:
    """Give the processes that the block starts their outputs, `place`, and the GPU that `asked` names, if any.

    They do not get what Dask tells its own workers of threads and of the allocator: times and memory are then those of
    a run that was started by hand.
    """
    own: dict[str, str | None] = {"HYBRIDLIB_OUTPUTS": str(place)}
    if asked["gpu"]:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        own["CUDA_VISIBLE_DEVICES"] = visible.split(",")[int(asked["gpu"])] if visible else asked["gpu"]
    for kind in ("environ", "pre-spawn-environ"):
        dasks = config.get(f"distributed.nanny.{kind}")
        own |= {name: None for name, value in dasks.items() if os.environ.get(name) == str(value)}
    before = {name: os.environ.get(name) for name in own}
    put(own)
    try:
        yield
    finally:
        put(before)


def put(variables: dict[str, str | None]) -> None:
    """Set these `variables` of this process's environment; None deletes one."""
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextlib.contextmanager
def reported(run: Run, folder: Path) -> Iterator[None]:
    """While the block trains `run` in `folder`, tell the scheduler now and then how far it is."""
    worker, since, ended = get_worker(), time.time(), threading.Event()

    def report() -> None:
        while not ended.wait(SAY_S):
            worker.log_event(TOPIC, dict(address=worker.address, said=how_far(run, folder, since)))

    threading.Thread(target=report, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


@contextlib.contextmanager
def stopped_when_cancelled() -> Iterator[threading.Event]:
    """When nobody waits for this task any more, or its worker closes, tell the processes of the block to end.

    They make a checkpoint first. Those that had begun before the block are not the block's. Yield what is set then.
    """
    worker, ended, told = get_worker(), threading.Event(), set(psutil.Process().children())
    task, stopping = worker.state.tasks[worker.get_current_task()], threading.Event()

    def watch() -> None:
        while not ended.wait(LOOK_S):
            if task.state == "cancelled" or worker.status not in (Status.running, Status.paused):
                stopping.set()
                for child in set(psutil.Process().children()) - told:
                    told.add(child)
                    with contextlib.suppress(psutil.NoSuchProcess):
                        child.terminate()

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield stopping
    finally:
        ended.set()
        worker.log_event(TOPIC, dict(address=worker.address, said=""))
