"""The brief's ladder of optimizations, AB-1 to AB-4, as rates: each rung beside plain training, in turns."""

import pandas as pd

from hybridlib.study.run import Run
from hybridlib.benchmark.alone import alone
from hybridlib.benchmark.contenders import Hybrid, opened
from hybridlib.benchmark.side_by_side import Spread
from hybridlib.study.schema import Study

RUNGS = ["baseline_bf16", "hybrid", "hybrid_bf16", "hybrid_accumulation", "hybrid_offload", "memory_optimized"]


def climb(study: Study, device: str, rounds: int, steps: int) -> pd.DataFrame:
    """Columns `rung, speedup, low, high`: nominal steps a second over plain training's, quartiles beside it.

    Every rung has a process of its own: what one leaves in memory slows no other.
    """
    rows = []
    plain = study.run("baseline", "text", study.pilot_seeds[0])
    for arm in RUNGS:
        ratios = alone(_ratios, study.run(arm, "text", study.pilot_seeds[0]), plain, device, rounds, steps)
        spread = Spread.of(pd.Series(ratios))
        rows.append(dict(rung=arm, speedup=spread.median, low=spread.low, high=spread.high))
    return pd.DataFrame(rows)


def _ratios(run: Run, plain: Run, device_choice: str, rounds: int, steps: int) -> list[float]:
    source, device = opened(plain, device_choice)
    pair = [Hybrid(each, source, device, steps) for each in (plain, run)]
    for _ in range(rounds + 1):  # the first round loads libraries, and has the run's Warmup in it
        for contender in pair:
            contender()
    return [a / b for a, b in zip(*(contender.nominal_s[1:] for contender in pair))]
