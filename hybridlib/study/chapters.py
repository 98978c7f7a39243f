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
from hybridlib.study.schema import Study
from hybridlib.study.storage import write_atomically
from hybridlib.training import NUMERICS

NOTEBOOKS = ROOT / "notebooks"
# What a chapter that computes does not depend on: words, what runs are trained and kept, other chapters' parameters.
UNUSED = dict.fromkeys(("about", "plan", "chapters", "leave_out", "keep_weights"), True) | {
    "arms": {"__all__": {"about"}}
}
TIMES = ("start_time", "end_time", "duration")


def source(job: Job) -> Path:
    """Return the notebook that `job` executes."""
    return NOTEBOOKS / f"{job.notebook}.ipynb"


def chapter_path(job: Job, study: str) -> Path:
    """Return where the executed copy of the chapter of `job` lies in the outputs of `study`."""
    return OUTPUTS / study / "notebooks" / f"{job.notebook}.ipynb"


def chapter_state(job: Job, study: str) -> str:
    """Return what there is of the chapter of `job` in the outputs of `study`.

    `missing`; `partial`, not executed to its end; `stale`; `complete`; or `reads` for a chapter that reads records,
    which is executed again whenever the study's pipeline runs.
    """
    there = metadata(chapter_path(job, study))
    if there is None:
        return "missing"
    if "made_by" not in there:
        return "partial"
    if job.stage in READERS:
        return "reads"
    return "stale" if why_chapter_stale(job, study) else "complete"


def made_by(job: Job) -> dict[str, Any]:
    """Return what the chapter of `job` depends on: parameters and NUMERICS; if it computes, cells and study, too."""
    facts = dict(parameters=job.parameters, numerics=NUMERICS)
    if job.stage in READERS:
        return facts
    cells = [[cell.cell_type, cell.source] for cell in nbformat.read(source(job), as_version=4).cells]
    facts |= dict(cells_sha256=hashlib.sha256(json.dumps(cells).encode()).hexdigest())
    facts |= dict(study=settings(load_study(job.parameters["study"])))
    return facts | (dict(criteria=read_yaml(PARAMS / "criteria.yaml")) if job.stage == "question" else {})


def settings(study: Study) -> dict[str, Any]:
    """Return those settings of `study` that a chapter which computes depends on."""
    return study.model_dump(mode="json", exclude=UNUSED)


def why_chapter_stale(job: Job, study: str) -> str:
    """Say in one sentence why the chapter of `job` in the outputs of `study` is not today's; empty if it is."""
    then, now = (metadata(chapter_path(job, study)) or {}).get("made_by") or {}, made_by(job)
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
    """Return the metadata of the notebook `path`; None if it is missing, empty, cut off or no notebook."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["metadata"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def stamp(path: Path, out: Path, **facts: Any) -> None:
    """Write the executed notebook `path`, if it is whole, to `out` with `facts` added to its metadata.

    Leave out what tells one execution from another of the same inputs: paths, times and the random name of the cell
    that papermill adds. Raise `StorageError`.
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
    write_atomically(out, nbformat.writes(notebook).rstrip("\n") + "\n")
