"""Records of a run as bytes, which pass from a worker to the machine that asked, and land there as if made there."""

from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from hybridlib.study import progress
from hybridlib.study.records import RunFolder
from hybridlib.study.run import Run
from hybridlib.study.storage import InUse, StorageError, locked, write_atomically

RECORDS = ("steps.csv", "evals.csv", "run.json")
LAST = "run.json"  # its presence means that a run is complete
FILES = ("run.ipynb", "weights.safetensors", *RECORDS)


class Outcome(BaseModel):
    """What became of a run on a worker.

    `files` has its records by name, and is empty where they lie where they belong; `message` says why it failed, and
    `refused` why it did not begin; `stopped` is true where it was told to stop; `warnings` are those of its cells.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    files: dict[str, bytes] = {}
    message: str = ""
    refused: str = ""
    stopped: bool = False
    warnings: str = ""


def packed(folder: Path, names: tuple[str, ...] = FILES) -> dict[str, bytes]:
    """Return those files of a run's `folder` that are called one of `names`, by name."""
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def landed(run: Run, found: Outcome) -> str:
    """Keep here what a worker `found` of `run`; return why the run, or that, failed, and nothing if it did not."""
    try:
        if found.files:
            land(run, found.files)
        return found.message or why_not_whole(run)
    except (StorageError, InUse) as error:
        return str(error)


def land(run: Run, files: dict[str, bytes]) -> None:
    """Write `files`, which a worker sent of `run`, where a run that is trained here has them.

    What lay there is kept in `superseded/`. Without a `run.json` the run failed, and its executed notebook alone is
    kept. Only names that a run has are written. Raise `StorageError`, and `InUse` while a process trains the run here.
    """
    records = RunFolder(progress.run_folder(run))
    wanted = {name: content for name, content in files.items() if name in FILES}
    if LAST not in wanted:
        wanted = {name: content for name, content in wanted.items() if name == "run.ipynb"}
    with locked(records.path, "keeps what a worker made"):
        if LAST in wanted:
            records.set_aside()
        for name in sorted(wanted, key=lambda name: name == LAST):
            write_atomically(records.path / name, wanted[name])


def set_aside(run: Run) -> None:
    """Keep what lies here of `run` in `superseded/`, so that it is trained anew. Raise `StorageError`.

    Nothing is done while a process trains it here: it is then not lost.
    """
    records = RunFolder(progress.run_folder(run))
    if records.path.exists():
        with suppress(InUse), locked(records.path, "sets it aside"):
            records.set_aside()


def why_not_whole(run: Run) -> str:
    """Say in one sentence what is wrong with the records of `run` that came back; empty if nothing is."""
    found = progress.run_state(run)
    return (
        ""
        if found in progress.WHOLE
        else f"what came back is {found}: {progress.why_run_again(run) or 'it has no run.json'}"
    )
