"""What this machine can do at best, and where a training step's time goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch

from hybridlib.benchmark.contenders import Workload
from hybridlib.benchmark.side_by_side import median_s, timed
from hybridlib.study import provenance
from hybridlib.study.run import Run
from hybridlib.study.schema import Study
from hybridlib.training.assemble import device_name, pick_device
from hybridlib.training.loss import linear_cross_entropy
from hybridlib.training.models import build, flops_per_token
from hybridlib.training.objective import norm_of_gradients
from hybridlib.training.optimizers import make_optimizer

SIDE = 4096  # of the matrices of the large product
COPIED = 1 << 28  # bytes of the copy, larger than any cache but the last
REPEATS = 5  # of each measurement, whose median counts


def gemm_flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations a second of a large matrix product of `dtype` on `device`."""
    a, b = (torch.randn(SIDE, SIDE, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * SIDE**3 / median_s(lambda: torch.mm(a, b, out=out), device, REPEATS)


def subnormal_slowdown(device: torch.device, side: int = 1024, every: int = 64, repeats: int = REPEATS) -> float:
    """Return how many times as long a product of `side` rows takes on `device` if one element in `every` is subnormal.

    The ratio of the medians of `repeats` turns. Gradients underflow late in training: where the ratio is far above 1, a
    run's own numbers slow its steps down.
    """
    plain, other = (torch.randn(side, side, device=device) for _ in range(2))
    tiny = plain.clone()
    tiny.view(-1)[::every] = 1e-40
    seconds = [
        [timed(lambda each=each: torch.mm(each, other), device) for each in (tiny, plain)] for _ in range(repeats + 1)
    ][1:]
    slow, fast = np.median(seconds, axis=0)
    return float(slow / fast)


def copy_bytes_per_s(device: torch.device) -> float:
    """Return the bytes a second that a copy on `device` reads and writes."""
    source = torch.ones(COPIED // 4, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED / median_s(lambda: target.copy_(source), device, REPEATS)


def facts(study: Study, device_choice: str) -> dict[str, Any]:
    """Return what this machine can do at best at the precisions of `study`, and what it and the code are.

    `device_choice` is the name given to `pick_device`.
    """
    run = study.timed_run("baseline")
    device = pick_device(device_choice, run.threads)
    return dict(
        gemm_fp32_flops_per_s=gemm_flops_per_s(device, torch.float32),
        gemm_bf16_flops_per_s=gemm_flops_per_s(device, torch.bfloat16),
        copy_bytes_per_s=copy_bytes_per_s(device),
        subnormal_slowdown=subnormal_slowdown(device),
        device=device_name(device, run.threads),
        code=provenance.code(),
        versions=provenance.versions(),
        measured_at=provenance.now(),
    )


def step_flops(run: Run) -> int:
    """Return the floating-point operations of one computed step of `run`, forward and backward."""
    return flops_per_token(run.model, run.seq_len) * run.batch_size * run.seq_len


def anatomy(work: Workload, steps: int) -> pd.DataFrame:
    """Return the parts of plain training's step on `work`, columns `part, seconds`: medians over `steps` steps."""
    model = build(work.run.model, work.run.seed).to(work.device)
    optimizer = make_optimizer(work.run.optimizer, model)
    parts: dict[str, list[float]] = {}

    @contextmanager
    def clock(part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if work.device.type == "cuda":
            torch.cuda.synchronize(work.device)
        parts.setdefault(part, []).append(time.perf_counter() - started)

    for at in range(steps + 1):
        with clock("batch"):
            tokens, targets = work.batch(at)
        with work.autocast():
            with clock("forward"):
                hidden = model.transformer(input_ids=tokens).last_hidden_state
            with clock("output head and loss, both ways"):
                loss = linear_cross_entropy(hidden.flatten(0, 1), model.lm_head.weight, targets.flatten())
        with clock("backward"):
            loss.backward()
        with clock("gradient norm"):
            norm_of_gradients(list(model.named_parameters()))
        with clock("optimizer"):
            optimizer.step()
            optimizer.zero_grad()
    return pd.DataFrame([dict(part=part, seconds=float(np.median(found[1:]))) for part, found in parts.items()])
