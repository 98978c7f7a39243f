"""The ablation ladder AB-1…AB-4: what each optimization adds to the rung beneath it, and how they interact."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from hybridlib.analysis import stats
from hybridlib.analysis.effects import by_seed, effect
from hybridlib.analysis.load import BASELINE
from hybridlib.analysis.wording import estimate


@dataclass(frozen=True)
class Rung:
    """An arm against the arm without the one thing that it adds, and what the brief expects of it."""

    test: str
    adds: str
    arm: str
    against: str
    expected: str


LADDER = (
    Rung("AB-1", "prediction", "hybrid", BASELINE, "1.3–1.5×"),
    Rung("AB-2", "mixed precision", "hybrid_bf16", "hybrid", "1.1–1.2×"),
    Rung("AB-3", "gradient accumulation", "hybrid_accumulation", "hybrid", "1.1–1.3×"),
    Rung("AB-4", "predict-aware memory", "hybrid_offload", "hybrid", "40–60 % less memory"),
    Rung("AB-4", "all three", "memory_optimized", "hybrid", "–"),
    Rung("–", "mixed precision alone", "baseline_bf16", BASELINE, "–"),
)
ARMS = list(dict.fromkeys(rung.arm for rung in LADDER))


def rungs(runs: pd.DataFrame, data: str) -> pd.DataFrame:
    """The ladder as a table: each rung against the one beneath it; a rung that was not run is a row of dashes."""
    rows = []
    for rung in LADDER:
        found = {
            metric: effect(runs, metric, rung.arm, data, against=rung.against)
            for metric in ("speedup", "delta_loss_pct", "predict_memory_pct")
        }
        rows.append(
            {
                "test": rung.test,
                "adds": rung.adds,
                "arm / against": f"{rung.arm} / {rung.against}",
                "seeds": found["speedup"].n,
                "speedup": estimate(found["speedup"], "×"),
                "Δloss (%)": estimate(found["delta_loss_pct"], ""),
                "memory in Predict (%)": estimate(found["predict_memory_pct"], ""),
                "brief expects": rung.expected,
            }
        )
    return pd.DataFrame(rows)


def interactions(runs: pd.DataFrame, data: str) -> pd.DataFrame:
    """Whether speedups multiply, per seed: 1 means that they do, below 1 that together they give less.

    Rows: prediction with mixed precision (a 2 × 2 design), and all three optimizations against their product.
    Columns: of, value, low, high, p, n.
    """

    def gain(arm: str, against: str) -> pd.Series:
        return by_seed(runs, "speedup", arm, data, against)

    of = {
        "prediction × mixed precision": gain("hybrid_bf16", "hybrid") / gain("baseline_bf16", BASELINE),
        "the three optimizations together": gain("memory_optimized", "hybrid")
        / (gain("hybrid_bf16", "hybrid") * gain("hybrid_accumulation", "hybrid") * gain("hybrid_offload", "hybrid")),
    }
    found = {
        name: stats.ratio_effect(x) if len(x := ratio.replace(np.inf, np.nan).dropna()) else stats.NOTHING
        for name, ratio in of.items()
    }
    return pd.DataFrame([{"of": name} | e._asdict() for name, e in found.items()])
