"""What became of a study's jobs: `results/pipeline.csv`, and how long runs took."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import pandas as pd

from hybridlib.study import execute
from hybridlib.study.plan import STAGES, Job, plan
from hybridlib.study.records import RunFolder, write_atomically
from hybridlib.study.parameters import OUTPUTS
from hybridlib.study.schema import Study

COLUMNS = ["job", "stage", "status", "seconds", "message"]


@dataclass
class Pipeline:
    """Outcomes of this start by job, over those of earlier starts that are still true."""

    study: Study
    name: str  # as the notebooks are given it
    full: bool = False
    outcomes: dict[str, tuple[str, float, str]] = field(default_factory=dict)

    def add(self, job: Job, status: str, seconds: float, message: str = "") -> None:
        self.outcomes[job.name] = (status, round(seconds, 1), " ".join(message.split()))

    def went_well(self, name: str) -> bool:
        """Whether a job did not fail in this start."""
        return self.outcomes.get(name, ("complete",))[0] == "complete"

    def write(self, stages: Iterable[str] = STAGES) -> pd.DataFrame:
        """Writes, and returns, one row a job of the study's whole plan: complete, failed or missing."""
        file = OUTPUTS / self.study.study / "results" / "pipeline.csv"
        earlier = pd.read_csv(file, keep_default_na=False).set_index("job") if file.exists() else pd.DataFrame()
        rows = []
        for job in plan(self.study, self.name, only=stages, full=self.full):
            was = earlier.loc[job.name].to_dict() if job.name in earlier.index else {}
            now = self.outcomes.get(job.name) or self._from_records(job, was)
            rows.append(dict(zip(COLUMNS, (job.name, job.stage, *now))))
        file.parent.mkdir(parents=True, exist_ok=True)
        table = pd.DataFrame(rows, columns=COLUMNS)
        write_atomically(file, table.to_csv(index=False))
        return table

    def _from_records(self, job: Job, was: dict) -> tuple[str, float | str, str]:
        state = execute.state(job, self.study.study)
        if state in ("complete", "extendable", "reads"):  # a chapter that reads was executed to its end by an earlier start
            return "complete", was.get("seconds", ""), ""
        if was.get("status") == "failed":
            return "failed", was["seconds"], was["message"]
        return "missing", "", "" if state == "missing" else state


def known_times(study: str) -> dict[tuple[str, str], float]:
    """Mean training seconds of the complete runs of a study, by (arm, data)."""
    facts = [RunFolder(path.parent).facts for path in (OUTPUTS / study).glob("runs/*/run.json")]
    times = pd.DataFrame([(f["arm"], f["data"], f["summary"]["train_s"]) for f in facts], columns=["arm", "data", "s"])
    return times.groupby(["arm", "data"]).s.mean().to_dict()
