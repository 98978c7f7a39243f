"""One run of the study, from parameters to records: the loop around HybridTrainer, resumable at any moment."""

import math
import os
import signal
import sys
import threading
import time
import warnings
from types import FrameType, TracebackType
from typing import Any, Self

from hybridlib.method.schedule import Phase, PhaseState
from hybridlib.study import progress, provenance
from hybridlib.study.progress import UNTIMED_STEPS, summarise
from hybridlib.study.records import EvalRecord, RunFolder, StepRecord
from hybridlib.study.run import Run
from hybridlib.training.assemble import device_name, make_trainer, pick_device, warm_up_kernels
from hybridlib.training.checkpoint import CheckpointFile, State
from hybridlib.training.data import DataSource, open_source
from hybridlib.training.faults import install
from hybridlib.training.meter import Meter, give_back, nvml_used_mb
from hybridlib.training.models import Batch
from hybridlib.training.optimizers import set_learning_rate
from hybridlib.training.trainer import HybridTrainer
from hybridlib.training.trajectory import WeightAverage, held_out_loss


def train(run: Run, device_choice: str = "auto") -> dict[str, Any]:
    """Train `run` to its end, or on from its last checkpoint, and return its `run.json`.

    `device_choice` is as for `pick_device`. SIGTERM makes a checkpoint and then ends the process. Raises `RunInUse`
    while another process trains the run.
    """
    average = WeightAverage(run.read_out_steps)
    device = pick_device(device_choice, run.threads)
    records = RunFolder(progress.folder(run))
    with records.locked(), Preemption() as preemption:
        warm_up_kernels(run, device)
        source = open_source(run.source, run.model.vocab_size, run.batch_size, run.seq_len)
        give_back()
        meter = Meter(device)  # made before there is a model, because memory counts from here
        about = progress.identity(run)
        about |= dict(started_at=provenance.now(), device=device_name(device, run.threads), corpus_sha256=source.sha256)
        file = CheckpointFile(
            progress.checkpoint_path(run),
            lambda: dict(files=records.marks(), average=average.state_dict()),
            about,
        )
        saved = resumable(run, records, file)
        trainer = make_trainer(run, device, snapshots=file, meter=meter)
        if run.fault:
            install(run.fault, trainer)
        if saved:
            trainer.load_state_dict(saved["state"])
            average.load_state_dict(saved["beside"]["average"])
            about["started_at"] = saved["about"]["started_at"]
        resumed = saved is not None
        del saved
        loop = Loop(run, trainer, average, records, source, preemption)
        compile_s = loop.rehearse() if run.compile else 0.0
        loop.until(run.steps)
        if run.extend > 1:
            trainer.snapshot()  # an extension starts here, even if the target is known only later
            loop.extend()
        facts = dict(study=run.study, arm=run.arm, role=run.role, data=run.data, seed=run.seed)
        facts |= dict(parameters=run.model_dump(), floor_nats=source.floor_nats, code=provenance.code()) | about
        facts |= dict(
            versions=provenance.versions(),
            ended_at=provenance.now(),
            resumed=resumed,
            compile_s=compile_s,
            model_parameters=sum(weight.numel() for _, weight in trainer.optimizer.weights),
            weights_sha256=trainer.weights_sha256(),
            memory_floor_mb=meter.floor_mb,
            nvml_used_mb=nvml_used_mb(device),
            target_loss=progress.target_loss(run),
            last_step=trainer.state.step - 1,
        )
        tokens = run.batch_size * run.seq_len
        facts["summary"] = summarise(records.flushed_steps(), records.evals(), run.steps, tokens)
        records.finish(facts)
        if run.extend == 1 or facts["target_loss"] is not None:
            file.remove()
        return facts


def resumable(run: Run, records: RunFolder, file: CheckpointFile) -> State | None:
    """Return the newest sound snapshot in `file` that `run` can go on from, with `records` cut back to it.

    It must be of this code, these parameters and this device. If there is none, clears the folder for a fresh start.
    Warns of what is damaged.
    """
    if said := records.damage():
        warnings.warn(f"{said}; the run is trained again", stacklevel=2)
    for saved in file.sound():
        if progress.is_current(run, saved["about"]) and saved["about"]["device"] == file.about["device"]:
            if records.cut_back(saved["beside"]["files"]):
                (records.path / "run.json").unlink(missing_ok=True)
                return saved
            said = f"{records.path}: its CSV files are not as a checkpoint left them; going on from an earlier state"
            warnings.warn(said, stacklevel=2)
    for name in ("steps.csv", "evals.csv", "run.json"):
        (records.path / name).unlink(missing_ok=True)
    file.remove()
    return None


