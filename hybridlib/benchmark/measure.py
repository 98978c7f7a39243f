"""All figures of speed at a study's size, as numbers with their spread."""

from typing import Any

import numpy as np
import pandas as pd
import torch

from hybridlib.benchmark.contenders import BareLoop, HuggingFace, Hybrid, SameParts, opened, peaks_mb
from hybridlib.benchmark.machine import anatomy, gemm_flops_per_s, step_flops
from hybridlib.benchmark.side_by_side import Spread, alone, in_turns, ratio, timed
from hybridlib.study.run import Model, Run
from hybridlib.study.schema import Study
from hybridlib.training.meter import give_back
from hybridlib.training.models import parameter_count

# Names of contenders that ratios are made of.
PLAIN, REAL, JUMPING = "baseline", "hybrid, a real step", "memory_optimized, a real step"


def at_size(
    study: Study, device_choice: str, rounds: int, steps: int
) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """The ratios at a study's size; every block's time behind them (columns of `in_turns`), and a step's anatomy.

    `steps` is the length of a block, in real steps.
    """
    runs = {arm: study.run(arm, "text", study.pilot_seeds[0]) for arm in ("baseline", "hybrid", "memory_optimized")}
    plain = runs["baseline"]
    source, device = opened(plain, device_choice)
    hybrid, lean = (Hybrid(runs[arm], source, device, steps) for arm in ("hybrid", "memory_optimized"))
    contenders = {
        "Hugging Face Trainer": HuggingFace(plain, source, device, steps),
        "bare loop": BareLoop(plain, source, device, steps),
        "bare loop, same parts": SameParts(plain, source, device, steps),
        PLAIN: Hybrid(plain, source, device, steps),
        REAL: hybrid,
        JUMPING: lean,
    }
    times = in_turns(contenders, rounds)
    found = {
        "baseline_vs_hf_trainer": ratio(times, PLAIN, "Hugging Face Trainer"),
        "baseline_vs_bare_loop": ratio(times, PLAIN, "bare loop"),
        "hybrid_overhead": ratio(times, REAL, "bare loop, same parts"),
        "predicted_step_cost": Spread.of(pd.Series(hybrid.predicted[1:])),
        "predicted_step_cost_offloading": Spread.of(pd.Series(lean.predicted[1:])),
        "offload_share": offload_share(lean),
        "gemm_share": gemm_share(plain, times, device),
    }
    ratios = numbers(found | memory_ratios(runs, device_choice))
    return ratios, dict(times=times, anatomy=anatomy(plain, source, device, 2 * steps))


def offload_share(lean: Hybrid, repeats: int = 3) -> Spread:
    """What it takes to bring the optimizer's state off the device and back, over a cycle's time."""
    offload, device = lean.trainer.offload, lean.device
    offload.restore()  # a block may end in Predict, with the state away
    cycle = lean.run.schedule
    cycle_s = lean.nominal_s[-1] * (cycle.full + cycle.predict + cycle.correct)  # a block may have several
    leave = lambda: (offload.offload(), give_back())  # noqa: E731
    moved = [timed(leave, device) + timed(offload.restore, device) for _ in range(repeats)]
    return Spread.of(pd.Series(moved) / cycle_s)


def gemm_share(run: Run, times: pd.DataFrame, device: torch.device) -> Spread:
    """A real step's matrix products a second over those of this machine's own large product, in the run's precision."""
    dtype = torch.bfloat16 if run.precision == "bf16" else torch.float32
    rates = step_flops(run) / times[times.contender == PLAIN].seconds
    return Spread.of(rates / gemm_flops_per_s(device, dtype))


def memory_ratios(runs: dict[str, Run], device_choice: str) -> dict[str, Spread]:
    """Peak memory in Predict and of the whole run of `memory_optimized`, over the baseline's peak."""
    plain, lean = (peaks_mb(runs[arm], device_choice) for arm in ("baseline", "memory_optimized"))
    return {
        "predict_memory_ratio": Spread.of(pd.Series([lean["predict"] / plain["run"]])),
        "run_memory_ratio": Spread.of(pd.Series([lean["run"] / plain["run"]])),
    }


def numbers(found: dict[str, Spread]) -> dict[str, Any]:
    """Each median under its name, and the quartiles under `spread`."""
    spreads = {name: dict(low=round(spread.low, 4), high=round(spread.high, 4)) for name, spread in found.items()}
    return {name: round(spread.median, 4) for name, spread in found.items()} | {"spread": spreads}


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


# From the study's own size to GPT-2 Small: (layers, heads, width, output rows)
SIZES = [
    (4, 4, 128, 1024),
    (4, 4, 256, 1024),
    (6, 6, 384, 1024),
    (8, 8, 512, 1024),
    (12, 12, 768, 1024),
    (12, 12, 768, 50257),
]
BATCHES = [1, 4, 16, 64]


def grow(study: Study, device_choice: str, steps: int = 4) -> pd.DataFrame:
    """Both curves around a study's plain training; `over` tells them apart."""
    run = study.run("baseline", "text", study.pilot_seeds[0])
    curves = dict(parameters=by_parameters(run, device_choice, steps), tokens=by_tokens(run, device_choice, steps))
    return pd.concat(curve.assign(over=over) for over, curve in curves.items())


def by_parameters(run: Run, device_choice: str, steps: int) -> pd.DataFrame:
    """Columns `parameters, tokens, seconds, flops`: plain training's step over sizes, all else as in the run."""
    models = [
        Model(n_layer=layers, n_head=heads, n_embd=width, block_size=512, vocab_size=rows)
        for layers, heads, width, rows in SIZES
    ]
    return pd.DataFrame([_point(run.model_copy(update=dict(model=model)), device_choice, steps) for model in models])


def by_tokens(run: Run, device_choice: str, steps: int) -> pd.DataFrame:
    """The same over batch sizes."""
    return pd.DataFrame(
        [_point(run.model_copy(update=dict(batch_size=size)), device_choice, steps) for size in BATCHES]
    )


def _point(run: Run, device_choice: str, steps: int) -> dict[str, float]:
    source, device = opened(run, device_choice)
    plain = Hybrid(run, source, device, steps)
    plain()  # the first block loads libraries
    seconds = float(np.median(plain()))
    return dict(
        parameters=parameter_count(run.model),
        tokens=run.batch_size * run.seq_len,
        seconds=seconds,
        flops=step_flops(run),
    )
