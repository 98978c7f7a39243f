"""A run's parts, put together from its parameters: device, model, optimizer, schedule, predictor, guards."""

from typing import Any

import torch

from hybridlib.method.guards import DivergenceMonitor
from hybridlib.method.offload import OptimizerOffload
from hybridlib.method.optimizer import HybridOptimizer
from hybridlib.method.predictors import make_predictor
from hybridlib.method.predictors.base import Predictor
from hybridlib.method.schedule import PhaseSchedule
from hybridlib.study import provenance
from hybridlib.study.arm import Schedule
from hybridlib.study.run import Run
from hybridlib.training.checkpoint import Snapshots
from hybridlib.training.models import build, loss_fn
from hybridlib.training.objective import Objective
from hybridlib.training.optimizers import make_optimizer
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
    """Return model, optimizer, schedule, predictor and guards of a run, put together.

    Args:
        run: its parameters.
        device: where the model lies.
        storage: `snapshots` and `meter`, as for `HybridTrainer`.
    """
    model, guards = build(run.model, run.seed).to(device), run.guards.model_dump()
    optimizer = HybridOptimizer(
        make_optimizer(run.optimizer, model),
        model.named_parameters(),
        schedule_of(run),
        predictor_of(run),
        moments=run.moments,
        jump_margin_nats=guards.pop("jump_margin_nats"),
    )
    storage.setdefault("snapshots", Snapshots(run.snapshot_every))
    return HybridTrainer(
        optimizer,
        Objective(model, torch.compile(loss_fn) if run.compile else loss_fn, run.accumulation, run.precision),
        monitor=DivergenceMonitor(**guards),
        offload=OptimizerOffload(optimizer) if run.memory == "offload" else None,
        **storage,
    )


def predictor_of(run: Run) -> Predictor:
    """Return the run's predictor; plain training has one that is never asked."""
    return make_predictor(run.predictor.name, **run.predictor.settings) if run.predictor else make_predictor("hold")


def warm_up_kernels(run: Run, device: torch.device) -> None:
    """A throw-away cycle of one layer, so that loading libraries is neither in a step's time nor in its memory."""
    small = run.model.model_copy(update=dict(n_layer=1, vocab_size=min(run.model.vocab_size, 1024)))
    cycle = run.schedule and Schedule(warmup=1, full=1, predict=1, correct=1)
    trainer = make_trainer(run.model_copy(update=dict(model=small, schedule=cycle, compile=False)), device)
    tokens = torch.zeros((run.batch_size, run.seq_len), dtype=torch.int64, device=device)
    for _ in range(4):
        trainer.step((tokens, tokens))
