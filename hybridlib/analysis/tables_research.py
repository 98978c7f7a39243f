"""Tables of the sweeps: tuning, what carries to other settings, what one changed setting does."""

import math
from typing import Any

import pandas as pd

from hybridlib.analysis.research import REFERENCE, Research
from hybridlib.analysis.wording import fixed, number, with_unit

TITLES = {  # of the sweeps of what carries, as figures name them
    "wide": "11 M parameters, 4 × 64",
    "batch": "1 M parameters, 4 × 64",
    "prose": "English prose",
    "long": "10 000 steps",
    "small": "GPT-2 Small, 4 × 64",
    "small_prose": "GPT-2 Small, prose, V = 50257",
    "vocabulary": "256 wide, prose, V = 50257",
}


def tuned(research: Research, prefix: str = "tuning_") -> pd.DataFrame:
    """Of each sweep of tuning: its settings and seeds, the settings that are best in the mean over seeds, and the spread."""
    rows = []
    for name, part in research.of(prefix).groupby("sweep", sort=False):
        means = part.groupby("trial").held_out_loss.mean()
        rows.append(
            {"arm": name, "settings tried": len(means), "seeds": part.seed.nunique(), "best": means.idxmin().replace(",", ", ")}
            | {f"loss, {what}": fixed(loss, 3) for what, loss in dict(best=means.min(), median=means.median(), worst=means.max()).items()}
        )
    columns = ["arm", "settings tried", "seeds", "best", "loss, best", "loss, median", "loss, worst"]
    return pd.DataFrame(rows, columns=columns)


def carried(research: Research) -> pd.DataFrame:
    """One row a setting and seed: the change of loss against the baseline at its last step, beside hold's."""
    rows = []
    for row in research.predicted("carry_").itertuples():
        rows.append(
            {
                "setting": TITLES.get(row.sweep, row.sweep),
                "seed": row.seed,
                "steps": row.steps,
                "real steps": row.real_steps,
                "loss": fixed(row.held_out_loss, 3),
                "hold's loss": fixed(row.hold_loss, 3),
                "Δ (%)": with_unit(row.delta_pct, "", sign=True),
                "hold's Δ (%)": with_unit(row.hold_delta_pct, "", sign=True),
                "worth of computed steps": "more than all" if math.isnan(row.steps_worth) else int(row.steps_worth),
            }
        )
    return pd.DataFrame(
        rows,
        columns=["setting", "seed", "steps", "real steps", "loss", "hold's loss", "Δ (%)", "hold's Δ (%)", "worth of computed steps"],
    )


def cycles(lengths: Research, carry: Research, frozen: str) -> pd.DataFrame:
    """One row a length of a cycle at GPT-2 Small's size, the frozen one first: loss against that size's baseline, and what a
    predicted step costs. Empty without that baseline."""
    own = carry.of("carry_").query("sweep == 'small'").set_index("trial")
    if "baseline" not in own.index:
        return pd.DataFrame(columns=["cycle", "real steps", "loss", "Δ (%)", "a predicted step, in real ones"])
    trials = [(frozen, own.loc["hybrid"])] if "hybrid" in own.index else []
    trials += [(row.trial.removeprefix("cycle-"), row) for _, row in lengths.of("cycle").iterrows()]
    target = own.held_out_loss["baseline"]
    rows = [
        {
            "cycle": name,
            "real steps": int(row.real_steps),
            "loss": fixed(row.held_out_loss, 3),
            "Δ (%)": with_unit(100 * (row.held_out_loss / target - 1), "", sign=True),
            "a predicted step, in real ones": number(predicted_step(row)),
        }
        for name, row in trials
    ]
    return pd.DataFrame(rows).sort_values("cycle", key=lambda column: column.str.split("-").str[0].astype(int))


def predicted_step(trial: Any) -> float:
    """What a predicted step of a trial takes, its share of the jump, over the median real step."""
    return (trial.equivalents - trial.real_steps) / (trial.steps - trial.real_steps)


