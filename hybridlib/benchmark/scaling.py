"""How a step's time grows with the model and with the tokens of a step."""

import numpy as np
import pandas as pd

from hybridlib.study.run import Model, Run
from hybridlib.benchmark.contenders import Hybrid, opened
from hybridlib.benchmark.machine import step_flops
from hybridlib.study.schema import Study
from hybridlib.training.models import parameter_count

# From the study's own size to GPT-2 Small: (layers, heads, width, output rows)
SIZES = [(4, 4, 128, 1024), (4, 4, 256, 1024), (6, 6, 384, 1024), (8, 8, 512, 1024), (12, 12, 768, 1024), (12, 12, 768, 50257)]
BATCHES = [1, 4, 16, 64]


def grow(study: Study, device_choice: str, steps: int = 4) -> pd.DataFrame:
    """Both curves around a study's plain training; `over` tells them apart."""
    run = study.run("baseline", "text", study.pilot_seeds[0])
    curves = dict(parameters=by_parameters(run, device_choice, steps), tokens=by_tokens(run, device_choice, steps))
    return pd.concat(curve.assign(over=over) for over, curve in curves.items())


def by_parameters(run: Run, device_choice: str, steps: int) -> pd.DataFrame:
    """Columns `parameters, tokens, seconds, flops`: plain training's step over sizes, all else as in the run."""
    models = [Model(n_layer=layers, n_head=heads, n_embd=width, block_size=512, vocab_size=rows) for layers, heads, width, rows in SIZES]
    return pd.DataFrame([_point(run.model_copy(update=dict(model=model)), device_choice, steps) for model in models])


def by_tokens(run: Run, device_choice: str, steps: int) -> pd.DataFrame:
    """The same over batch sizes."""
    return pd.DataFrame([_point(run.model_copy(update=dict(batch_size=size)), device_choice, steps) for size in BATCHES])


def _point(run: Run, device_choice: str, steps: int) -> dict[str, float]:
    source, device = opened(run, device_choice)
    plain = Hybrid(run, source, device, steps)
    plain()  # the first block loads libraries
    seconds = float(np.median(plain()))
    return dict(
        parameters=parameter_count(run.model), tokens=run.batch_size * run.seq_len, seconds=seconds, flops=step_flops(run)
    )