class Preemption:
    """While its block runs, SIGTERM only sets `asked`, for a loop to read between two steps.

    When the block ends, a process that was asked ends by that signal, as if nothing had caught it. Outside the main
    thread, where Python handles no signals, nothing is caught.
    """

    asked = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before)
        if self.asked:
            os.kill(os.getpid(), signal.SIGTERM)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


class Loop:
    """The nominal steps of a `run`, one after the other: batch, step, record, and the held-out loss off the clock.

    `trainer` takes the steps on batches of `source`, `average` follows its weights, and `records` get what happened.
    When `preemption` is asked, the loop makes a checkpoint and exits.
    """

    def __init__(
        self,
        run: Run,
        trainer: HybridTrainer,
        average: WeightAverage,
        records: RunFolder,
        source: DataSource,
        preemption: Preemption,
    ) -> None:
        self.run, self.trainer, self.average, self.records = run, trainer, average, records
        self.source, self.preemption = source, preemption
        self.held_out = [self._on_device(source.held_out(i)) for i in range(run.eval_batches)]
        done = records.flushed_steps()
        self.train_s = float(done[done.step > UNTIMED_STEPS].step_s.sum())
        self.held_out_loss = math.inf
        evals = records.evals()
        self.evaluated_step = int(evals.step.max()) if len(evals) else 0

    def rehearse(self) -> float:
        """Compile what steps run, ahead of them and off the clock. Return the seconds that it took."""
        started_s = time.perf_counter()
        batch = self._on_device(self.source.batch(self.run.seed, 0))
        self.trainer.objective.backward(batch)
        self.trainer.objective.probe(batch)
        self.trainer.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - started_s

    def until(self, last_step: int) -> None:
        """Take the steps up to and including `last_step`."""
        while self.trainer.state.step <= last_step:
            self._step()
        self.records.flush()

    def extend(self) -> None:
        """Go on to the baseline's final held-out loss, at most to `extend` times the nominal steps."""
        if progress.may_extend(self.run, self.trainer.state.step - 1):
            target = progress.target_loss(self.run)
            while self.trainer.state.step <= int(self.run.extend * self.run.steps) and self.held_out_loss > target:
                self._step()
        self.records.flush()

    def _step(self) -> None:
        trainer, run, state = self.trainer, self.run, self.trainer.state
        batch = self._on_device(self.source.batch(run.seed, trainer.real_steps))
        set_learning_rate(trainer.optimizer, run.optimizer, state.step, run.steps)
        record = trainer.step(batch)
        if run.fault and run.fault.step == state.step:
            record.event = "+".join(filter(None, ["fault", record.event]))
        self.records.add(record)
        self._average(record)
        self.train_s += record.step_s if state.step > UNTIMED_STEPS else 0.0
        if state.step == run.steps or (self._settled(state) and state.step >= self.evaluated_step + run.eval_every):
            self.evaluated_step = state.step
            with self.average.applied(trainer.optimizer.weights, trainer.optimizer):
                self.held_out_loss = held_out_loss(trainer.objective.model, self.held_out)
            self.records.add(EvalRecord(state.step, trainer.real_steps, self.train_s, self.held_out_loss))
        if state.step % run.log_every == 0:
            self.records.flush()
        if self.preemption.asked and trainer.state.phase is not Phase.PREDICT:  # there steps take no time after a jump
            trainer.snapshot()
            sys.exit("stopped by SIGTERM, after a checkpoint")

    def _average(self, record: StepRecord) -> None:
        events = record.event.split("+")
        if "jump" in events or "rollback" in events:
            self.average.forget()
        elif record.real and "skipped" not in events:
            self.average.observe(self.trainer.optimizer.weights)

    @staticmethod
    def _settled(state: PhaseState) -> bool:
        """Return whether the weights may be judged: not in Predict, nor before Correct has ended."""
        last_of_correct = state.phase is Phase.CORRECT and state.index == state.length - 1
        return last_of_correct or state.phase in (Phase.WARMUP, Phase.FULL)

    def _on_device(self, batch: Batch) -> Batch:
        return tuple(part.to(self.trainer.objective.device) for part in batch)


if __name__ == "__main__":  # a run as JSON, and a device: for a process of its own
    train(Run.model_validate_json(sys.argv[1]), sys.argv[2])