def flattening(by_size: dict[str, Research], frozen: str = "spectral-5") -> pd.DataFrame:
    """One row a size and a way to flatten a jump's spectrum: its loss, mean over seeds, and each seed's distance from the frozen
    way; what a predicted step costs."""
    rows = []
    for size, research in by_size.items():
        sweep = research.of("flattening")
        loss = sweep.pivot(index="trial", columns="seed", values="held_out_loss")
        for name, part in sweep[sweep.predictor.notna()].groupby("trial", sort=False):
            away = 100 * (loss.loc[name] / loss.loc[frozen] - 1) if frozen in loss.index else loss.loc[name] * math.nan
            rows.append(
                {
                    "size": size,
                    "predictor-iterations": name,
                    "seeds": len(part),
                    "loss": fixed(part.held_out_loss.mean(), 3),
                    f"against {frozen} (%)": ", ".join(with_unit(pct, "", sign=True) for pct in away.dropna()),
                    "a predicted step, in real ones": number(part.apply(predicted_step, axis=1).median()),
                }
            )
    columns = ["size", "predictor-iterations", "seeds", "loss", f"against {frozen} (%)", "a predicted step, in real ones"]
    return pd.DataFrame(rows, columns=columns)


def over_tuned(research: Research) -> pd.DataFrame:
    """The hybrid over a tuned and decayed Adam, at several numbers of nominal steps, against that Adam."""
    rows = [
        {
            "nominal steps": row.steps,
            "seed": row.seed,
            "real steps": row.real_steps,
            "loss": fixed(row.held_out_loss, 3),
            "time to the tuned Adam's loss": "not reached" if math.isnan(row.target_ratio) else with_unit(row.target_ratio, "×"),
            "worth of its steps": "more than all" if math.isnan(row.steps_worth) else int(row.steps_worth),
        }
        for row in research.predicted("over_").itertuples()
    ]
    columns = ["nominal steps", "seed", "real steps", "loss", "time to the tuned Adam's loss", "worth of its steps"]
    return pd.DataFrame(rows, columns=columns)


def ablated(research: Research) -> pd.DataFrame:
    """One row a changed setting, in the order of the file: its loss, and its distance from the frozen settings in %."""
    found = research.of("ablation_")
    found = found[found.sweep != REFERENCE.removeprefix("ablation_")]
    frozen = reference(research, "frozen")
    rows = [
        {
            "changed": row.sweep.replace("_", " "),
            "to": row.trial,
            "real steps": row.real_steps,
            "loss": fixed(row.held_out_loss, 3),
            "against frozen (%)": with_unit(100 * (row.held_out_loss / frozen - 1), "", sign=True),
            "speedup": with_unit(row.speedup, "×"),
        }
        for row in found.itertuples()
    ]
    return pd.DataFrame(rows, columns=["changed", "to", "real steps", "loss", "against frozen (%)", "speedup"])


def reference(research: Research, trial: str) -> float:
    """Held-out loss of the frozen settings or of the baseline on the pilot seed; NaN where it was not run."""
    found = research.trials[(research.trials.sweep == REFERENCE) & (research.trials.trial == trial)]
    return float(found.held_out_loss.iloc[0]) if len(found) else math.nan


def failed(research: Research, worse_pct: float = 0.5) -> pd.DataFrame:
    """What did not work: every trial on the study's text that ends more than `worse_pct` above the frozen settings."""
    frozen = reference(research, "frozen")
    kinds = {"ablation_": "ablation", "tradeoff_": "predictor"}
    every = pd.concat([research.predicted(prefix).assign(of=kind) for prefix, kind in kinds.items()])
    every = every.assign(behind_pct=100 * (every.held_out_loss / frozen - 1))
    comparable = (every.of == "ablation") | (every.trial == "0.6")
    worse = every[comparable & (every.behind_pct > worse_pct)].sort_values("behind_pct", ascending=False)
    rows = [
        {
            "tried": f"{row.sweep.replace('_', ' ')}: {row.trial}" if row.of == "ablation" else f"predictor {row.sweep}",
            "loss": fixed(row.held_out_loss, 3),
            "behind (%)": with_unit(row.behind_pct, "", sign=True),
            "against the baseline (%)": with_unit(row.delta_pct, "", sign=True),
            "hold's (%)": with_unit(row.hold_delta_pct, "", sign=True),
        }
        for row in worse.itertuples()
    ]
    return pd.DataFrame(rows, columns=["tried", "loss", "behind (%)", "against the baseline (%)", "hold's (%)"])
