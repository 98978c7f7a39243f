"""What the tests of reliability measured (`make crash-test`), as frames."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hybridlib.analysis.load import figures_and_tables

TABLES = ("faults", "traces", "kills")
SHOWN = {
    "lr_spike": "learning rate × 300",
    "exploding_gradient": "gradient × 10⁴",
    "vanishing_gradient": "gradient × 10⁻⁶",
    "nan_gradient": "gradient not a number",
    "inf_gradient": "gradient infinite",
    "corrupt_batch": "batch of noise",
    "wild_jump": "jump × 50",
}
# Figure in reliability.json -> what it counts, and what is promised.
PROMISED = {
    "kills": ("random kills of a run", "≥ 100"),
    "kill_differences": ("of them, runs that ended otherwise than one that was not killed", "0"),
    "pipeline_kills": ("random kills of run_all.py or of a kernel", "reported"),
    "pipeline_kill_differences": ("of them, runs that ended otherwise", "0"),
    "orphans": ("processes that outlived a killed run_all.py", "0"),
    "sigterm_checkpoint_s": ("seconds from SIGTERM to a checkpoint and the end", "≤ 5"),
    "damages": ("bits flipped or files cut short, in every region of a checkpoint", "reported"),
    "damages_missed": ("of them not noticed", "0"),
    "inputs_fuzzed": ("broken parameter files, notebooks and corpora", "≥ 10,000"),
    "tracebacks": ("of them answered by a traceback", "0"),
    "faults": ("faults put into training", "reported"),
    "detection_rate": ("share of them detected", "1"),
    "recovery_steps_max": ("most steps until the loss was back under its mean before the fault", "≤ 100"),
    "clean_baselines": ("sound baselines watched", "≥ 20"),
    "false_alarms": ("alarms that they raised: steps skipped or rolled back", "0"),
    "high_losses": ("their steps that were watched and taken", "reported"),
}


@dataclass(frozen=True)
class Reliability:
    """`figures` is `reliability.json`, empty before it was measured; `tables` has the frames behind it, by name."""

    figures: dict[str, Any]
    tables: dict[str, pd.DataFrame]


def read(study_folder: Path) -> Reliability:
    return Reliability(*figures_and_tables(study_folder, "reliability", TABLES))


def promises(found: Reliability) -> pd.DataFrame:
    """One row a figure: what it counts, what is promised, what was measured."""
    rows = [
        {"what": what, "promised": promised, "measured": f"{found.figures[name]:,.6g}" if name in found.figures else "not measured"}
        for name, (what, promised) in PROMISED.items()
    ]
    return pd.DataFrame(rows)


def by_kind(faults: pd.DataFrame) -> pd.DataFrame:
    """One row a kind of fault: how often it was tried and detected, and the worst cases."""
    rows = [
        {
            "fault": SHOWN.get(kind, kind),
            "tried": len(part),
            "detected": int(part.detected_steps.notna().sum()),
            "detected after, real steps at most": part.detected_steps.max(),
            "recovered after, steps at most": part.recovered_steps.max(),
        }
        for kind, part in (faults.groupby("kind", sort=False) if len(faults) else ())
    ]
    return pd.DataFrame(rows)


def by_place(kills: pd.DataFrame) -> pd.DataFrame:
    """One row a place: how many kills fell there, and how many of them on a run that had been resumed before."""
    if not len(kills):
        return pd.DataFrame(columns=["killed in", "kills", "of runs resumed before"])
    counted = kills.groupby("place", sort=False).agg(kills=("kill", "size"), again=("resumed", "sum")).reset_index()
    return counted.rename(columns={"place": "killed in", "again": "of runs resumed before"})
