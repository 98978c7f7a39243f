"""A run's parts, made from its parameters: device, model, optimizer, schedule, predictor, guards."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from hybridlib.method.guards import DivergenceMonitor
from hybridlib.method.offload import OptimizerOffload
from hybridlib.method.optimizer import HybridOptimizer
from hybridlib.method.predictors import make_predictor
from hybridlib.method.schedule import PhaseSchedule
from hybridlib.study import provenance
from hybridlib.study.arm import Schedule
from hybridlib.study.run import Run
from hybridlib.training.checkpoint import CheckpointFile
from hybridlib.training.loss import Batch, loss_fn
from hybridlib.training.meter import Meter
from hybridlib.training.models import build
from hybridlib.training.objective import Objective
from hybridlib.training.optimizers import WeightAverage, make_optimizer
from hybridlib.training.trainer import HybridTrainer


def pick_device(name: str, threads: int) -> torch.device:
    """Return the device `name`; `auto` is the first GPU, or else the CPU.

    Sets torch to `threads` CPU threads and deterministic algorithms. Raises `ValueError` for a GPU that is not there.
    """
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # it would write each new tensor twice
    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {name}: this machine has no usable CUDA GPU; use cpu or auto")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name}: this machine's last CUDA GPU is cuda:{torch.cuda.device_count() - 1}")
    return device


@contextmanager
def subnormals_as_zero() -> Iterator[None]:
    """While the block runs, take subnormal numbers for zero: backward passes make many, which are slow to multiply.

    Some processors take many times as long for them. Threads that torch has started before do not follow.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def device_name(device: torch.device, threads: int) -> str:
    """Return what records call `device`: the name of its hardware, with the number of CPU `threads` if it is a CPU."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    return f"cpu: {provenance.processor()}, {threads} threads"


def warm_up_kernels(run: Run, device: torch.device) -> None:
    """Train one layer of the model of `run` for a cycle on `device`, and discard it.

    Libraries are then loaded, and count neither in a step's time nor in its memory.
    """
    small = run.model.model_copy(update=dict(n_layer=1, vocab_size=min(run.model.vocab_size, 1024)))
    cycle = run.schedule and Schedule(warmup=1, full=1, predict=1, correct=1)
    trainer = make_trainer(run.model_copy(update=dict(model=small, schedule=cycle, compile=False)), device)
    tokens = torch.zeros((run.batch_size, run.seq_len), dtype=torch.int64, device=device)
    for _ in range(4):
        trainer.step((tokens, tokens))
    del trainer
    gc.collect()  # models and optimizers hold one another


def schedule_of(run: Run) -> PhaseSchedule:
    """Return the schedule of `run` as a state machine; plain training has Full phases only."""
    lengths = run.schedule.model_dump() if run.schedule else dict(warmup=10, full=40, predict=0, correct=0)
    return PhaseSchedule(**lengths, total=run.steps)


def loss_of(run: Run) -> Callable[[nn.Module, Batch], Tensor]:
    """Return the loss that `run` minimizes: compiled where it says so, and lean where it sums over micro-batches."""
    return torch.compile(loss_fn) if run.compile else partial(loss_fn, in_place=run.accumulation > 1)


def make_trainer(
    run: Run, device: torch.device, *, snapshots: CheckpointFile | None = None, meter: Meter | None = None
) -> HybridTrainer:
    """Return a trainer for `run` with its model on `device`; `snapshots` and `meter` are as for `HybridTrainer`."""
    schedule, guards = schedule_of(run), run.guards.model_dump()
    model = build(run.model, run.seed).to(device)
    average = WeightAverage(run.read_out_steps)
    wrapped = make_optimizer(run.optimizer, model)
    chosen = dict(name=run.predictor.name, **run.predictor.settings) if run.predictor else dict(name="hold")
    optimizer = HybridOptimizer(
        wrapped,
        model.named_parameters(),
        schedule,
        make_predictor(**chosen),
        moments=run.moments,
        jump_margin_nats=guards.pop("jump_margin_nats"),
    )
    return HybridTrainer(
        optimizer,
        Objective(model, loss_of(run), run.accumulation, run.precision),
        monitor=DivergenceMonitor(**guards),
        snapshots=snapshots,
        snapshot_every=run.snapshot_every,
        offload=OptimizerOffload(optimizer) if run.memory == "offload" else None,
        meter=meter,
        average=average,
        clip_norm=run.clip_norm,
    )
