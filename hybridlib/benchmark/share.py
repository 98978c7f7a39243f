"""How much of a study's time went into training steps, and how much into all that stands around them."""

from pathlib import Path

import pandas as pd


def training_share(study_folder: Path) -> float | None:
    """Seconds inside steps over the seconds of all jobs, chapters and report included; None before a study has run.

    Runs that the pipeline did not time are left out of both.
    """
    file = study_folder / "results" / "pipeline.csv"
    if not file.exists():
        return None
    jobs_s = pd.to_numeric(pd.read_csv(file).set_index("job").seconds, errors="coerce").dropna()
    runs = [steps for steps in study_folder.glob("runs/*/steps.csv") if steps.parent.name in jobs_s]
    steps_s = sum(pd.read_csv(steps, usecols=["step_s"]).step_s.sum() for steps in runs)
    return float(steps_s / jobs_s.sum()) if len(jobs_s) else None
