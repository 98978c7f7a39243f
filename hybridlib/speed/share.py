"""How much of a study's time went into training steps, and how much into all that stands around them."""

from pathlib import Path

import pandas as pd


def training_share(study_folder: Path) -> float | None:
    """Seconds inside steps over the seconds of all jobs, chapters and report included; None before a study has run."""
    file = study_folder / "results" / "pipeline.csv"
    if not file.exists():
        return None
    jobs_s = pd.to_numeric(pd.read_csv(file).seconds, errors="coerce").sum()
    steps_s = sum(pd.read_csv(steps, usecols=["step_s"]).step_s.sum() for steps in study_folder.glob("runs/*/steps.csv"))
    return float(steps_s / jobs_s) if jobs_s else None
