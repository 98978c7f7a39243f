"""All figures of speed at a study's size, as numbers with their spread."""

from typing import Any

import numpy as np
import pandas as pd
import torch

from hybridlib.benchmark.contenders import BareLoop, HuggingFace, Hybrid, SameParts, Workload, cycle_steps, peaks_mb
from hybridlib.benchmark.machine import anatomy, gemm_flops_per_s, step_flops
from hybridlib.benchmark.side_by_side import Spread, alone, in_turns, ratio, timed
from hybridlib.study.progress import pace
from hybridlib.study.run import Model, Run
from hybridlib.study.schema import Study
from hybridlib.training.assemble import pick_device, subnormals_as_zero
from hybridlib.training.meter import give_back
from hybridlib.training.models import parameter_count

# Names of contenders that ratios are made of.
PLAIN, REAL = "baseline", "hybrid, a real step"


def at_size(
    study: Study, device_choice: str, rounds: int, steps: int
) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """Return the ratios at the size of `study`, the `times` of all blocks behind them, and the `anatomy` of a step.

    Each contender has `rounds` blocks of `steps` computed steps; `device_choice` is the name given to `pick_device`.
    What is a ratio within one run is taken in a process that has that run alone, as a study's runs have.
    """
    runs = {arm: study.timed_run(arm) for arm in ("baseline", "hybrid", "memory_optimized")}
    # First, while this process is small: stores in files are fast only while the system's cache has room for them.
    pace_alone, hybrid, lean = (alone(_by_itself, run, device_choice, rounds, steps) for run in runs.values())
    memory = memory_ratios(runs, device_choice, rounds)
    plain = Workload.of(runs["baseline"], device_choice)
    contenders = {
        "Hugging Face Trainer": HuggingFace(plain, steps),
        "bare loop": BareLoop(plain, steps),
        "bare loop, same parts": SameParts(plain, steps),
        PLAIN: Hybrid(plain, steps),
        REAL: Hybrid(Workload(runs["hybrid"], plain.source, plain.device), steps),
    }
    with subnormals_as_zero():
        times = in_turns(contenders, rounds)
    found = {
        "baseline_vs_hf_trainer": ratio(times, PLAIN, "Hugging Face Trainer"),
        "baseline_vs_bare_loop": ratio(times, PLAIN, "bare loop"),
        "hybrid_overhead": ratio(times, REAL, "bare loop, same parts"),
        "predicted_step_cost": hybrid["predicted_step_cost"],
        "predicted_step_cost_offloading": lean["predicted_step_cost"],
        "predicted_step_cost_offloading_vs_baseline": in_steps_of(pace_alone, lean),
        "offload_share": lean["offload_share"],
        "gemm_share": gemm_share(plain, times),
        "pace": pace_alone["pace"],
    } | memory
    return numbers(found), dict(times=times, anatomy=anatomy(plain, 2 * steps))


def memory_ratios(runs: dict[str, Run], device_choice: str, rounds: int) -> dict[str, Spread]:
    """Return the peaks of the arms in `runs` over the baseline's; `device_choice` and `rounds` as for `at_size`.

    What an allocator keeps on a CPU differs from run to run, so there each arm is run `rounds` times.
    """
    times = 1 if pick_device(device_choice, runs["baseline"].threads).type == "cuda" else rounds
    peaks = [{arm: peaks_mb(run, device_choice) for arm, run in runs.items()} for _ in range(times)]

    def over_baseline(arm: str, when: str) -> Spread:
        return Spread.of([each[arm][when] / each["baseline"]["run"] for each in peaks])

    return {
        "predict_memory_ratio": over_baseline("memory_optimized", "predict"),
        "run_memory_ratio": over_baseline("memory_optimized", "run"),
        "hybrid_run_memory_ratio": over_baseline("hybrid", "run"),
    }


def _by_itself(run: Run, device_choice: str, rounds: int, steps: int) -> dict[str, Spread]:
    contender = Hybrid(Workload.of(run, device_choice), steps if run.schedule else 4 * steps)  # enough for a tenth
    with subnormals_as_zero():
        blocks = [contender() for _ in range(2 * rounds + 1)]  # a jump is short beside the noise of its block
        real_s = np.concatenate(blocks[1:])  # the first has the run's Warmup in it
        found = dict(pace=Spread.of([pace(real_s)[0]]), step_s=Spread.of(real_s))
        if run.schedule:
            found |= dict(predicted_step_cost=Spread.of(contender.predicted[1:]))
        return found | (dict(offload_share=offload_share(contender)) if run.memory == "offload" else {})


