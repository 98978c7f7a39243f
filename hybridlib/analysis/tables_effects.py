"""Tables of effects against the baseline: speed, quality, and the tests on quality."""

import pandas as pd

from hybridlib.analysis import stats
from hybridlib.analysis.effects import by_seed, effect
from hybridlib.analysis.load import BASELINE
from hybridlib.analysis.tables import by_arm
from hybridlib.analysis.wording import estimate, number, p_value


def speed(runs: pd.DataFrame) -> pd.DataFrame:
    """Speedup and time to target of each arm with intervals; paired test and Welch's on throughput."""
    rows = []
    for (data, arm), part in by_arm(runs[runs.arm != BASELINE]):
        base = runs[(runs.data == data) & (runs.arm == BASELINE)]
        fast, target = (effect(runs, metric, arm, data) for metric in ("speedup", "time_to_target"))
        missed = int((by_seed(runs, "time_to_target", arm, data) == 0).sum())
        rows.append(
            {
                "data": data,
                "arm": arm,
                "seeds": fast.n,
                "speedup": estimate(fast, "×"),
                "p, paired": p_value(fast.p),
                "p, Welch": p_value(stats.welch_p(part.nominal_tokens_per_s, base.nominal_tokens_per_s)),
                "time to target": estimate(target, "×") if target.value else "not reached",
                "p, target": p_value(target.p),
                "never reached": f"{missed} of {target.n}" if target.n else "–",
            }
        )
    return pd.DataFrame(
        rows,
        columns=[
            "data",
            "arm",
            "seeds",
            "speedup",
            "p, paired",
            "p, Welch",
            "time to target",
            "p, target",
            "never reached",
        ],
    )


def pace(runs: pd.DataFrame) -> pd.DataFrame:
    """How far each arm's steps slowed down, and its speedup and time to target had every run kept the pace of its fastest tenth."""
    metrics = {
        "speedup": "speedup",
        "at a steady pace": "steady_speedup",
        "time to target": "time_to_target",
        "at its steady pace": "steady_time_to_target",
    }
    rows = []
    for (data, arm), part in by_arm(runs):
        found = {title: effect(runs, metric, arm, data) for title, metric in metrics.items()} if arm != BASELINE else {}
        rows.append(
            {"data": data, "arm": arm, "slowest tenth over fastest": ", ".join(number(ratio) for ratio in part.slowdown)}
            | {title: estimate(e, "×") if e.value else "not reached" for title, e in found.items()}
        )
    return pd.DataFrame(rows, columns=["data", "arm", "slowest tenth over fastest", *metrics])


def quality(runs: pd.DataFrame) -> pd.DataFrame:
    """Changes of loss and perplexity at the last nominal step, with intervals, against the same seed's baseline."""
    metrics = {
        "Δloss (%)": "delta_loss_pct",
        "Δloss (nats)": "delta_loss_nats",
        "Δperplexity (%)": "delta_perplexity_pct",
        "Δtraining loss, last 100 steps (%)": "delta_train_loss_pct",
    }
    rows = []
    for data, arm in by_arm(runs[runs.arm != BASELINE]).groups:
        found = {title: effect(runs, metric, arm, data) for title, metric in metrics.items()}
        rows.append(
            {"data": data, "arm": arm, "seeds": found["Δloss (%)"].n}
            | {title: estimate(e, "") for title, e in found.items()}
        )
    return pd.DataFrame(rows, columns=["data", "arm", "seeds", *metrics])


def quality_tests(runs: pd.DataFrame, margins_pct: list[float]) -> pd.DataFrame:
    """Tests on Δloss: paired and Welch for a difference, non-inferiority and equivalence (TOST) at each margin."""
    columns = [
        "data",
        "arm",
        "p, paired",
        "p, Welch",
        "p, Welch, last 100",
        *(f"{what} {m:g} %" for m in margins_pct for what in ("no worse by", "within ±")),
    ]
    rows = []
    for (data, arm), part in by_arm(runs[runs.arm != BASELINE]):
        base = runs[(runs.data == data) & (runs.arm == BASELINE)]
        changes = by_seed(runs, "delta_loss_pct", arm, data)
        row = {
            "data": data,
            "arm": arm,
            "p, paired": p_value(stats.mean_effect(changes).p),
            "p, Welch": p_value(stats.welch_p(part.held_out_loss, base.held_out_loss)),
            "p, Welch, last 100": p_value(stats.welch_p(part.train_loss_last_100, base.train_loss_last_100)),
        }
        for m in margins_pct:
            row |= {
                f"no worse by {m:g} %": p_value(stats.non_inferiority_p(changes, m)),
                f"within ± {m:g} %": p_value(stats.equivalence_p(changes, m)),
            }
        rows.append(row)
    return pd.DataFrame(rows, columns=columns)
