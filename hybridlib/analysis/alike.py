"""What runs must share to be compared, and what is said of them where they differ."""

import pandas as pd

from hybridlib.analysis.wording import listed

ALIKE = ("numerics", "device", "corpus_sha256")  # what runs share that are compared


def refuse_mixture(runs: pd.DataFrame) -> None:
    """Raise `ValueError`, which names runs, unless the `runs` on each data source were made ALIKE.

    Runs with different seeds may come from different devices of one kind: figures are paired by seed.
    """
    for data, part in runs.groupby("data"):
        kinds = part.device.str.partition(":")[0]
        for column in ALIKE:
            if column != "device" or kinds.nunique() > 1:
                _refuse_several(part, column, data)
        for seed, block in part.groupby("seed"):
            _refuse_several(block, "device", f"{data} with seed {seed}")


def _refuse_several(runs: pd.DataFrame, column: str, data: str) -> None:
    if runs[column].nunique(dropna=False) <= 1:
        return
    named = {
        str(value): (g.arm + "-" + g.data + "-s" + g.seed.astype(str)).tolist()
        for value, g in runs.groupby(column, dropna=False)
    }
    said = "; ".join(f"{v[:24]}: {', '.join(n[:4])}{' …' * (len(n) > 4)}" for v, n in named.items())
    raise ValueError(f"the runs on {data} must have one {column} to be compared, and have {len(named)}: {said}")


def precisions(runs: pd.DataFrame) -> str:
    """Return in a sentence which arms of the `runs` compute in which precision; empty where there is no run."""
    arms = sorted(runs.groupby("precision").arm.unique().items(), key=lambda pair: len(pair[1]))
    told = [f"{precision} for {listed(f'`{arm}`' for arm in of)}" for precision, of in arms[:-1]]
    told += [f"{precision} for {'the others' if told else 'all'}" for precision, _ in arms[-1:]]
    return f"Precision: {', '.join(told)}." if told else ""
