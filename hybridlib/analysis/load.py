"""A study's records as tidy frames. What was not made alike is refused, and what is missing is named."""

import itertools
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from hybridlib.analysis.alike import refuse_mixture
from hybridlib.study import parameters, progress
from hybridlib.study.parameters import load_study
from hybridlib.study.progress import summarise, time_to_target_s
from hybridlib.study.records import EVAL_COLUMNS, PHASES, STEP_COLUMNS, RunFolder
from hybridlib.study.run import Run
from hybridlib.study.schema import Study

BASELINE = "baseline"
KEYS = ["arm", "data", "seed"]
BATCH = ["batch_size", "seq_len"]
SHAPE = ["steps", *BATCH]  # two runs are compared where these are equal; their times to one target need BATCH alone
SETTINGS = [*SHAPE, "accumulation", "precision", "memory", "extend", "most_steps"]
FACTS = [
    "device", "numerics", "corpus_sha256", "floor_nats", "model_parameters", "memory_floor_mb", "last_step",
    "started_at", "ended_at",
]  # fmt: skip
SUMMARY = [
    "nominal_steps", "real_steps", "train_s", "nominal_tokens_per_s", "steady_tokens_per_s", "slowdown",
    "trained_tokens_per_s", "real_step_median_s", "predict_s", "held_out_loss", "perplexity", "train_loss_last_100",
    "grad_norm_mean", "grad_norm_sd", "jumps_accepted", "jumps_rejected", "divergences",
]  # fmt: skip
RUN_COLUMNS = [
    *KEYS, "role", "kind", *SETTINGS, *FACTS, "commit", "dirty", "versions", *SUMMARY,
    "peak_mb_run", *(f"{what}_{phase}" for what in ("peak_mb", "stored_mb", "phase_share") for phase in PHASES),
    "target_loss", "time_to_target_s", "steady_time_to_target_s", "reported_loss_nats",
]  # fmt: skip
UNREADABLE = (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError)  # what damaged or cut records raise


@dataclass(frozen=True)
class Records:
    """A `study`, its `folder` of outputs, and its complete runs: `runs` (RUN_COLUMNS) has a row a run, `steps` and
    `evals` a row a record.

    `missing` has the runs that the plan names and the records lack, each with a reason. `left_out` names complete runs
    that do not belong to the study as it stands.
    """

    study: Study
    folder: Path
    runs: pd.DataFrame
    steps: pd.DataFrame
    evals: pd.DataFrame
    missing: pd.DataFrame
    left_out: list[str]

    def where(self, **wanted: list) -> "Records":
        """Return the runs whose columns have the `wanted` values, with their steps and evaluations:
        `where(data=["text"], role=["baseline"])`."""
        runs = self.runs
        for column, values in wanted.items():
            runs = runs[runs[column].isin(values)]
        keys = runs[KEYS]
        return replace(self, runs=runs, steps=self.steps.merge(keys), evals=self.evals.merge(keys))

    def results(self, name: str, columns: Sequence[str] = ()) -> pd.DataFrame:
        """Return `results/<name>.csv`, which an earlier chapter wrote; an empty frame with `columns` without it."""
        return frame_of(self.folder / "results" / f"{name}.csv", columns)


def read_records(study: str, outputs: Path | None = None) -> Records:
    """Return all complete runs of `study`, a name or the path of a .yaml file, from the folder `outputs`.

    On a data source those under the newest NUMERICS count. Raise `ValueError` for what `refuse_mixture` refuses.
    """
    plan = load_study(study)
    folder = (outputs or parameters.OUTPUTS) / plan.study
    complete, left_out, damaged, newest = {}, [], [], Counter()
    for path in sorted(p.parent for p in folder.glob("runs/*/run.json")):
        try:
            if run := _read_run(plan, RunFolder(path)):
                complete[path.name] = run
                newest[run[0]["data"]] = max(newest[run[0]["data"]], run[0]["numerics"])
            else:
                left_out.append(path.name)
        except UNREADABLE:
            damaged.append(path.name)
    older = [name for name, (row, _, _) in complete.items() if row["numerics"] < newest[row["data"]]]
    left_out, found = sorted(left_out + older), [complete[name] for name in complete if name not in older]
    arms, sources = list(plan.arms), list(plan.sources)
    found.sort(key=lambda run: (sources.index(run[0]["data"]), arms.index(run[0]["arm"]), run[0]["seed"]))
    runs = pd.DataFrame([row for row, _, _ in found], columns=RUN_COLUMNS)
    steps = _stacked([steps for _, steps, _ in found], [*KEYS, *STEP_COLUMNS])
    evals = _stacked([evals for _, _, evals in found], [*KEYS, *EVAL_COLUMNS, "reported_loss_nats"])
    refuse_mixture(runs)
    there = set(zip(*(runs[k] for k in KEYS)))
    missing = [
        (stage, run.arm, run.data, run.seed, _why_missing(folder, run, left_out, older, damaged, full))
        for stage, run, full in planned(plan)
        if (run.arm, run.data, run.seed) not in there
    ]
    missing = pd.DataFrame(missing, columns=["stage", *KEYS, "why"])
    return Records(plan, folder, with_targets(runs, evals), steps, evals, missing, left_out)


