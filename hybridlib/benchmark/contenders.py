"""What is timed against what: Hugging Face's Trainer, loops written by hand, and HybridTrainer, on the same run."""

import math
import statistics
import tempfile
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from hybridlib.benchmark.side_by_side import alone, timed
from hybridlib.method.schedule import Phase
from hybridlib.study.records import RunFolder
from hybridlib.study.run import Run
from hybridlib.training.assemble import make_trainer, pick_device, warm_up_kernels
from hybridlib.training.checkpoint import CheckpointFile
from hybridlib.training.data import DataSource, open_source
from hybridlib.training.loss import Batch, loss_fn
from hybridlib.training.meter import Meter, give_back
from hybridlib.training.models import build
from hybridlib.training.optimizers import make_optimizer


@dataclass(frozen=True)
class Workload:
    """What a contender trains: a `run` on batches of a `source`, on a `device`."""

    run: Run
    source: DataSource
    device: torch.device

    @classmethod
    def of(cls, run: Run, device_choice: str) -> "Workload":
        """Open the data of `run`; `device_choice` is the name given to `pick_device`."""
        source = open_source(run.source, run.model.vocab_size, run.batch_size, run.seq_len)
        return cls(run, source, pick_device(device_choice, run.threads))

    def batch(self, step: int) -> Batch:
        """Return the batch of computed step `step`, on the device."""
        return tuple(part.to(self.device) for part in self.source.batch(self.run.seed, step))

    def autocast(self) -> torch.autocast:
        """Return the context of the run's precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.run.precision == "bf16")


class BareLoop:
    """Plain training of `work` as anyone would write it, with PyTorch's loss and Adam: `steps` a block."""

    def __init__(self, work: Workload, steps: int) -> None:
        self.work, self.steps, self.at = work, steps, count()
        self.model = build(work.run.model, work.run.seed).to(work.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=work.run.optimizer.lr)

    def __call__(self) -> list[float]:
        return [timed(self._step, self.work.device) for _ in range(self.steps)]

    def _step(self) -> None:
        batch = self.work.batch(next(self.at))
        with self.work.autocast():
            loss = self._loss(batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss.item()

    def _loss(self, batch: Batch) -> Tensor:
        tokens, targets = batch
        return F.cross_entropy(self.model(input_ids=tokens).logits.flatten(0, 1).float(), targets.flatten())


class SameParts(BareLoop):
    """The bare loop with the study's loss and optimizer, without HybridTrainer: `steps` of `work` a block."""

    def __init__(self, work: Workload, steps: int) -> None:
        super().__init__(work, steps)
        self.optimizer = make_optimizer(work.run.optimizer, self.model)

    def _loss(self, batch: Batch) -> Tensor:
        return loss_fn(self.model, batch)


class Hybrid:
    """HybridTrainer on `work`, with records. A block returns the seconds of its computed steps.

    A block has `steps` computed steps; with a schedule, as many whole cycles as have about so many. `predicted` has a
    row a block, the cost of a predicted step over that of a computed one: the seconds of Predict, and those by which
    the first computed step after it is longer than the median one, shared among the predicted ones. So it includes the
    return of what was offloaded. What slows the other computed steps shows in their own times.
    """

    def __init__(self, work: Workload, steps: int) -> None:
        self.work, cycle = work, work.run.schedule
        cycles = max(1, round(steps / (cycle.full + cycle.correct))) if cycle else 0
        self.nominal_steps = cycles * cycle_steps(work.run) if cycle else steps
        self.trainer = make_trainer(work.run, work.device)
        self.trainer.snapshot_every = math.inf  # none at all: what all arms do is no cost of a predicted step
        self.folder = tempfile.TemporaryDirectory()
        self.records = RunFolder(Path(self.folder.name))
        self.nominal_s: list[float] = []  # seconds of a nominal step, a value a block
        self.predicted: list[float] = []

    def __call__(self) -> list[float]:
        real, predicted, landings = [], [], []
        for _ in range(self.nominal_steps):
            state, before = self.trainer.state, len(real)
            (real if state.real else predicted).append(timed(self._step, self.work.device))
            if state.phase is Phase.CORRECT and state.index == 0:
                landings.append(before)
        self.records.flush()
        self.nominal_s.append((sum(real) + sum(predicted)) / self.nominal_steps)
        if predicted:
            typical = statistics.median(real)
            delays = sum(real[at] - typical for at in landings)
            self.predicted.append((sum(predicted) + delays) / typical / len(predicted))
        return real

    def _step(self) -> None:
        trainer = self.trainer  # which takes no batch in Predict: to make one is off a run's clock, too
        self.records.add(trainer.step(self.work.batch(trainer.real_steps) if trainer.state.real else None))


def cycle_steps(run: Run) -> int:
    """Return the nominal steps of a cycle of `run`, which has a schedule."""
    return run.schedule.full + run.schedule.predict + run.schedule.correct


class HuggingFace:
    """transformers' own Trainer on the model, batches and precision of `work`, saving and logging nothing.

    A block has `steps` steps. Times lie between the ends of steps, so one more, which sets the Trainer up, is left out.
    """

    def __init__(self, work: Workload, steps: int) -> None:
        run, device = work.run, work.device
        self.model = build(run.model, run.seed).to(device)
        self.rows = Rows(work, steps + 1)
        self.options = dict(
            per_device_train_batch_size=run.batch_size, max_steps=steps + 1, learning_rate=run.optimizer.lr,
            save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True, lr_scheduler_type="constant",
            max_grad_norm=0.0, bf16=run.precision == "bf16", use_cpu=device.type == "cpu", dataloader_num_workers=0,
            optim="adamw_torch", dataloader_pin_memory=device.type == "cuda", weight_decay=0.0,
        )  # fmt: skip

    def __call__(self) -> list[float]:
        ends = StepEnds()
        with tempfile.TemporaryDirectory() as folder:
            options = TrainingArguments(output_dir=folder, **self.options)
            trainer = Trainer(self.model, options, train_dataset=self.rows, callbacks=[ends])
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return [after - before for before, after in zip(ends.at_s, ends.at_s[1:])]


class StepEnds(TrainerCallback):
    """Notes the time at the end of each step, the device's outstanding work included."""

    def __init__(self) -> None:
        self.at_s: list[float] = []

    def on_step_end(self, *_args: object, **_kwargs: object) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.at_s.append(time.perf_counter())


class Rows(Dataset):
    """The rows of the first `steps` batches of `work`, as a Trainer wants them; it shifts the labels itself."""

    def __init__(self, work: Workload, steps: int) -> None:
        self.rows = [row for step in range(steps) for row in work.source.batch(work.run.seed, step)[0]]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return dict(input_ids=self.rows[index], labels=self.rows[index])


def peaks_mb(run: Run, device_choice: str, cycles: int = 2) -> dict[str, float]:
    """Return the peak memory of `run` in MB above the process's floor, by phase and as `run`.

    Over Warmup and `cycles` cycles with a checkpoint in them, in a process of its own, on the device that
    `device_choice` names.
    """
    with tempfile.TemporaryDirectory() as folder:
        return alone(_peaks_mb, run, device_choice, cycles, Path(folder) / "checkpoint.safetensors")


def _peaks_mb(run: Run, device_choice: str, cycles: int, checkpoint: Path) -> dict[str, float]:
    work = Workload.of(run, device_choice)
    warm_up_kernels(run, work.device)
    give_back()
    meter = Meter(work.device)
    snapshots = CheckpointFile(checkpoint, dict, {})  # one in memory would count as the trainer's own
    trainer = make_trainer(run, work.device, meter=meter, snapshots=snapshots)
    warmup, cycle = (run.schedule.warmup, cycle_steps(run)) if run.schedule else (0, 10)
    trainer.snapshot_every = cycle  # one of them when a cycle has filled the store
    found: dict[str, float] = {}
    for _ in range(warmup + cycles * cycle):
        record = trainer.step(work.batch(trainer.real_steps))
        found[record.phase] = max(found.get(record.phase, 0.0), record.peak_mb)
    return found | {"run": max(found.values())}
