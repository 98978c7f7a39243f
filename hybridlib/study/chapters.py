"""Executed chapters: where they lie, what they were made by, and whether that is still so."""

import hashlib
import json
from pathlib import Path
from typing import Any

import nbformat
from pydantic import ValidationError

from hybridlib.study.parameters import OUTPUTS, PARAMS, ROOT, faults, load_study, read_yaml
from hybridlib.study.plan import READERS, Job
from hybridlib.study.progress import difference
from hybridlib.study.records import write_atomically
from hybridlib.study.schema import Study
from hybridlib.training import NUMERICS

NOTEBOOKS = ROOT / "notebooks"
# What a chapter that computes does not depend on: words, the runs that are trained, other chapters' parameters.
UNUSED = {"about": True, "plan": True, "chapters": True, "leave_out": True, "arms": {"__all__": {"about"}}}
TIMES = ("start_time", "end_time", "duration")


def source(job: Job) -> Path:
    return NOTEBOOKS / f"{job.notebook}.ipynb"


def executed(job: Job, study: str) -> Path:
    """Where a chapter's executed copy lies."""
    return OUTPUTS / study / "notebooks" / f"{job.notebook}.ipynb"


def state(job: Job, study: str) -> str:
    """Return `missing`; `partial`: not executed to its end; `stale`, `complete`; or `reads` for a chapter that reads records.

    That one is executed again whenever its study's pipeline runs, so it is never out of date, and never done with.
    """
    there = metadata(executed(job, study))
    if there is None:
        return "missing"
    if "made_by" not in there:
        return "partial"
    if job.stage in READERS:
        return "reads"
    return "stale" if why_stale(job, study) else "complete"


def made_by(job: Job) -> dict[str, Any]:
    """What a chapter depends on: parameters and NUMERICS; one that computes on its own cells and the study's settings, too."""
    facts = dict(parameters=job.parameters, numerics=NUMERICS)
    if job.stage in READERS:
        return facts
    cells = [[cell.cell_type, cell.source] for cell in nbformat.read(source(job), as_version=4).cells]
    facts |= dict(cells_sha256=hashlib.sha256(json.dumps(cells).encode()).hexdigest())
    facts |= dict(study=settings(load_study(job.parameters["study"])))
    return facts | (
        dict(criteria=read_yaml(PARAMS / "criteria.yaml")) if job.stage == "question" else {}
    )  # which it shows


def settings(study: Study) -> dict[str, Any]:
    return study.model_dump(mode="json", exclude=UNUSED)


def why_stale(job: Job, study: str) -> str:
    """Say in one sentence why an executed chapter is not what would be computed today; empty if it is."""
    then, now = (metadata(executed(job, study)) or {}).get("made_by") or {}, made_by(job)
    if then.get("cells_sha256") != now["cells_sha256"]:
        return "the notebook's cells have changed"
    if then.get("numerics") != NUMERICS:
        return f"made under NUMERICS {then.get('numerics')}, today's is {NUMERICS}"
    try:
        then = then | dict(study=settings(Study.model_validate(then.get("study"))))  # as today's schema reads it
    except ValidationError as error:
        return f"today's schema refuses its study: {faults(error)[0]}"
    return difference(then, now)


def metadata(path: Path) -> dict[str, Any] | None:
    """An executed notebook's metadata; None if there is no notebook, or one that is empty, cut off or no JSON."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["metadata"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def stamp(path: Path, **facts: Any) -> None:
    """Add facts to an executed notebook's metadata, and take out what tells one execution from another of the same inputs:
    paths, times and the random name of the cell that papermill adds.
    """
    if metadata(path) is None:
        return
    notebook = nbformat.read(path, as_version=4)
    for part in (notebook, *notebook.cells):
        for key in ("input_path", "output_path", *TIMES):
            part.metadata.get("papermill", {}).pop(key, None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.id = "injected-parameters"
    notebook.metadata.update(facts)
    write_atomically(path, nbformat.writes(notebook).rstrip("\n") + "\n")
