"""A run's parts, put together from its parameters: device, model, optimizer, schedule, predictor, guards."""

from typing import Any

import torch

from hybridlib import provenance
from hybridlib.config import Run, Schedule
from hybridlib.training.guards import DivergenceMonitor
from hybridlib.training.memory import KeepOnDevice, PredictAware
from hybridlib.training.models import build, loss_fn
from hybridlib.training.optimizers import make_optimizer
from hybridlib.training.phases import PhaseSchedule
from hybridlib.training.predictors import make_predictor
from hybridlib.training.read_out import ReadOut
from hybridlib.training.trainer import HybridTrainer


def pick_device(name: str, threads: int) -> torch.device:
    """`auto` is the first GPU, else the CPU. Sets the number of threads; all algorithms are deterministic."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {name}: this machine has no usable CUDA GPU; use cpu or auto")
    return torch.device(name)


def device_name(device: torch.device, threads: int) -> str:
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    return f"cpu: {provenance.processor()}, {threads} threads"


def schedule_of(run: Run) -> PhaseSchedule:
    """The run's schedule as a state machine; plain training has Full phases only."""
    lengths = run.schedule.model_dump() if run.schedule else dict(warmup=10, full=40, predict=0, correct=0)
    return PhaseSchedule(**lengths, total=run.steps)


def make_trainer(run: Run, device: torch.device, **storage: Any) -> HybridTrainer:
    """Model, optimizer, schedule, predictor and guards of a run, put together."""
    model = build(run.model, run.seed).to(device)
    optimizer = make_optimizer(run.optimizer, model)
    name, options = (run.predictor.name, run.predictor.settings) if run.predictor else ("hold", {})
    guards = run.guards.model_dump()
    return HybridTrainer(
        model,
        optimizer,
        torch.compile(loss_fn) if run.compile else loss_fn,
        schedule_of(run),
        make_predictor(name, **options),
        accumulation=run.accumulation,
        precision=run.precision,
        memory=PredictAware(optimizer) if run.memory == "offload" else KeepOnDevice(),
        jump_margin_nats=guards.pop("jump_margin_nats"),
        monitor=DivergenceMonitor(**guards),
        snapshot_every=run.snapshot_every,
        moments=run.moments,
        read_out=ReadOut(run.read_out_steps),
        **storage,
    )


def warm_up_kernels(run: Run, device: torch.device) -> None:
    """A throw-away cycle of one layer, so that loading libraries is neither in a step's time nor in its memory."""
    small = run.model.model_copy(update=dict(n_layer=1, vocab_size=min(run.model.vocab_size, 1024)))
    cycle = run.schedule and Schedule(warmup=1, full=1, predict=1, correct=1)
    trainer = make_trainer(run.model_copy(update=dict(model=small, schedule=cycle, compile=False)), device)
    tokens = torch.zeros((run.batch_size, run.seq_len), dtype=torch.int64, device=device)
    for _ in range(4):
        trainer.step((tokens, tokens))
