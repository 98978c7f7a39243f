"""`results.json`, a study's results for programs, and `results/*.csv`, the frames behind the report's tables."""

import json
import math
from typing import Any

import pandas as pd

from hybridlib.analysis.effects import effect
from hybridlib.analysis.load import BASELINE, Records, devices
from hybridlib.records import PHASES, write_atomically

RATIOS = {
    "speedup": "speedup",
    "steady_speedup": "steady_speedup",
    "delta_loss_pct": "delta_loss_pct",
    "delta_perplexity_pct": "delta_perplexity_pct",
    "time_to_target_ratio": "time_to_target",
}


def write_results(records: Records, verdicts: pd.DataFrame, parts: pd.DataFrame) -> dict[str, Any]:
    """Writes and returns `results.json`; what is infinite, or was not measured, is null and a `why` says which."""
    runs = records.runs
    content = dict(
        study=records.study.study,
        commit=", ".join(sorted(set(runs.commit))) or None,
        device=devices(runs) or None,
        criteria={
            row.criterion: {
                key: _finite(getattr(row, key)) for key in ("verdict", "value", "low", "high", "unit", "p", "why")
            }
            for row in verdicts.itertuples()
        },
        arms={
            f"{data}/{arm}": arm_results(runs, arm, data)
            for data, arm in runs[["data", "arm"]].drop_duplicates().itertuples(index=False)
        },
    )
    folder = records.folder / "results"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(records.folder / "results.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    for name, frame in (
        ("criteria", verdicts),
        ("criteria_parts", parts),
        ("runs", runs),
        ("missing", records.missing),
    ):
        write_atomically(folder / f"{name}.csv", frame.to_csv(index=False))
    return content


def arm_results(runs: pd.DataFrame, arm: str, data: str) -> dict[str, Any]:
    """One arm on one data source: ratios against the same data's baseline, means over seeds, totals of events."""
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
