"""What is timed against what: Hugging Face's Trainer, loops written by hand, and HybridTrainer, on the same run."""

import statistics
import tempfile
import time
from itertools import count
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from hybridlib.benchmark.side_by_side import alone, timed
from hybridlib.study.records import RunFolder
from hybridlib.study.run import Run
from hybridlib.training.assemble import make_trainer, pick_device, warm_up_kernels
from hybridlib.training.checkpoint import CheckpointFile
from hybridlib.training.data import DataSource, open_source
from hybridlib.training.meter import Meter, give_back
from hybridlib.training.models import Batch, build, loss_fn
from hybridlib.training.optimizers import make_optimizer


def opened(run: Run, device_choice: str) -> tuple[DataSource, torch.device]:
    """The data and the device of a run."""
    return open_source(run.source, run.model.vocab_size, run.batch_size, run.seq_len), pick_device(
        device_choice, run.threads
    )


def batch_of(run: Run, source: DataSource, device: torch.device, at: int) -> Batch:
    return tuple(part.to(device) for part in source.batch(run.seed, at))


class BareLoop:
    """Plain training as anyone would write it: the model's own logits, PyTorch's loss, Adam as it comes."""

    def __init__(self, run: Run, source: DataSource, device: torch.device, steps: int) -> None:
        self.run, self.source, self.device, self.steps = run, source, device, steps
        self.model = build(run.model, run.seed).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=run.optimizer.lr)
        self.at = count()

    def __call__(self) -> list[float]:
        return [timed(self._step, self.device) for _ in range(self.steps)]

    def _step(self) -> None:
        batch = batch_of(self.run, self.source, self.device, next(self.at))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.run.precision == "bf16"):
            loss = self._loss(batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss.item()

    def _loss(self, batch: Batch) -> Tensor:
        tokens, targets = batch
        return F.cross_entropy(self.model(input_ids=tokens).logits.flatten(0, 1).float(), targets.flatten())


class SameParts(BareLoop):
    """The same loop with the study's loss and optimizer: what HybridTrainer adds to a step is measured against it."""

    def __init__(self, run: Run, source: DataSource, device: torch.device, steps: int) -> None:
        super().__init__(run, source, device, steps)
        self.optimizer = make_optimizer(run.optimizer, self.model)

    def _loss(self, batch: Batch) -> Tensor:
        return loss_fn(self.model, batch)


class Hybrid:
    """HybridTrainer on a run, with its records: the seconds of its real steps.

    `predicted` has a row a block: the seconds beyond as many median real steps, over those of one, a predicted step. So the
    return of what was offloaded, which the first real step after a jump waits for, counts as prediction's.
    """

    def __init__(self, run: Run, source: DataSource, device: torch.device, steps: int) -> None:
        """`steps` real ones a block; with a schedule as many whole cycles as have about so many."""
        self.run, self.source, self.device = run, source, device
        cycle = run.schedule
        cycles = max(1, round(steps / (cycle.full + cycle.correct))) if cycle else 0
        self.nominal_steps = cycles * (cycle.full + cycle.predict + cycle.correct) if cycle else steps
        self.trainer = make_trainer(run, device)
        self.folder = tempfile.TemporaryDirectory()
        self.records = RunFolder(Path(self.folder.name))
        self.nominal_s: list[float] = []  # a nominal step, a value a block
        self.predicted: list[float] = []

    def __call__(self) -> list[float]:
        real, every = [], []
        for _ in range(self.nominal_steps):
            state = self.trainer.state
            every.append(timed(self._step, self.device))
            real += every[-1:] if state.real else []
        self.records.flush()
        self.nominal_s.append(sum(every) / len(every))
        if predicted := len(every) - len(real):
            median = statistics.median(real)
            self.predicted.append((sum(every) / median - len(real)) / predicted)
        return real

    def _step(self) -> None:
        batch = batch_of(self.run, self.source, self.device, self.trainer.real_steps)
        self.records.add(self.trainer.step(batch))


class HuggingFace:
    """transformers' own Trainer on the same model, batches and precision, saving and logging nothing.

    Times lie between the ends of steps, so the first of a block, which sets the Trainer up, is not in them.
    """

    def __init__(self, run: Run, source: DataSource, device: torch.device, steps: int) -> None:
        self.run, self.source, self.steps = run, source, steps
        self.model = build(run.model, run.seed).to(device)
        self.options = dict(
            per_device_train_batch_size=run.batch_size, max_steps=steps + 1, learning_rate=run.optimizer.lr, save_strategy="no",
            logging_strategy="no", report_to=[], disable_tqdm=True, lr_scheduler_type="constant", max_grad_norm=0.0,
            bf16=run.precision == "bf16", use_cpu=device.type == "cpu", dataloader_num_workers=0, optim="adamw_torch",
            dataloader_pin_memory=device.type == "cuda", weight_decay=0.0,
        )  # fmt: skip

    def __call__(self) -> list[float]:
        ends = StepEnds()
        with tempfile.TemporaryDirectory() as folder:
            options = TrainingArguments(output_dir=folder, **self.options)
            trainer = Trainer(
                self.model, options, train_dataset=Rows(self.run, self.source, self.steps + 1), callbacks=[ends]
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return [after - before for before, after in zip(ends.at_s, ends.at_s[1:])]


class StepEnds(TrainerCallback):
    def __init__(self) -> None:
        self.at_s: list[float] = []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.at_s.append(time.perf_counter())


class Rows(Dataset):
    """The source's batches row by row, as a Trainer wants them; it shifts the labels itself."""

    def __init__(self, run: Run, source: DataSource, steps: int) -> None:
        self.rows = [row for step in range(steps) for row in source.batch(run.seed, step)[0]]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return dict(input_ids=self.rows[index], labels=self.rows[index])


def peaks_mb(run: Run, device: str, cycles: int = 2) -> dict[str, float]:
    """Peak memory in MB above the process's floor, by phase and as `run`, over Warmup and some cycles."""
    with tempfile.TemporaryDirectory() as folder:
        return alone(_peaks_mb, run, device, cycles, Path(folder) / "checkpoint.safetensors")


def _peaks_mb(run: Run, device_choice: str, cycles: int, checkpoint: Path) -> dict[str, float]:
    source, device = opened(run, device_choice)
    warm_up_kernels(run, device)
    give_back()
    meter = Meter(device)
    snapshots = CheckpointFile(
        checkpoint, dict, {}, run.snapshot_every
    )  # one in memory would count as the trainer's own
    trainer = make_trainer(run, device, meter=meter, snapshots=snapshots)
    cycle = run.schedule
    steps = cycle.warmup + cycles * (cycle.full + cycle.predict + cycle.correct) if cycle else 20
    found: dict[str, float] = {}
    for _ in range(steps):
        record = trainer.step(batch_of(run, source, device, trainer.real_steps))
        found[record.phase] = max(found.get(record.phase, 0.0), record.peak_mb)
    return found | {"run": max(found.values())}
