"""Peak memory by phase, each run in a process of its own: what one leaves behind is in no other's peak."""

from hybridlib.config import Run
from hybridlib.speed.alone import alone
from hybridlib.speed.contenders import batch_of, opened
from hybridlib.training.assemble import make_trainer, warm_up_kernels
from hybridlib.training.memory import give_back
from hybridlib.training.meter import Meter


def peaks_mb(run: Run, device: str, cycles: int = 2) -> dict[str, float]:
    """Peak memory in MB above the process's floor, by phase and as `run`, over Warmup and some cycles."""
    return alone(_peaks_mb, run, device, cycles)


def _peaks_mb(run: Run, device_choice: str, cycles: int) -> dict[str, float]:
    source, device = opened(run, device_choice)
    warm_up_kernels(run, device)
    give_back()
    meter = Meter(device)
    trainer = make_trainer(run, device, meter=meter)
    cycle = run.schedule
    steps = cycle.warmup + cycles * (cycle.full + cycle.predict + cycle.correct) if cycle else 20
    found: dict[str, float] = {}
    for _ in range(steps):
        record = trainer.step(batch_of(run, source, device, trainer.real_steps))
        found[record.phase] = max(found.get(record.phase, 0.0), record.peak_mb)
    return found | {"run": max(found.values())}