def in_steps_of(plain: dict[str, Spread], lean: dict[str, Spread]) -> Spread:
    """Return the cost of a predicted step of `lean` over a computed one of `plain`, instead of its own."""
    cost, steps = lean["predicted_step_cost"], lean["step_s"].median / plain["step_s"].median
    return Spread(cost.median * steps, cost.low * steps, cost.high * steps)


def offload_share(lean: Hybrid, repeats: int = 3) -> Spread:
    """Return the time to offload and restore the optimizer's state of `lean`, over that of a cycle, `repeats` times."""
    offload, device = lean.trainer.offload, lean.work.device
    offload.restore()  # a block may end in Predict, with the state away
    cycle_s = lean.nominal_s[-1] * cycle_steps(lean.work.run)  # a block may have several cycles
    leave = lambda: (offload.offload(), give_back())  # noqa: E731
    moved = [timed(leave, device) + timed(offload.restore, device) for _ in range(repeats)]
    return Spread.of(pd.Series(moved) / cycle_s)


def gemm_share(work: Workload, times: pd.DataFrame) -> Spread:
    """Return the operations a second of a computed step of `work` over those of this machine's large product.

    The step's seconds are in `times`, as `in_turns` returns them; the product is in the run's precision.
    """
    dtype = torch.bfloat16 if work.run.precision == "bf16" else torch.float32
    rates = step_flops(work.run) / times[times.contender == PLAIN].seconds
    return Spread.of(rates / gemm_flops_per_s(work.device, dtype))


def numbers(found: dict[str, Spread]) -> dict[str, Any]:
    """Return each median of `found` under its name, and the quartiles under `spread`."""
    spreads = {name: dict(low=round(spread.low, 4), high=round(spread.high, 4)) for name, spread in found.items()}
    return {name: round(spread.median, 4) for name, spread in found.items()} | {"spread": spreads}


RUNGS = ["baseline_bf16", "hybrid", "hybrid_bf16", "hybrid_accumulation", "hybrid_offload", "memory_optimized"]


def climb(study: Study, device_choice: str, rounds: int, steps: int) -> pd.DataFrame:
    """Return nominal steps a second over plain training's, with quartiles: columns `speedup, low, high, rung`.

    Arguments are as for `at_size` (`study`, `device_choice`, `rounds`, `steps`). Every rung has a process of its own,
    so that what one leaves in memory slows no other.
    """
    plain, *others = map(study.timed_run, ("baseline", *RUNGS))
    spreads = [Spread.of(alone(_speedups, run, plain, device_choice, rounds, steps)) for run in others]
    return pd.DataFrame(spreads).rename(columns=dict(median="speedup")).assign(rung=RUNGS)


def _speedups(run: Run, plain: Run, device_choice: str, rounds: int, steps: int) -> list[float]:
    work = Workload.of(plain, device_choice)
    pair = [Hybrid(Workload(each, work.source, work.device), steps) for each in (plain, run)]
    with subnormals_as_zero():
        for _ in range(rounds + 1):  # the first round loads libraries, and has the run's Warmup in it
            for contender in pair:
                contender()
    return [a / b for a, b in zip(*(contender.nominal_s[1:] for contender in pair))]


# From the study's own size to GPT-2 Small: (layers = heads, width, output rows)
SIZES = [(4, 128, 1024), (4, 256, 1024), (6, 384, 1024), (8, 512, 1024), (12, 768, 1024), (12, 768, 50257)]
BATCHES = [1, 4, 16, 64]


def grow(study: Study, device_choice: str, steps: int = 4) -> pd.DataFrame:
    """Return the median seconds of `steps` plain steps over model sizes and over batch sizes, all else as in `study`.

    Columns `parameters, tokens, seconds, flops, over`; `device_choice` is the name given to `pick_device`.
    """
    run = study.timed_run("baseline")
    used = run.source.tokenizer_vocab or 0
    models = [
        Model(n_layer=layers, n_head=layers, n_embd=width, block_size=max(512, run.seq_len), vocab_size=max(rows, used))
        for layers, width, rows in SIZES
    ]
    changes = [("parameters", dict(model=model)) for model in models]
    changes += [("tokens", dict(batch_size=size)) for size in BATCHES]
    return pd.DataFrame(
        [_point(run.model_copy(update=change), device_choice, steps) | dict(over=over) for over, change in changes]
    )


def _point(run: Run, device_choice: str, steps: int) -> dict[str, float]:
    plain = Hybrid(Workload.of(run, device_choice), steps)
    plain()  # the first block loads libraries
    return dict(
        parameters=parameter_count(run.model),
        tokens=run.batch_size * run.seq_len,
        seconds=float(np.median(plain())),
        flops=step_flops(run),
    )
