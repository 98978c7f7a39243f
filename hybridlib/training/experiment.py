"""One run of the study, from parameters to records: the loop around HybridTrainer, resumable at any moment."""

import hashlib
import math
import sys
import time
import warnings
from typing import Any

import torch
from torch import nn

from hybridlib.method.schedule import Phase, PhaseState
from hybridlib.study import progress, provenance
from hybridlib.study.progress import UNTIMED_STEPS, summarise
from hybridlib.study.records import EvalRecord, RunFolder, StepRecord
from hybridlib.study.run import Run
from hybridlib.study.storage import locked
from hybridlib.training.assemble import device_name, make_trainer, pick_device, warm_up_kernels
from hybridlib.training.checkpoint import CheckpointFile, Preemption
from hybridlib.training.data import DataSource, open_source
from hybridlib.training.faults import install
from hybridlib.training.meter import Meter, give_back, nvml_used_mb
from hybridlib.training.models import Batch, loss_fn
from hybridlib.training.optimizers import WeightAverage, set_learning_rate
from hybridlib.training.trainer import HybridTrainer


def train(run: Run, device_choice: str = "auto") -> dict[str, Any]:
    """Takes a run that is not complete to its end, on from its last checkpoint, and returns its `run.json`.

    Raises `InUse` while another process trains it. SIGTERM makes a checkpoint and then ends the process.
    """
    device = pick_device(device_choice, run.threads)
    records = RunFolder(progress.run_folder(run))
    with locked(records.path, "trains it"), Preemption() as preemption:
        if progress.run_state(run) == "complete":
            return records.facts
        try:
            return _train(run, device, records, preemption)
        except OfOtherCode as error:
            warnings.warn(str(error), stacklevel=2)
        return _train(run, device, records, preemption)


def _train(run: Run, device: torch.device, records: RunFolder, preemption: Preemption) -> dict[str, Any]:
    source = open_source(run.source, run.model.vocab_size, run.batch_size, run.seq_len)
    warm_up_kernels(run, device)
    give_back()
    meter = Meter(device)  # before there is a model: what memory is counted from
    about = progress.identity(run)
    about |= dict(started_at=provenance.now(), device=device_name(device, run.threads), corpus_sha256=source.sha256)
    average = WeightAverage(run.read_out_steps)
    path, beside = progress.checkpoint_path(run), lambda: dict(files=records.marks(), average=average.state_dict())
    file = CheckpointFile(path, beside, about, run.snapshot_every)
    trainer = make_trainer(run, device, snapshots=file, meter=meter)
    if run.fault:
        install(run.fault, trainer)
    resumed = resume(run, trainer, average, records, file)
    loop = Loop(run, trainer, average, records, source, preemption)
    compile_s = loop.rehearse() if run.compile else 0.0
    loop.until(run.steps)
    if run.extend > 1:
        trainer.snapshot()  # where an extension starts, should the target be known only later
        loop.extend()
    facts = dict(study=run.study, arm=run.arm, role=run.role, data=run.data, seed=run.seed)
    facts |= dict(parameters=run.model_dump(), floor_nats=source.floor_nats, code=provenance.code()) | file.about
    facts |= dict(
        versions=provenance.versions(),
        interpreter=provenance.interpreter(),
        ended_at=provenance.now(),
        resumed=resumed,
        compile_s=compile_s,
        model_parameters=sum(weight.numel() for _, weight in trainer.optimizer.weights),
        weights_sha256=weights_sha256(trainer.objective.model),
        memory_floor_mb=trainer.meter.floor_mb,
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


class OfOtherCode(ValueError):
    """A checkpoint whose state the code of today cannot take; it has been set aside."""


def resume(run: Run, trainer: HybridTrainer, average: WeightAverage, records: RunFolder, file: CheckpointFile) -> bool:
    """Goes on from the newest sound checkpoint that this run could have made here, its records cut back to there.

    Where there is none, what lies there is set aside for a fresh start. Warns of what is damaged or does not fit.
    Raises `OfOtherCode`.
    """

    def fits(saved: dict[str, Any]) -> bool:
        then, now = saved.get("about", {}), file.about
        why = progress.why_run_stale(run, then) or "; ".join(
            f"its {key} was {then.get(key)}, today's is {now[key]}"
            for key in ("device", "corpus_sha256")
            if then.get(key) != now[key]
        )
        if not why and not records.cut_back(saved["beside"]["files"]):
            why = "its CSV files are not as a checkpoint left them"
        if why:
            warnings.warn(f"{shown}: a checkpoint does not fit: {why}; going on from an earlier state", stacklevel=2)
        return not why

    shown, facts = provenance.from_root(records.path), records.facts
    if said := records.damage() or (facts and progress.why_run_stale(run, facts)):
        warnings.warn(f"{shown}: {said}; the run is trained again", stacklevel=2)
    if (snapshot := file.newest(fits)) is None:
        if aside := records.set_aside():
            kept = f"what was there is kept in {provenance.from_root(aside)}"
            warnings.warn(f"{shown}: starts afresh; {kept}", stacklevel=2)
        file.remove()
        return False
    try:
        trainer.load_state_dict(snapshot["state"])
        average.load_state_dict(snapshot["beside"]["average"])
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        aside = provenance.from_root(records.set_aside())
        kept = f"what was there is kept in {aside}"
        raise OfOtherCode(f"{shown}: other code made its checkpoint ({error!r}): starts afresh; {kept}") from None
    file.about["started_at"] = snapshot["about"]["started_at"]
    (records.path / "run.json").unlink(missing_ok=True)
    return True


class Loop:
    """Nominal steps, one after the other: batch, step, record, and the held-out loss off the clock."""

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
        """Compiles the steps ahead of them, off the clock; returns the seconds that it took."""
        started_s = time.perf_counter()
        batch = self._on_device(self.source.batch(self.run.seed, 0))
        self.trainer.objective.backward(batch)
        self.trainer.objective.probe(batch)
        self.trainer.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - started_s

    def until(self, last_step: int) -> None:
        while self.trainer.state.step <= last_step:
            self._step()
        self.records.flush()

    def extend(self) -> None:
        """Goes on with the schedule until the baseline's final held-out loss, at most to `extend` x nominal steps."""
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
        if self.preemption.asked and trainer.state.phase is not Phase.PREDICT:  # whose steps, once jumped, take no time
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
        """Whether the weights are worth judging: not in Predict, nor before Correct has ended."""
        last_of_correct = state.phase is Phase.CORRECT and state.index == state.length - 1
        return last_of_correct or state.phase in (Phase.WARMUP, Phase.FULL)

    def _on_device(self, batch: Batch) -> Batch:
        return tuple(part.to(self.trainer.objective.device) for part in batch)


def weights_sha256(model: nn.Module) -> str:
    """Of all weights, in order: equal for bitwise equal models."""
    digest = hashlib.sha256()
    for weight in model.parameters():
        digest.update(weight.detach().cpu().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@torch.no_grad()
def held_out_loss(model: nn.Module, batches: list[Batch]) -> float:
    """Mean loss in nats over fixed batches, in float32 whatever the arm's precision."""
    return sum(float(loss_fn(model, batch)) for batch in batches) / len(batches)


if __name__ == "__main__":  # for a process of its own: a run as JSON, a device, and the process with which it ends
    if provenance.end_with(int(sys.argv[3])):
        train(Run.model_validate_json(sys.argv[1]), sys.argv[2])
