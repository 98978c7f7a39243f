"""A run's records: the contract between training, which writes them, and analysis, which reads nothing else.

One folder a run, `outputs/<study>/runs/<arm>-<data>-s<seed>/`, with `steps.csv`, `evals.csv`, `run.json` and
`run.ipynb`. `run.json` is written last and atomically: its presence means that the run is complete. It carries checksums
of the other files and of itself.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

PHASES = ("warmup", "full", "predict", "correct")


@dataclass(slots=True)
class StepRecord:
    """One nominal step. `loss` and `perplexity` are None where nothing was computed; in Predict they are probes."""

    step: int  # nominal, from 1
    phase: str  # one of PHASES
    real: int  # 1: forward, backward, optimizer step; 0: predicted
    loss: float | None  # nats a token, training batch
    perplexity: float | None
    grad_norm: float | None  # global 2-norm, real steps only
    tokens_trained: int  # so far; predicted steps add nothing
    step_s: float  # wall-clock seconds, everything that the step did
    jump_s: float | None  # of them, what the predictor took to move the weights; None but where it did
    peak_mb: float  # peak memory of the step's phase so far, MB above the process's floor
    event: str  # "", or any of: jump, rejected, high, skipped, rollback, fault, halved, checkpoint; joined by "+"


@dataclass(slots=True)
class EvalRecord:
    """The held-out loss after a nominal step; `train_s` is the run's clock so far, evaluation excluded."""

    step: int
    real_steps: int
    train_s: float
    held_out_loss: float  # nats a token


STEP_COLUMNS = tuple(f.name for f in fields(StepRecord))
EVAL_COLUMNS = tuple(f.name for f in fields(EvalRecord))


Mark = tuple[int, str]  # a file's length in bytes, and the sha256 of its content so far


class StorageError(OSError):
    """A file that could not be written: says which, how much was to be written, and how much room there is."""


class RunInUse(RuntimeError):
    """Another process writes these records."""


class RunFolder:
    """Writes and reads the records of one run. Rows are buffered until `flush`; a row is never changed once written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[str, list[str]] = {"steps.csv": [], "evals.csv": []}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else writes here meanwhile: raises `RunInUse` if somebody does. A dead process holds no lock."""
        with writing(self.path / ".lock", 0):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock", timeout=0)
            try:
                lock.acquire()
            except Timeout:
                raise RunInUse(f"{self.path} is in use: {(self.path / '.lock').read_text()}") from None
        try:
            (self.path / ".lock").write_text(
                f"process {os.getpid()} trains it since {time.strftime('%Y-%m-%d %H:%M:%S')}"
            )
            yield
        finally:
            lock.release()

    def add(self, record: StepRecord | EvalRecord) -> None:
        """Queues a row. Floats are written with `repr`, so that equal runs give equal files, digit for digit."""
        name = "steps.csv" if isinstance(record, StepRecord) else "evals.csv"
        self._rows[name].append(",".join("" if v is None else str(v) for v in astuple(record)))

    def flush(self) -> None:
        """Appends the queued rows to the files, creating them with their headers. Raises `StorageError`."""
        for name, columns in (("steps.csv", STEP_COLUMNS), ("evals.csv", EVAL_COLUMNS)):
            file = self.path / name
            rows = self._rows[name] if file.exists() else [",".join(columns), *self._rows[name]]
            if rows:
                text = "\n".join(rows) + "\n"
                with writing(file, len(text)):
                    self.path.mkdir(parents=True, exist_ok=True)
                    with file.open("a") as out:
                        out.write(text)
            self._rows[name] = []

    def marks(self) -> dict[str, Mark]:
        """Where the files end now, queued rows written: what a checkpoint keeps, to find them again."""
        self.flush()
        return {name: mark(self.path / name) for name in self._rows}

    def cut_back(self, marks: dict[str, Mark]) -> bool:
        """Drops what was written after the marks, a line cut short by a kill included: a resumed run writes it again.

        False, and nothing is changed, if the files are not what they were up to there.
        """
        known = {name: tuple(marks[name]) for name in self._rows}
        if {name: mark(self.path / name, known[name][0]) for name in self._rows} != known:
            return False
        for name in self._rows:
            self._rows[name] = []
            os.truncate(self.path / name, known[name][0])
        return True

    def finish(self, facts: dict[str, Any]) -> None:
        """Writes `run.json`; the run is complete from here on."""
        facts = facts | dict(files=self.marks())
        facts["sha256"] = sha256_of(facts)
        write_atomically(self.path / "run.json", json.dumps(facts, indent=1) + "\n")

    @property
    def facts(self) -> dict[str, Any] | None:
        """`run.json`, or None while the run is not complete, or where its records are damaged."""
        file = self.path / "run.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() and not self.damage() else None

    def damage(self) -> str:
        """What is wrong with the records of a complete run: which file is not as it was written. Empty if nothing is."""
        file = self.path / "run.json"
        if not file.exists():
            return ""
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
            if (said := facts.pop("sha256", None)) is None and "files" not in facts:
                return ""  # from before there were checksums
            whole = said == sha256_of(facts)
        except (ValueError, AttributeError):
            whole = False
        if not whole:
            return f"{file} is damaged: its content does not match its checksum"
        wrong = [name for name, known in facts["files"].items() if mark(self.path / name) != tuple(known)]
        return (
            f"{self.path / wrong[0]} is damaged: its content does not match its checksum in run.json" if wrong else ""
        )

    def flushed_steps(self) -> pd.DataFrame:
        """`steps`, after writing what is queued; empty for a run that has not begun."""
        self.flush()
        return self.steps()

    def steps(self) -> pd.DataFrame:
        """`steps.csv`, columns STEP_COLUMNS."""
        return pd.read_csv(self.path / "steps.csv", dtype={"event": str}, keep_default_na=True).fillna({"event": ""})

    def evals(self) -> pd.DataFrame:
        """`evals.csv`, columns EVAL_COLUMNS."""
        return pd.read_csv(self.path / "evals.csv")


def mark(file: Path, length: int | None = None) -> Mark:
    """Length and sha256 of a file, or of its first `length` bytes; (0, of nothing) where there is none."""
    content = file.read_bytes()[:length] if file.exists() else b""
    return len(content), hashlib.sha256(content).hexdigest()


def sha256_of(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file so that a reader, or a kill at any moment, sees the old content or the new, never a part.

    Raises `StorageError`; the old content is still there then.
    """
    part = path.with_name(path.name + ".part")
    with writing(path, len(text.encode())):
        try:
            with part.open("w", encoding="utf-8") as out:
                out.write(text)
                out.flush()
                os.fsync(out.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def writing(path: Path, nbytes: int) -> Iterator[None]:
    """Turns what the system says of a write that failed into a `StorageError` that a user can act on."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        there = next((folder for folder in (path, *path.parents) if folder.is_dir()), Path("."))
        room = f"{shutil.disk_usage(there).free:,} bytes are free there"
        raise StorageError(
            f"{path}: {nbytes:,} bytes could not be written: {error.strerror or error}; {room}"
        ) from None
