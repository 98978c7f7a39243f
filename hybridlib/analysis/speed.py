"""What `python -m hybridlib.speed` measured, as frames; and what the study's own records say of speed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hybridlib.analysis.load import Records, figures_and_tables
from hybridlib.analysis.wording import number

TABLES = ("times", "anatomy", "ladder", "scaling")
# Ratio -> what it is, the highest (or, for a share, the lowest) that will do, and what is aimed at.
ASKED = {
    "baseline_vs_hf_trainer": ("baseline's step over Hugging Face Trainer's", "≤ 1.00", "≤ 0.85"),
    "baseline_vs_bare_loop": ("baseline's step over a bare loop's", "≤ 1.03", "≤ 0.85"),
    "hybrid_overhead": ("a real step of hybrid over a bare loop's with the same parts", "≤ 1.03", "≤ 1.01"),
    "predicted_step_cost": ("a predicted step of hybrid over a real one", "≤ 0.06 | 0.10", "≤ 0.03 | 0.05"),
    "predicted_step_cost_offloading": ("the same of memory_optimized", "", ""),
    "offload_share": ("bringing Adam's state out and back, over a cycle", "", "≤ 0.02"),
    "gemm_share": ("matrix products in a step over this machine's large product", "", "≥ 0.60"),
    "predict_memory_ratio": ("memory_optimized's peak in Predict over the baseline's", "≤ 0.60", "≤ 0.35"),
    "run_memory_ratio": ("memory_optimized's peak over the baseline's", "≤ 1.00", "≤ 0.70"),
    "training_share": ("time of the study inside training steps", "≥ 0.85", "≥ 0.92"),
}


@dataclass(frozen=True)
class Speed:
    """`ratios` is `speed.json`, empty before speed was measured; `tables` has the frames behind it, by name."""

    ratios: dict[str, Any]
    tables: dict[str, pd.DataFrame]


def read(study_folder: Path) -> Speed:
    """What was measured on the machine that ran the study."""
    return Speed(*figures_and_tables(study_folder, "speed", TABLES))


def summary(speed: Speed) -> pd.DataFrame:
    """One row a ratio: the study's size and GPT-2 Small's, with quartiles, and what is asked."""
    larger = speed.ratios.get("gpt2_small", {})
    rows = [
        {"ratio": what, "here": with_spread(speed.ratios, name), "GPT-2 Small": with_spread(larger, name), "must": must, "aim": aim}
        for name, (what, must, aim) in ASKED.items()
    ]
    return pd.DataFrame(rows)


def with_spread(ratios: dict[str, Any], name: str) -> str:
    if ratios.get(name) is None:
        return ""
    spread = ratios.get("spread", {}).get(name)
    quartiles = f" [{number(spread['low'], 3)}, {number(spread['high'], 3)}]" if spread and spread["low"] < spread["high"] else ""
    return number(ratios[name], 3) + quartiles


def over_steps(records: Records, arm: str = "st1_long", parts: int = 10) -> pd.DataFrame:
    """The long run in equal parts: columns `part, step, real_step_s, peak_mb`, medians and peaks; empty without it."""
    steps = records.steps[(records.steps.arm == arm) & (records.steps.real == 1)]
    if not len(steps):
        return pd.DataFrame(columns=["part", "step", "real_step_s", "peak_mb"])
    part = (steps.step - 1) * parts // steps.step.max()
    found = steps.groupby(part).agg(step=("step", "median"), real_step_s=("step_s", "median"), peak_mb=("peak_mb", "max"))
    return found.rename_axis("part").reset_index()
