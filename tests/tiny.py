"""A run of seconds, with everything in it that a long one has: phases, jumps, offloading, checkpoints, evaluations."""

from pathlib import Path

import pandas as pd

from hybridlib.study.records import RunFolder
from hybridlib.study.run import Run

TINY = dict(
    study="tiny", data="markov", seed=5, steps=64, batch_size=4, seq_len=16, log_every=5, eval_every=8, eval_batches=2,
    snapshot_every=12, threads=1, model=dict(n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=48),
    source=dict(kind="markov"),
)  # fmt: skip
HYBRID = dict(
    arm="hybrid",
    schedule=dict(warmup=4, full=4, predict=8, correct=3),
    predictor=dict(name="spectral"),
    memory="offload",
)


def run(**changes) -> Run:
    return Run(**TINY | HYBRID | changes)


def baseline(**changes) -> Run:
    return Run(**TINY | dict(arm="baseline", role="baseline") | changes)


def timeless(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What must be the same on every machine day: all columns but time and memory."""
    records = RunFolder(folder)
    return records.steps().drop(columns=["step_s", "jump_s", "peak_mb"]), records.evals().drop(columns="train_s")


def same_run(one: Path, other: Path) -> bool:
    """Whether two runs' records and final weights are bitwise the same, time and memory left out."""
    frames = zip(timeless(one), timeless(other))
    hashes = [RunFolder(folder).facts["weights_sha256"] for folder in (one, other)]
    return hashes[0] == hashes[1] and all(a.equals(b) for a, b in frames)
