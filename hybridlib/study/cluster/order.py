"""What a worker is told of a run: all that it needs to know, as JSON."""

import json
import uuid
from functools import cache
from pathlib import Path

from hybridlib.study import progress
from hybridlib.study.cluster import worker
from hybridlib.study.cluster.blocks import Task
from hybridlib.study.cluster.landing import RECORDS, packed
from hybridlib.study.provenance import from_root
from hybridlib.study.records import RunFolder
from hybridlib.study.schema import Study
from hybridlib.study.storage import write_atomically


class Orders:
    """Orders to train runs on `device`, those of `study` by its notebook.

    With `fresh`, a worker does not go on from what it made earlier for this side. `token` names this side there.
    """

    def __init__(self, device: str, study: Study | None = None, fresh: bool = False) -> None:
        self.device, self.study, self.fresh, self.token = device, study, fresh, token_of(progress.OUTPUTS)
        self.begun: set[tuple[str, str, str]] = set()
        self.text_sha256 = cache(worker.text_sha256)  # of texts that many runs read

    def order(self, task: Task, gpu: str, host: str) -> str:
        """Return as JSON what `worker.work` on `host` is to know of `task`, on the GPU number `gpu` if that is chosen.

        A run that goes on to its baseline's loss is sent that baseline's records.
        """
        run, job, baseline = task.run, task.job, progress.baseline_folder(task.run)
        wanted = run.goes_on and run.id != baseline.name and RunFolder(baseline).facts is not None  # None if damaged
        beside = packed(baseline, RECORDS) if wanted else {}
        again, study = (run.study, run.id, host) in self.begun, self.study
        self.begun.add((run.study, run.id, host))
        order = dict(
            run=run.model_dump(mode="json"),
            job=job and dict(stage=job.stage, notebook=job.notebook, parameters=job.parameters, extends=job.extends),
            study=study and study.model_copy(update=dict(also_reads=[])).model_dump(mode="json"),
            device=self.device,
            gpu=gpu if self.device == "auto" else "",  # a GPU that the device names is found by that name
            texts={path: self.text_sha256(path) for path in run.source.paths},
            beside={baseline.name: {name: content.decode() for name, content in beside.items()}},
            outputs=str(progress.OUTPUTS),
            shown=str(from_root(progress.OUTPUTS)),
            token=self.token,
            fresh=self.fresh and not again,
        )
        return json.dumps(order)

    def refused(self, task: Task, host: str) -> None:
        """Know that the worker on `host` did not begin with `task`."""
        self.begun.discard((task.run.study, task.run.id, host))


def token_of(outputs: Path) -> str:
    """Return what names the folder `outputs` among all that workers train for: it is kept in a file there."""
    file = outputs / worker.TOKEN
    if not file.is_file():
        write_atomically(file, uuid.uuid4().hex)
    return file.read_text(encoding="utf-8")