def planned(study: Study) -> list[tuple[str, Run, bool]]:
    """Return every run in the plan of `study` once: with its first stage, and whether `--full` alone trains it."""
    found: dict[tuple[str, str, int], tuple[str, Run, bool]] = {}
    for stage, lines in study.plan.items():
        for line in lines:
            for key in itertools.product(line.arms, line.data, line.seeds or study.seeds):
                first, run, full = found.get(key) or (stage, study.run(*key), True)
                found[key] = first, run, full and line.full
    return list(found.values())


def planned_seeds(study: Study, arm: str, data: str) -> set[int]:
    """Return the seeds that the plan of `study` has for `arm` on `data`."""
    return {run.seed for _, run, _ in planned(study) if (run.arm, run.data) == (arm, data)}


def devices(runs: pd.DataFrame) -> str:
    """Return the device of the `runs`; if there are several, each with its data sources, and its seeds."""
    several, said = runs.groupby("data").device.nunique() > 1, []
    for device, part in runs.groupby("device", sort=False):
        seeds = part.groupby("data", sort=False).seed.unique()
        named = [
            f"{d}, seed{'s' * (len(s) > 1)} {', '.join(map(str, s))}" if several[d] else d for d, s in seeds.items()
        ]
        said.append(f"{device} ({'; '.join(named) if several.any() else ', '.join(named)})")
    return "; ".join(said) if len(said) > 1 else "".join(runs.device.unique())


def with_targets(runs: pd.DataFrame, evals: pd.DataFrame) -> pd.DataFrame:
    """Return `runs` with the target of each, its same-seed baseline's final held-out loss, and the seconds to it.

    The seconds are read from `evals`, as they were and at the run's steady pace. They are infinite for a run that went
    on to the end of its extension, or whose learning rate ends where it ends, as a peer's. They are missing without a
    baseline of the same batch and seed, for a run that stopped for another target before its extension ended, and for
    an arm that is not extended, unless each of its seeds has the loss within the nominal steps.
    """
    pair = ["data", "seed", *BATCH]
    targets = runs[runs.arm == BASELINE].set_index(pair).held_out_loss.to_dict()
    out = runs.copy()
    out["target_loss"] = [targets.get(tuple(key), math.nan) for key in runs[pair].itertuples(index=False)]
    by_run = dict(tuple(evals.groupby(KEYS)))
    times = [time_to_target_s(by_run[run.arm, run.data, run.seed], run.target_loss) for run in out.itertuples()]
    behind = {(run.arm, run.data) for run, seconds in zip(out.itertuples(), times) if not math.isfinite(seconds)}
    for at, run in enumerate(out.itertuples()):
        goes_on = run.arm == BASELINE or run.extend > 1 or run.role == "peer"
        reached = math.isfinite(times[at]) if goes_on else run.role != "stress" and (run.arm, run.data) not in behind
        ended = goes_on and run.last_step >= run.most_steps
        if math.isnan(run.target_loss) or not (reached or ended):
            times[at] = math.nan
    out["time_to_target_s"] = pd.Series(times, index=out.index, dtype=float)
    out["steady_time_to_target_s"] = out.time_to_target_s * out.nominal_tokens_per_s / out.steady_tokens_per_s
    return out


def _read_run(study: Study, folder: RunFolder) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame] | None:
    """Return a run's row, steps and evaluations; None if it is not the study's. Damage raises one of UNREADABLE."""
    facts = folder.facts
    if facts["arm"] not in study.arms or facts["data"] not in study.sources:
        return None
    run = study.run(facts["arm"], facts["data"], facts["seed"])
    if progress.other_parameters(run, facts["parameters"]):
        return None
    steps, evals = folder.steps(), folder.evals()
    floor = facts["floor_nats"] if run.source.kind == "markov" else 0.0
    evals["reported_loss_nats"] = evals.held_out_loss - floor
    summary = summarise(steps, evals, run.steps, run.batch_size * run.seq_len)
    row = {key: getattr(run, key) for key in (*KEYS, "role", *SETTINGS)} | {key: facts[key] for key in FACTS}
    row |= facts["code"] | {"kind": run.source.kind, "reported_loss_nats": summary["held_out_loss"] - floor}
    row["versions"] = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    for key, value in summary.items():
        row |= {f"{key}_{phase}": v for phase, v in value.items()} if isinstance(value, dict) else {key: value}
    names = {key: row[key] for key in KEYS}
    return row, steps.assign(**names), evals.assign(**names)


def _stacked(frames: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)


def _why_missing(folder: Path, run: Run, stale: list, older: list, damaged: list, full: bool) -> str:
    if run.id in damaged:
        return "its records are damaged"
    if run.id in stale:
        return f"made {'under an older NUMERICS' if run.id in older else 'with other parameters'} than the study's"
    if (folder / "runs" / run.id).exists():
        return "started, not complete"
    return "left to --full" if full else "not run"


def frame_of(file: Path, columns: Sequence[str] = ()) -> pd.DataFrame:
    """Return the CSV `file` as a frame; an empty one with `columns` where it is missing, cut off, or lacks a column."""
    try:
        frame = pd.read_csv(file)
        return frame if set(columns) <= set(frame) else pd.DataFrame(columns=columns)
    except (OSError, ValueError):
        return pd.DataFrame(columns=columns)


def facts_of(file: Path) -> dict[str, Any]:
    """Return the mapping in the JSON `file`; an empty one where it is missing or cut off."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}
