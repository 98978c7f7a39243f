"""`results.json`, a study's results for programs, and `results/*.csv`, the frames behind the report's tables."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from hybridlib.analysis.effects import effect
from hybridlib.analysis.load import BASELINE, Records, devices
from hybridlib.analysis.show import keep_file
from hybridlib.study.records import PHASES

EVIDENCE_COLUMNS = ["test", "about", "passed", "evidence"]
RATIOS = {
    "speedup": "speedup",
    "steady_speedup": "steady_speedup",
    "delta_loss_pct": "delta_loss_pct",
    "delta_perplexity_pct": "delta_perplexity_pct",
    "time_to_target_ratio": "time_to_target",
}


def write_results(records: Records, verdicts: pd.DataFrame, parts: pd.DataFrame) -> dict[str, Any]:
    """Return the content of `results.json`, and keep it; what is infinite, or was not measured, is null and a `why` says which."""
    runs, keys = records.runs, ("verdict", "value", "low", "high", "unit", "p", "why")
    pairs = runs[["data", "arm"]].drop_duplicates().itertuples(index=False)
    content = dict(
        study=records.study.study,
        commit=", ".join(sorted(set(runs.commit))) or None,
        device=devices(runs) or None,
        criteria={row.criterion: {key: _finite(getattr(row, key)) for key in keys} for row in verdicts.itertuples()},
        arms={f"{data}/{arm}": arm_results(runs, arm, data) for data, arm in pairs},
    )
    keep_file(records.folder / "results.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    for name, frame in dict(criteria=verdicts, criteria_parts=parts, runs=runs, missing=records.missing).items():
        keep_frame(records.folder, name, frame)
    return content


def keep_frame(study_folder: Path, name: str, frame: pd.DataFrame) -> None:
    """Keep a frame as `results/<name>.csv`: written under the pipeline alone."""
    keep_file(study_folder / "results" / f"{name}.csv", frame.to_csv(index=False))


class Evidence:
    """The results of a chapter's tests, judged anew; under the pipeline they are kept as `results/<name>.csv`."""

    def __init__(self, study_folder: Path, name: str) -> None:
        self.folder, self.name, self.rows = study_folder, name, []
        keep_file(study_folder / "results" / f"{name}.csv", None)  # a run that is gone leaves no result behind

    def add(self, test: str, about: str, passed: bool, evidence: str) -> pd.DataFrame:
        """Add one result, keep what there is, and return the row for display."""
        self.rows.append(dict(test=test, about=about, passed=bool(passed), evidence=evidence))
        keep_frame(self.folder, self.name, pd.DataFrame(self.rows))
        return pd.DataFrame(self.rows[-1:])

    def table(self) -> pd.DataFrame:
        return evidence_table(pd.DataFrame(self.rows, columns=EVIDENCE_COLUMNS))


def evidence_table(found: pd.DataFrame) -> pd.DataFrame:
    """Return the results of tests as a table: test, what it asks, whether it passes, and the evidence."""
    return found[EVIDENCE_COLUMNS].assign(passed=found.passed.map({True: "yes", False: "NO"}))


def arm_results(runs: pd.DataFrame, arm: str, data: str) -> dict[str, Any]:
    """Return one arm on one data source: ratios against the same data's baseline, means over seeds, totals of events."""
    mine = runs[(runs.arm == arm) & (runs.data == data)]
    out = dict(seeds=sorted(int(s) for s in mine.seed), real_steps=_finite(mine.real_steps.mean()))
    why = []
    for key, metric in RATIOS.items():
        found = effect(runs, metric, arm, data)
        unreached = metric == "time_to_target" and found.value == 0
        out[key] = None if unreached else _finite(found.value)
        if out[key] is None:
            why.append(
                f"{key}: "
                + (
                    "most seeds never reached the baseline's final held-out loss"
                    if unreached
                    else f"no pair with a {BASELINE} run of the same seed and shape, or not extended"
                )
            )
    out["peak_mb"] = {p: _finite(mine[f"peak_mb_{p}"].mean()) for p in (*PHASES, "run")}
    out |= {key: int(mine[key].sum()) for key in ("divergences", "jumps_accepted", "jumps_rejected")}
    return out | ({"why": "; ".join(why)} if why else {})


def _finite(value: Any) -> Any:
    if isinstance(value, str):
        return value
    return round(float(value), 10) if value is not None and math.isfinite(value) else None
