"""How far a run is: what a plan needs to know before it starts one, and a run before it goes on."""

from pathlib import Path
from typing import Any, Literal

from hybridlib.config import Run
from hybridlib.provenance import predictor_sha256, training_sha256
from hybridlib.records import RunFolder
from hybridlib.studies import OUTPUTS

State = Literal["missing", "partial", "damaged", "stale", "extendable", "complete"]


def folder(run: Run) -> Path:
    """Where a run's records lie."""
    return OUTPUTS / run.study / "runs" / run.id


def checkpoint_path(run: Run) -> Path:
    return folder(run) / "checkpoint.safetensors"


def state(run: Run) -> State:
    """`damaged`: not as it was written; `stale`: other parameters or other training code; `extendable`: done but for the
    way to its target.

    A run is extendable once its baseline is known, while it has not reached that loss and may still go on.
    """
    records = RunFolder(folder(run))
    facts = records.facts
    if facts is None and records.damage():
        return "damaged"
    if facts is None:
        return "partial" if checkpoint_path(run).exists() else "missing"
    if not is_current(run, facts):
        return "stale"
    return "extendable" if may_extend(run, facts["last_step"]) else "complete"


def is_current(run: Run, facts: dict[str, Any]) -> bool:
    """Whether records (or a checkpoint) with these facts were made by these parameters and this code."""
    made_by = identity(run)
    return {key: facts.get(key) for key in made_by} == made_by


def identity(run: Run) -> dict[str, str | None]:
    """Hashes of all that a run's records depend on: parameters, training code, the predictor's code."""
    predictor = run.predictor and predictor_sha256(run.predictor.name)
    return dict(parameters_sha256=run.sha256, training_sha256=training_sha256(), predictor_sha256=predictor)


def target_loss(run: Run) -> float | None:
    """The final held-out loss of the baseline on the same data and seed; None while there is no such record."""
    beside = folder(run).with_name(f"baseline-{run.data}-s{run.seed}")
    facts = RunFolder(beside).facts
    return facts["summary"]["held_out_loss"] if facts else None


def may_extend(run: Run, last_step: int) -> bool:
    """Whether the run should go on past its nominal steps: a target, not reached yet, and steps left to try."""
    target = target_loss(run)
    if run.extend == 1.0 or target is None or last_step >= int(run.extend * run.steps):
        return False
    return RunFolder(folder(run)).evals().held_out_loss.min() > target
