"""What computed steps are worth: how many of AdamW's, tuned and decayed for exactly so many, reach the same loss."""

import numpy as np
import pandas as pd

from hybridlib.analysis import statistics
from hybridlib.study.sweeps import COMPARED, EQUAL_TIME, YARDSTICK

COLUMNS = [
    "arm", "base", "in_equal_time", "seed", "computed_steps", "held_out_loss", "equivalent_adamw_steps", "train_s",
]  # fmt: skip


def equivalent_steps(loss: float, steps: np.ndarray, losses: np.ndarray) -> float:
    """Return after how many steps the yardstick has this `loss`; NaN outside of what was tried.

    Each length is a run of its own, because a run whose rate falls to zero is worth something at its end alone. Between
    lengths the loss is taken to be linear in the logarithm of the steps. Where a longer run ended no better than a
    shorter one, which noise can do, the shorter one counts.

    Args:
        loss: nats a token.
        steps: how many each run of the yardstick took, (n,), rising.
        losses: what they ended at, (n,).
    """
    best = np.minimum.accumulate(losses)
    if not best[-1] <= loss <= best[0]:
        return np.nan
    return float(np.exp(np.interp(-loss, -best, np.log(steps))))


def worth(trials: pd.DataFrame) -> pd.DataFrame:
    """Return COLUMNS, a row a trial of the sweeps COMPARED, and `equivalent_<name>_steps` for every yardstick besides.

    `trials` are those of `Research`. A trial is measured by runs of its own seed, which begin at the same weights and
    see the same batches: those of the yardstick, and of the arm that has its name. NaN where there are none.
    """
    compared = trials[trials.sweep.str.startswith(COMPARED)]
    found = compared.rename(columns=dict(trial="arm", real_steps="computed_steps"))
    base = found.sweep.str.removeprefix(COMPARED).str.removesuffix(EQUAL_TIME)
    in_time = found.sweep.str.endswith(EQUAL_TIME).astype(bool)  # of no trials at all it would be a column of objects
    found = found.assign(base=base, in_equal_time=in_time, equivalent_adamw_steps=np.nan)
    for sweep, runs in trials[trials.sweep.str.startswith(YARDSTICK)].groupby("sweep"):
        name = sweep.removeprefix(YARDSTICK)
        by_seed = {seed: one for seed, one in yardstick(trials, name).groupby("seed") if seed in set(runs.seed)}
        found[f"equivalent_{name}_steps"] = [
            equivalent_steps(loss, *by_seed[seed][["steps", "held_out_loss"]].to_numpy().T)
            if seed in by_seed
            else np.nan
            for loss, seed in zip(found.held_out_loss, found.seed)
        ]
    others = [name for name in found if name.startswith("equivalent_") and name not in COLUMNS]
    return found[[*COLUMNS, *others]].reset_index(drop=True)


def yardstick(trials: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return those of `trials` that the yardstick `name` consists of, by rising length: its sweep's, its arm's."""
    own = trials.sweep == YARDSTICK + name
    compared = trials.sweep.str.startswith(COMPARED) & (trials.trial == name)
    return trials[own | compared].sort_values("steps")


def ratio(of: pd.DataFrame, yardstick: str = "adamw", alpha: float = statistics.ALPHA) -> statistics.Effect:
    """Return a `yardstick`'s steps for each computed step, over the seeds of one arm: rows `of` what `worth` returns.

    With a 1 − `alpha` interval. A seed outside of what was tried leaves the ratio without an estimate: to leave it out
    would favour the others.
    """
    ratios = of[f"equivalent_{yardstick}_steps"] / of.computed_steps
    return statistics.ratio_effect(ratios, alpha) if len(ratios) and ratios.notna().all() else statistics.NO_ESTIMATE


def of_all(values: pd.Series) -> float:
    """Return the mean of `values`, one a seed; NaN where one is missing, which may be the worst."""
    return float(values.mean(skipna=False))


def paired(rows: pd.DataFrame, ours: str, theirs: str) -> tuple[pd.Series, pd.Series]:
    """Return the held-out losses of the arms `ours` and `theirs`, (n,) each, over the seeds that both have.

    `rows` are some of what `worth` returned.
    """
    losses = rows.pivot(index="seed", columns="arm", values="held_out_loss").reindex(columns=[ours, theirs]).dropna()
    return losses[ours], losses[theirs]


def changes(of: pd.Series, against: pd.Series) -> pd.Series:
    """Return by how many per cent each loss `of` an arm lies above the one that it is held `against`, (n,), paired."""
    return 100 * (of / against - 1)


def change(of: pd.Series, against: pd.Series, alpha: float = statistics.ALPHA) -> statistics.Effect:
    """Return the mean of the `changes` of losses `of` an arm `against` another's, with a 1 − `alpha` interval."""
    return statistics.mean_effect(changes(of, against), alpha)


def crossing(tokens: np.ndarray, cost: np.ndarray, worth_ratio: float) -> float:
    """Return from how many tokens a step on an optimizer has the same loss sooner than another.

    It has where its step costs no more than it is worth. Between the batches that were timed the cost is taken to be a
    power of the tokens. 0 where it is sooner at all of them, infinite where at none, NaN where it does not stay so.

    Args:
        tokens: a step, (n,), rising.
        cost: of its step, over the other's, (n,).
        worth_ratio: what its step is worth, over what the other's is.
    """
    sooner = cost <= worth_ratio
    at = int(np.argmax(sooner))
    if not sooner.any() or sooner.all():
        return 0.0 if sooner.any() else np.inf
    if at == 0 or not sooner[at:].all():
        return np.nan
    between = slice(at - 1, at + 1)
    return float(np.exp(np.interp(-np.log(worth_ratio), -np.log(cost[between]), np.log(tokens[between]))))


def standing(ours: pd.Series, theirs: pd.Series) -> float:
    """Return by how many standard errors the mean loss `ours` lies below that of `theirs`, (n,) each, paired.

    As in the optimization track of modded-nanogpt, whose rule is (target - mean) sqrt(n) >= 0.004: three of them where
    runs differ by 0.0013. Here the standard deviation is that of the differences.
    """
    ahead = theirs.to_numpy() - ours.to_numpy()
    return float(ahead.mean() * np.sqrt(len(ahead)) / ahead.std(ddof=1))
