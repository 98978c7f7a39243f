"""A run's records: the contract between training, which writes them, and analysis, which reads nothing else.

One folder a run, `outputs/<study>/runs/<arm>-<data>-s<seed>/`, with `steps.csv`, `evals.csv`, `run.json` and
`run.ipynb`. `run.json` is written last and atomically: its presence means that the run is complete. It carries
checksums of the other files and of itself.
"""

import hashlib
import itertools
import json
import os
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from hybridlib.study.storage import Mark, mark, remove_checkpoints, write_atomically, writing

PHASES = ("warmup", "full", "predict", "correct")
NEEDED = {"arm", "data", "seed", "parameters", "numerics", "device", "last_step", "summary"}
NEEDED_OF_SUMMARY = {"nominal_steps", "train_s", "held_out_loss", "nominal_tokens_per_s"}


@dataclass(slots=True)
class StepRecord:
    """One nominal step.

    `step` counts from 1; `phase` is one of PHASES; `real` is 1 for a computed step, 0 for a predicted one. `loss` (nats
    a token, of the training batch) and `perplexity` are None where nothing was computed, as in Predict. `grad_norm` is
    the global 2-norm, of computed steps alone. `tokens_trained` counts from the start of the run. `step_s` is the
    wall-clock time in seconds of all that the step did, `jump_s` the predictor's part of it, None where it did not move
    the weights. `peak_mb` is the peak memory of the step's phase so far, in MB on the device above the process's floor,
    and `stored_mb` what the step leaves in pinned memory or a file. `event` is empty, or some of jump, rejected,
    loss_spike, skipped, rollback, fault, halved, checkpoint, joined by "+".
    """

    step: int
    phase: str
    real: int
    loss: float | None
    perplexity: float | None
    grad_norm: float | None
    tokens_trained: int
    step_s: float
    jump_s: float | None
    peak_mb: float
    stored_mb: float
    event: str


@dataclass(slots=True)
class EvalRecord:
    """`held_out_loss`, in nats a token, after nominal step `step`: `real_steps` were computed until then, and training
    took `train_s` seconds, evaluation excluded.
    """

    step: int
    real_steps: int
    train_s: float
    held_out_loss: float


STEP_COLUMNS = tuple(f.name for f in fields(StepRecord))
EVAL_COLUMNS = tuple(f.name for f in fields(EvalRecord))


