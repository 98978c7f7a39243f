"""Peak memory by phase, each run in a process of its own: what one leaves behind is in no other's peak."""

import tempfile
from pathlib import Path

from hybridlib.study.run import Run
from hybridlib.benchmark.alone import alone
from hybridlib.benchmark.contenders import batch_of, opened
from hybridlib.training.assemble import make_trainer, warm_up_kernels
from hybridlib.training.checkpoint import CheckpointFile
from hybridlib.training.memory import give_back
from hybridlib.training.meter import Meter


def peaks_mb(run: Run, device: str, cycles: int = 2) -> dict[str, float]:
    """Peak memory in MB above the process's floor, by phase and as `run`, over Warmup and some cycles."""
    with tempfile.TemporaryDirectory() as folder:
        return alone(_peaks_mb, run, device, cycles, Path(folder) / "checkpoint.safetensors")


def _peaks_mb(run: Run, device_choice: str, cycles: int, checkpoint: Path) -> dict[str, float]:
    source, device = opened(run, device_choice)
    warm_up_kernels(run, device)
    give_back()
    meter = Meter(device)
    snapshots = CheckpointFile(checkpoint, dict, {}, run.snapshot_every)  # one in memory would count as the trainer's own
    trainer = make_trainer(run, device, meter=meter, snapshots=snapshots)
    cycle = run.schedule
    steps = cycle.warmup + cycles * (cycle.full + cycle.predict + cycle.correct) if cycle else 20
    found: dict[str, float] = {}
    for _ in range(steps):
        record = trainer.step(batch_of(run, source, device, trainer.real_steps))
        found[record.phase] = max(found.get(record.phase, 0.0), record.peak_mb)
    return found | {"run": max(found.values())}
