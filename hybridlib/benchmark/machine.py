"""What this machine can do at best, and where a training step's time goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from hybridlib.benchmark.contenders import batch_of, opened
from hybridlib.benchmark.side_by_side import timed
from hybridlib.study import provenance
from hybridlib.study.parameters import OUTPUTS
from hybridlib.study.run import Run
from hybridlib.study.schema import Study
from hybridlib.training.assemble import device_name
from hybridlib.training.data import DataSource
from hybridlib.training.models import build, flops_per_token, linear_cross_entropy
from hybridlib.training.optimizers import make_optimizer

SIDE = 4096  # of the matrices of the large product
COPIED = 1 << 28  # bytes of the copy, larger than any cache but the last


def gemm_flops_per_s(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """Floating-point operations a second of a large matrix product, the median of some."""
    a, b = (torch.randn(SIDE, SIDE, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    seconds = [timed(lambda: torch.mm(a, b, out=out), device) for _ in range(repeats + 1)][1:]
    return 2 * SIDE**3 / float(np.median(seconds))


def subnormal_slowdown(device: torch.device, side: int = 1024, every: int = 64, repeats: int = 5) -> float:
    """How many times as long a product takes if one element in `every` is subnormal, medians in turns.

    Gradients underflow late in training: where this is far above 1, a run's steps slow down by their own numbers.
    """
    plain, other = (torch.randn(side, side, device=device) for _ in range(2))
    tiny = plain.clone()
    tiny.view(-1)[::every] = 1e-40
    seconds = [
        [timed(lambda each=each: torch.mm(each, other), device) for each in (tiny, plain)] for _ in range(repeats + 1)
    ][1:]
    slow, fast = np.median(seconds, axis=0)
    return float(slow / fast)


def copy_bytes_per_s(device: torch.device, repeats: int = 5) -> float:
    """Bytes a second that a copy reads and writes, the median of some."""
    source = torch.ones(COPIED // 4, device=device)
    target = torch.empty_like(source)
    seconds = [timed(lambda: target.copy_(source), device) for _ in range(repeats + 1)][1:]
    return 2 * COPIED / float(np.median(seconds))


def facts(study: Study, device_choice: str) -> dict[str, Any]:
    """What this machine can do at best, which machine and code it was, and what a study's time there went into."""
    run = study.run("baseline", "text", study.pilot_seeds[0])
    _, device = opened(run, device_choice)
    return dict(
        gemm_fp32_flops_per_s=gemm_flops_per_s(device, torch.float32),
        gemm_bf16_flops_per_s=gemm_flops_per_s(device, torch.bfloat16),
        copy_bytes_per_s=copy_bytes_per_s(device),
        subnormal_slowdown=subnormal_slowdown(device),
        training_share=training_share(OUTPUTS / study.study),
        device=device_name(device, run.threads),
        code=provenance.code(),
        versions=provenance.versions(),
        measured_at=provenance.now(),
    )


def step_flops(run: Run) -> int:
    """Floating-point operations of one real step, forward and backward."""
    return flops_per_token(run.model, run.seq_len) * run.batch_size * run.seq_len


def anatomy(run: Run, source: DataSource, device: torch.device, steps: int) -> pd.DataFrame:
    """Columns `part, seconds`: the median of each part of plain training's step."""
    model = build(run.model, run.seed).to(device)
    optimizer = make_optimizer(run.optimizer, model)
    parts: dict[str, list[float]] = {}

    @contextmanager
    def clock(part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        parts.setdefault(part, []).append(time.perf_counter() - started)

    for at in range(steps + 1):
        with clock("batch"):
            tokens, targets = batch_of(run, source, device, at)
        with torch.autocast(device.type, torch.bfloat16, enabled=run.precision == "bf16"):
            with clock("forward"):
                hidden = model.transformer(input_ids=tokens).last_hidden_state
            with clock("output head and loss, both ways"):
                loss = linear_cross_entropy(hidden.flatten(0, 1), model.lm_head.weight, targets.flatten())
        with clock("backward"):
            loss.backward()
        with clock("gradient norm"):
            float(torch.nn.utils.get_total_norm([w.grad for w in model.parameters() if w.grad is not None]))
        with clock("optimizer"):
            optimizer.step()
            optimizer.zero_grad()
    return pd.DataFrame([dict(part=part, seconds=float(np.median(found[1:]))) for part, found in parts.items()])


def training_share(study_folder: Path) -> float | None:
    """Seconds inside steps over the seconds of all jobs, chapters and report included; None before a study has run.

    Runs that the pipeline did not time are left out of both.
    """
    try:
        jobs = pd.read_csv(study_folder / "results" / "pipeline.csv").set_index("job")
        jobs_s = pd.to_numeric(jobs.seconds, errors="coerce").dropna()
    except (OSError, ValueError, KeyError, AttributeError):  # not there yet, or damaged
        return None
    runs = [steps for steps in study_folder.glob("runs/*/steps.csv") if steps.parent.name in jobs_s]
    steps_s = sum(pd.read_csv(steps, usecols=["step_s"]).step_s.sum() for steps in runs)
    return float(steps_s / jobs_s.sum()) if len(jobs_s) else None