class RunFolder:
    """Write and read the records of one run, in the folder `path`.

    Rows are buffered until `flush`. A row that has been written is never changed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[str, list[str]] = {"steps.csv": [], "evals.csv": []}

    def add(self, record: StepRecord | EvalRecord) -> None:
        """Queue `record`. Floats are written with `repr`, so that equal runs give equal files, digit for digit."""
        name = "steps.csv" if isinstance(record, StepRecord) else "evals.csv"
        self._rows[name].append(",".join("" if v is None else str(v) for v in astuple(record)))

    def flush(self) -> None:
        """Append the queued rows to the files, which are created with their headers. Raise `StorageError`."""
        for name, columns in (("steps.csv", STEP_COLUMNS), ("evals.csv", EVAL_COLUMNS)):
            file = self.path / name
            rows = self._rows[name] if file.exists() else [",".join(columns), *self._rows[name]]
            if rows:
                text = "\n".join(rows) + "\n"
                with writing(file, len(text)):
                    self.path.mkdir(parents=True, exist_ok=True)
                    with file.open("a", encoding="utf-8") as out:
                        out.write(text)
            self._rows[name] = []

    def marks(self) -> dict[str, Mark]:
        """Write the queued rows, and return where the files end now: what a checkpoint keeps, to find them again."""
        self.flush()
        return {name: mark(self.path / name) for name in self._rows}

    def cut_back(self, marks: dict[str, Mark]) -> bool:
        """Drop what was written after `marks`, a line cut short by a kill included: a resumed run writes it again.

        Return False, and change nothing, if the files are not what they were up to there.
        """
        known = {name: tuple(marks[name]) for name in self._rows}
        if {name: mark(self.path / name, known[name][0]) for name in self._rows} != known:
            return False
        for name in self._rows:
            self._rows[name] = []
            os.truncate(self.path / name, known[name][0])
        return True

    def finish(self, facts: dict[str, Any], to_be_extended: bool = False) -> None:
        """Write `facts` as `run.json`; the run is complete from here on, its checkpoints gone.

        They stay for a run that is `to_be_extended`.
        """
        facts = facts | dict(files=self.marks())
        facts["sha256"] = sha256_of(facts)
        write_atomically(self.path / "run.json", json.dumps(facts, indent=1) + "\n")
        if not to_be_extended:
            remove_checkpoints(self.path)

    def set_aside(self) -> Path | None:
        """Move all that lies here to a new folder in `superseded/`, beside the folder of all runs, and return it.

        Where there is neither a complete run nor a checkpoint, nothing is lost: delete the rows, and return None.
        """
        made = [file for file in self.path.glob("*") if file.name != ".lock" and ".part" not in file.suffixes]
        if not any(file.name == "run.json" or file.suffix == ".safetensors" for file in made):
            for name in self._rows:
                (self.path / name).unlink(missing_ok=True)
            return None
        above = self.path.parent.parent / "superseded"
        aside = next(to for n in itertools.count(1) if not (to := above / f"{self.path.name}.{n}").exists())
        with writing(aside):
            aside.mkdir(parents=True)
            for file in made:
                file.rename(aside / file.name)
        return aside

    @property
    def facts(self) -> dict[str, Any] | None:
        """`run.json`; None while the run is not complete, and where its records are damaged."""
        return self._checked()[0]

    def damage(self) -> str:
        """Say which file of a complete run is not as it was written; empty if all are."""
        return self._checked()[1]

    def _checked(self) -> tuple[dict[str, Any] | None, str]:
        file = self.path / "run.json"
        if not os.path.lexists(file):
            return None, ""
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
            if not {"sha256", "files"} & set(facts):  # from before there were checksums
                return self._if_ours(facts) if has_all(facts) else (None, f"{file} is damaged: a record holds more")
            whole = facts["sha256"] == sha256_of({key: value for key, value in facts.items() if key != "sha256"})
            wrong = [name for name, known in facts["files"].items() if mark(self.path / name) != tuple(known)]
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            whole, wrong = False, []
        if whole and not wrong:
            return self._if_ours(facts)
        named, where = (self.path / wrong[0], " in run.json") if whole else (file, "")
        return None, f"{named} is damaged: its content does not match its checksum{where}"

    def _if_ours(self, facts: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
        name = "{arm}-{data}-s{seed}".format_map(facts) if {"arm", "data", "seed"} <= set(facts) else self.path.name
        return (facts, "") if name == self.path.name else (None, f"{self.path} is a copy of the run {name}")

    def flushed_steps(self) -> pd.DataFrame:
        """Return `steps`, after writing what is queued; empty for a run that has not begun."""
        self.flush()
        return self.steps()

    def steps(self) -> pd.DataFrame:
        """Return `steps.csv`, with STEP_COLUMNS; a column that older records lack is empty."""
        steps = pd.read_csv(self.path / "steps.csv", dtype={"event": str}, keep_default_na=True)
        return steps.reindex(columns=STEP_COLUMNS).fillna({"event": ""})

    def evals(self) -> pd.DataFrame:
        """Return `evals.csv`, with EVAL_COLUMNS."""
        return pd.read_csv(self.path / "evals.csv")


def has_all(facts: dict[str, Any]) -> bool:
    """Return whether `facts` hold all that is read of a record."""
    return set(facts) >= NEEDED and set(facts["summary"]) >= NEEDED_OF_SUMMARY


def sha256_of(facts: dict[str, Any]) -> str:
    """Return the checksum of `facts`, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
