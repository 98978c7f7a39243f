"""What is measured, one function a process: the machine, one size's figures, and how a step grows."""

from typing import Any

import pandas as pd
import torch

from hybridlib import provenance
from hybridlib.config import Study
from hybridlib.speed import machine, scaling
from hybridlib.speed.measure import at_size
from hybridlib.speed.share import training_share
from hybridlib.studies import OUTPUTS
from hybridlib.training.assemble import device_name, pick_device
from hybridlib.training.data import open_source


def size(study: Study, device_choice: str, rounds: int, steps: int) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """The ratios at a study's size, the times behind them, and a step's anatomy."""
    ratios, times = at_size(study, device_choice, rounds, steps)
    run = study.run("baseline", "text", study.pilot_seeds[0])
    source = open_source(run.source, run.model.vocab_size, run.batch_size, run.seq_len)
    return ratios, dict(times=times, anatomy=machine.anatomy(run, source, pick_device(device_choice, run.threads), 2 * steps))


def grow(study: Study, device_choice: str) -> pd.DataFrame:
    run = study.run("baseline", "text", study.pilot_seeds[0])
    device = pick_device(device_choice, run.threads)
    curves = scaling.by_parameters(run, device, 4), scaling.by_tokens(run, device, 4)
    return pd.concat(curve.assign(over=over) for curve, over in zip(curves, ("parameters", "tokens")))


def facts(study: Study, device_choice: str) -> dict[str, Any]:
    """What this machine can do at best, and which machine and code it was."""
    run = study.run("baseline", "text", study.pilot_seeds[0])
    device = pick_device(device_choice, run.threads)
    rates = {f"gemm_{name}_flops_per_s": machine.gemm_flops_per_s(device, dtype) for name, dtype in
             dict(fp32=torch.float32, bf16=torch.bfloat16).items()}
    share = dict(training_share=training_share(OUTPUTS / study.study))
    return rates | share | dict(copy_bytes_per_s=machine.copy_bytes_per_s(device), device=device_name(device, run.threads),
                        code=provenance.code(), versions=provenance.versions(), measured_at=provenance.now())
