"""One run of the study, from parameters to records: the loop around HybridTrainer, resumable at any moment."""

import math
import sys
import time
import warnings
from functools import partial
from typing import Any

import torch

from hybridlib.method.schedule import Phase, PhaseState
from hybridlib.study import progress, provenance
from hybridlib.study.progress import summarise
from hybridlib.study.records import EvalRecord, RunFolder
from hybridlib.study.run import UNTIMED_STEPS, Run
from hybridlib.study.storage import locked
from hybridlib.training.assemble import device_name, make_trainer, pick_device, subnormals_as_zero, warm_up_kernels
from hybridlib.training.checkpoint import CheckpointFile
from hybridlib.training.data import DataSource, open_source
from hybridlib.training.faults import install, struck
from hybridlib.training.loss import Batch, held_out_loss
from hybridlib.training.meter import Meter, Preemption, give_back, nvml_used_mb, ran_out_of_memory
from hybridlib.training.models import weights_sha256
from hybridlib.training.optimizers import set_learning_rate
from hybridlib.training.states import State
from hybridlib.training.trainer import HybridTrainer
from hybridlib.training.weights import keep_weights

DEVICE_ERROR = getattr(torch, "AcceleratorError", torch.OutOfMemoryError)  # older ones have no type for it


def train(run: Run, device_choice: str = "auto") -> dict[str, Any]:
    """Train `run` to its end, on from its last checkpoint if there is one; return its `run.json`.

    It goes on from the newest sound checkpoint that this run could have made here, its records cut back to there. If
    there is none, or if the run has ended without the weights that are asked for now, what lies in the folder is set
    aside for a fresh start. `device_choice` is the name given to `pick_device`. SIGTERM makes a checkpoint and then
    ends the process. Warns of what is damaged, does not fit, or is set aside. Raises `InUse` while another process
    trains the run.
    """
    records = RunFolder(progress.run_folder(run))
    with locked(records.path, "trains it"), Preemption() as preemption, subnormals_as_zero():
        if progress.run_state(run) == "complete":
            return records.facts
        shown = provenance.from_root(records.path)
        if said := progress.why_run_again(run):
            warnings.warn(f"{shown}: {said}; the run is trained again", stacklevel=2)
        device = pick_device(device_choice, run.threads)
        about = dict(started_at=provenance.now(), device=device_name(device, run.threads))
        made_by = dict(code=provenance.code(), versions=provenance.versions())  # as they are now, not at the end
        warm_up_kernels(run, device)
        source = open_source(run.source, run.model.vocab_size, run.batch_size, run.seq_len)
        give_back()
        meter = Meter(device)  # made before there is a model, because memory counts from here
        about |= progress.identity(run) | dict(corpus_sha256=source.sha256)
        file = CheckpointFile(progress.checkpoint_path(run), records.marks, about)

        def fits(saved: State) -> bool:
            why = progress.why_not_of(run, about, saved.get("about", {}))
            if not why and not records.cut_back(saved["beside"]):
                why = "its CSV files are not as a checkpoint left them"
            if why:
                said = f"{shown}: a checkpoint does not fit: {why}; going on from an earlier state"
                warnings.warn(said, stacklevel=2)
            return not why

        def set_aside(why: str) -> None:
            if aside := records.set_aside():
                kept = f"what was there is kept in {provenance.from_root(aside)}"
                warnings.warn(f"{shown}: {why}starts afresh; {kept}", stacklevel=3)

        # The checkpoint of a run that has ended lies after the evaluation whose weights are asked for.
        too_late = records.facts is not None and progress.why_no_weights(run)
        if (saved := None if too_late else file.newest(fits)) is None:
            set_aside("")
        new_trainer = partial(make_trainer, run, device, snapshots=file, meter=meter)
        trainer = new_trainer()
        if saved is not None:
            try:
                trainer.load_state_dict(saved["state"])
            except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                if ran_out_of_memory(error) or isinstance(error, DEVICE_ERROR):
                    raise  # the device's fault, not the checkpoint's
                set_aside(f"other code made its checkpoint ({error!r}): ")
                saved, trainer = None, new_trainer()
            else:
                (records.path / "run.json").unlink(missing_ok=True)
                about["started_at"] = saved["about"]["started_at"]
        if run.fault:
            install(run.fault, trainer)
        resumed, saved = saved is not None, None
        give_back()
        meter.enter_phase()  # what loading took is no step's
        loop = Loop(run, trainer, records, source, preemption)
        compile_s = loop.rehearse() if run.compile else 0.0
        loop.until(run.steps)
        loop.extend()
        facts = dict(study=run.study, arm=run.arm, role=run.role, data=run.data, seed=run.seed)
        facts |= dict(parameters=run.model_dump(), floor_nats=source.floor_nats) | made_by | about
        facts |= dict(
            interpreter=provenance.interpreter(),
            ended_at=provenance.now(),
            resumed=resumed,
            compile_s=compile_s,
            model_parameters=sum(weight.numel() for _, weight in trainer.optimizer.weights),
            weights_sha256=weights_sha256(trainer.objective.model),
            memory_floor_mb=meter.floor_mb,
            nvml_used_mb=nvml_used_mb(device),
            target_loss=progress.target_loss(run),
            last_step=trainer.state.step - 1,
        )
        tokens = run.batch_size * run.seq_len
        facts["summary"] = summarise(records.flushed_steps(), records.evals(), run.steps, tokens)
        records.finish(facts, to_be_extended=progress.awaits_target(run))
        return facts


