"""What a worker does with a job of a study: it executes the notebook, as the side that asks would."""

import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from hybridlib.study.alone import CannotTrain
from hybridlib.study.cluster import worker
from hybridlib.study.execute import JobFailed, execute_into
from hybridlib.study.parameters import load_study
from hybridlib.study.plan import Job
from hybridlib.study.run import Run
from hybridlib.study.storage import write_atomically


def work(order: str) -> dict[str, Any]:
    """Train the run of `order` as `worker.work` does, by executing its notebook."""
    return worker.work(order, execute)


def execute(asked: dict[str, Any], run: Run, folder: Path) -> str:
    """Execute the notebook that trains `run` in `folder`, as `asked`; return its warnings. Raise `CannotTrain`."""
    job, said = Job(**asked["job"] | dict(run=run)), io.StringIO()
    job.parameters["study"] = study_here(asked, run)
    try:
        execute_into(folder / "run.ipynb", job, Console(file=said, width=1000, highlight=False))
    except JobFailed as error:
        raise CannotTrain(str(error)) from None
    return said.getvalue()


def study_here(asked: dict[str, Any], run: Run) -> str:
    """Return the name or file by which a notebook finds here the study that gives `run`, as it is `asked` for.

    A study that this checkout lacks, or has otherwise, is written to a file.
    """
    name = asked["job"]["parameters"]["study"]
    try:
        if load_study(name).run(run.arm, run.data, run.seed) == run:
            return name
    except ValueError:  # no such study here, or another one
        pass
    file = worker.own_place(asked["token"]) / f"{run.study}.yaml"
    write_atomically(file, json.dumps(asked["study"], ensure_ascii=False))
    return str(file)
