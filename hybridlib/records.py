"""A run's records: the contract between training, which writes them, and analysis, which reads nothing else.

One folder a run, `outputs/<study>/runs/<arm>-<data>-s<seed>/`, with `steps.csv`, `evals.csv`, `run.json` and
`run.ipynb`. `run.json` is written last and atomically: its presence means that the run is complete.
"""

import json
import os
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

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
    event: str  # "", or any of: jump, rejected, rollback, fault, checkpoint; joined by "+"


@dataclass(slots=True)
class EvalRecord:
    """The held-out loss after a nominal step; `train_s` is the run's clock so far, evaluation excluded."""

    step: int
    real_steps: int
    train_s: float
    held_out_loss: float  # nats a token


STEP_COLUMNS = tuple(f.name for f in fields(StepRecord))
EVAL_COLUMNS = tuple(f.name for f in fields(EvalRecord))


class RunFolder:
    """Writes and reads the records of one run. Rows are buffered until `flush`; a row is never changed once written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[str, list[str]] = {"steps.csv": [], "evals.csv": []}

    def add(self, record: StepRecord | EvalRecord) -> None:
        """Queues a row. Floats are written with `repr`, so that equal runs give equal files, digit for digit."""
        name = "steps.csv" if isinstance(record, StepRecord) else "evals.csv"
        self._rows[name].append(",".join("" if v is None else str(v) for v in astuple(record)))

    def flush(self) -> None:
        """Appends the queued rows to the files, creating them with their headers."""
        self.path.mkdir(parents=True, exist_ok=True)
        for name, columns in (("steps.csv", STEP_COLUMNS), ("evals.csv", EVAL_COLUMNS)):
            file = self.path / name
            rows = self._rows[name] if file.exists() else [",".join(columns), *self._rows[name]]
            if rows:
                with file.open("a") as out:
                    out.write("\n".join(rows) + "\n")
            self._rows[name] = []

    def truncate(self, step: int) -> None:
        """Drops every row after `step`, and a last line cut short by a kill: a resumed run writes them again."""
        for name in self._rows:
            self._rows[name] = []
            if (file := self.path / name).exists():
                header, *rows = file.read_text().splitlines(keepends=True)
                kept = [row for row in rows if row.endswith("\n") and int(row.split(",", 1)[0]) <= step]
                write_atomically(file, "".join([header, *kept]))

    def finish(self, facts: dict[str, Any]) -> None:
        """Writes `run.json`; the run is complete from here on."""
        self.flush()
        write_atomically(self.path / "run.json", json.dumps(facts, indent=1) + "\n")

    @property
    def facts(self) -> dict[str, Any] | None:
        """`run.json`, or None while the run is not complete."""
        file = self.path / "run.json"
        return json.loads(file.read_text()) if file.exists() else None

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


class Checks:
    """The pass/fail results of a chapter's tests with their evidence, as `outputs/<study>/results/<name>.csv`."""

    def __init__(self, study_folder: Path, name: str) -> None:
        self.path, self.rows = study_folder / "results" / f"{name}.csv", []

    def add(self, test: str, about: str, passed: bool, evidence: str) -> pd.DataFrame:
        """Records one result, writes the file, and returns the row for display."""
        self.rows.append(dict(test=test, about=about, passed=bool(passed), evidence=evidence))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, pd.DataFrame(self.rows).to_csv(index=False))
        return pd.DataFrame(self.rows[-1:])


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file so that a reader, or a kill at any moment, sees the old content or the new, never a part."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    part.replace(path)