class Loop:
    """The nominal steps of a `run`, one after the other: batch, step, record, and the held-out loss off the clock.

    `trainer` takes the steps on batches of `source`, and `records` get what happened. When `preemption` is asked, the
    loop makes a checkpoint and exits.
    """

    def __init__(
        self, run: Run, trainer: HybridTrainer, records: RunFolder, source: DataSource, preemption: Preemption
    ) -> None:
        self.run, self.trainer, self.records = run, trainer, records
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
        objective = self.trainer.objective
        accumulation = objective.accumulation
        objective.backward_within_memory(batch, self.trainer.optimizer.zero_grad)
        objective.accumulation = accumulation  # the first step halves the micro-batch again, and records it
        self.trainer.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - started_s

    def until(self, last_step: int) -> None:
        """Take the steps up to and including `last_step`."""
        while self.trainer.state.step <= last_step:
            self._step()

    def extend(self) -> None:
        """Go on to the baseline's final held-out loss, at most to `extend` times the nominal steps."""
        trainer, run = self.trainer, self.run
        if not run.goes_on:
            return
        if trainer.state.step == run.steps + 1:  # records too: it starts here, even if the target is known only later
            trainer.snapshot()
        if progress.may_extend(run, trainer.state.step - 1):
            target = progress.target_loss(run)
            while trainer.state.step <= run.most_steps and self.held_out_loss > target:
                self._step()

    def _step(self) -> None:
        trainer, run, records, state = self.trainer, self.run, self.records, self.trainer.state
        batch = self._on_device(self.source.batch(run.seed, trainer.real_steps))
        set_learning_rate(trainer.optimizer, run.optimizer, state.step, run.steps)
        record = trainer.step(batch)
        if run.fault and run.fault.step == state.step:
            if struck(run.fault, record):
                record.event = "+".join(filter(None, ["fault", record.event]))
            else:
                why = "begins no Predict" if run.fault.kind == "wild_jump" else "is in Predict"
                warnings.warn(f"{run.id}: fault: step {state.step} {why}, so it spoils nothing", stacklevel=2)
        records.add(record)
        self.train_s += record.step_s if state.step > UNTIMED_STEPS else 0.0
        if state.step == run.steps or (self._settled(state) and state.step >= self.evaluated_step + run.eval_every):
            self.evaluated_step = state.step
            with trainer.average.applied(trainer.optimizer.weights, trainer.optimizer):
                self.held_out_loss = held_out_loss(trainer.objective.model, self.held_out)
                if run.keep_weights and state.step >= run.steps:  # an extension replaces those of the nominal end
                    keep_weights(trainer.objective.model, progress.weights_path(run))
            records.add(EvalRecord(state.step, trainer.real_steps, self.train_s, self.held_out_loss))
        if state.step % run.log_every == 0:
            records.flush()
        if self.preemption.asked and trainer.state.phase is not Phase.PREDICT:  # there steps take no time after a jump
            trainer.snapshots.stop(trainer.state_dict())
            sys.exit("stopped by SIGTERM, after a checkpoint")

    @staticmethod
    def _settled(state: PhaseState) -> bool:
        """Return whether the weights may be judged: not in Predict, nor before Correct has ended."""
        last_of_correct = state.phase is Phase.CORRECT and state.index == state.length - 1
        return last_of_correct or state.phase in (Phase.WARMUP, Phase.FULL)

    def _on_device(self, batch: Batch) -> Batch:
        return tuple(part.to(self.trainer.objective.device) for part in batch)


if __name__ == "__main__":  # a run as JSON, a device, and the process that this one ends with
    if provenance.end_with(int(sys.argv[3])):
        train(Run.model_validate_json(sys.argv[1]), sys.argv[2])
