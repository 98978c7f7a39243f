"""The hybrid against optimizers that are tuned: what each makes of the same wall-clock."""

import pandas as pd

from hybridlib.analysis import stats
from hybridlib.analysis.load import Records
from hybridlib.analysis.wording import estimate

COLUMNS = ["peer", "seed", "steps", "train_s", "time_ratio", "held_out_loss", "behind_pct"]


def against(records: Records, arm: str, data: str) -> pd.DataFrame:
    """Each peer's run beside the arm's of the same seed (COLUMNS).

    `time_ratio` is the peer's time over the arm's: from 1 on it had at least as long. `behind_pct` is how much higher its
    held-out loss is, in % of the arm's; negative where it is better.
    """
    runs = records.runs[records.runs.data == data]
    mine = runs[runs.arm == arm].set_index("seed")
    peers = runs[(runs.role == "peer") & runs.seed.isin(mine.index)]
    beside = mine.loc[peers.seed]
    return pd.DataFrame(
        {
            "peer": peers.arm.to_numpy(),
            "seed": peers.seed.to_numpy(),
            "steps": peers.steps.to_numpy(),
            "train_s": peers.train_s.to_numpy(),
            "time_ratio": peers.train_s.to_numpy() / beside.train_s.to_numpy(),
            "held_out_loss": peers.held_out_loss.to_numpy(),
            "behind_pct": 100 * (peers.held_out_loss.to_numpy() / beside.held_out_loss.to_numpy() - 1),
        },
        columns=COLUMNS,
    )


def table(found: pd.DataFrame) -> pd.DataFrame:
    """One row a peer: its steps, its time against the arm's, and how far behind it ends, with interval."""
    rows = []
    for peer, part in found.groupby("peer", sort=False):
        behind = stats.mean_effect(part.behind_pct)
        rows.append(
            {
                "peer": peer,
                "seeds": len(part),
                "steps": int(part.steps.iloc[0]),
                "time ÷ hybrid's": estimate(stats.ratio_effect(part.time_ratio), "×"),
                "loss above hybrid's (%)": estimate(behind, ""),
                "hybrid better in": f"{int((part.behind_pct > 0).sum())} of {len(part)}",
            }
        )
    return pd.DataFrame(rows, columns=["peer", "seeds", "steps", "time ÷ hybrid's", "loss above hybrid's (%)", "hybrid better in"])
