"""Reach a Dask cluster: the one that a scheduler's address names, or workers of this machine alone."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import distributed
from distributed.versions import VersionMismatchWarning

from hybridlib.study.cluster.blocks import NoCluster

ONE_DEVICE = {"device": 1}  # what a worker offers, and a run takes: one at a time, so that its times are its own


@contextmanager
def connected(scheduler: str) -> Iterator[distributed.Client]:
    """Connect to the `scheduler`, an address or a scheduler file, until the block ends. Raise `NoCluster`.

    No pickle that a worker sends is loaded here, an error's apart, which Dask itself sends.
    """
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what is lost is said here, in a line
    try:
        address = address_of(scheduler)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VersionMismatchWarning)  # `About` compares them all
            client = distributed.Client(
                address, timeout=10, serializers=["msgpack", "pickle"], deserializers=["msgpack"]
            )
    except (OSError, ValueError, TypeError) as error:
        said = " ".join(str(error).split())
        raise NoCluster(f"--scheduler {scheduler}: no Dask scheduler answers: {said}") from None
    try:
        yield client
    finally:
        with suppress(Exception):  # of a scheduler that is gone
            client.close(timeout=5)


def address_of(scheduler: str) -> str:
    """Return the address in the scheduler file `scheduler`, or what is none as it is. Raise `ValueError`, `OSError`."""
    if not Path(scheduler).is_file():
        return scheduler
    try:
        return str(json.loads(Path(scheduler).read_text(encoding="utf-8"))["address"])
    except (ValueError, LookupError, TypeError):
        raise ValueError("the file names none: is it a scheduler's, and has that started?") from None


@contextmanager
def local_workers(count: int) -> Iterator[distributed.Client]:
    """Start `count` workers of one thread on this machine until the block ends; only this machine reaches them."""
    options = dict(host="127.0.0.1", dashboard_address=None, resources=ONE_DEVICE, silence_logs=logging.CRITICAL)
    with distributed.LocalCluster(n_workers=count, threads_per_worker=1, processes=True, **options) as cluster:
        with connected(cluster.scheduler_address) as client:
            yield client


def workers_of(scheduler: str | None, count: int) -> AbstractContextManager[distributed.Client]:
    """Reach the workers of the Dask `scheduler`, or start `count` of them on this machine. Raise `NoCluster`."""
    return connected(scheduler) if scheduler else local_workers(count)


def dashboard(client: distributed.Client) -> str:
    """Return the address of the scheduler of `client`, and that of its dashboard if it has one."""
    scheduler, services = client.scheduler.address, client.scheduler_info()["services"]
    return f"{scheduler}, dashboard {client.dashboard_link}" if "dashboard" in services else scheduler
