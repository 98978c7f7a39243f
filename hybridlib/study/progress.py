"""How far a run is, whether its records are what it would compute today, and what they amount to."""

import math
import textwrap
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import ValidationError

from hybridlib.study import provenance
from hybridlib.study.parameters import OUTPUTS, faults
from hybridlib.study.records import PHASES, RunFolder
from hybridlib.study.run import UNTIMED_STEPS, Run
from hybridlib.training import NUMERICS

RunState = Literal["missing", "partial", "damaged", "stale", "extendable", "complete"]
WHOLE = ("complete", "extendable")  # states of a run whose records can be read
UNUSED = {"study", "about", "role", "keep_weights"}  # of a run: no number in its records depends on them
TENTHS = 10  # of a run's computed steps, by which its pace is judged


def run_folder(run: Run) -> Path:
    """Return the folder in which the records of `run` lie."""
    return OUTPUTS / run.study / "runs" / run.id


def baseline_folder(run: Run) -> Path:
    """Return the folder of the baseline that `run` is compared with: on the same data, with the same seed."""
    return run_folder(run).with_name(f"baseline-{run.data}-s{run.seed}")


def checkpoint_path(run: Run) -> Path:
    """Return the file of the newest checkpoint of `run`."""
    return run_folder(run) / "checkpoint.safetensors"


def weights_path(run: Run) -> Path:
    """Return the file of the final weights of `run`, which is there if the run was to keep them."""
    return run_folder(run) / "weights.safetensors"


def run_state(run: Run) -> RunState:
    """Return how far `run` is.

    `damaged`: a file is not as it was written. `stale`: made by other parameters, or under another NUMERICS, or
    without the weights that are asked for now. `extendable`: complete, but its baseline is known now, and its loss not
    reached yet with steps left to try.
    """
    records = RunFolder(run_folder(run))
    facts = records.facts
    if facts is None and records.damage():
        return "damaged"
    if facts is None:
        return "partial" if checkpoint_path(run).exists() else "missing"
    if why_run_stale(run, facts) or why_no_weights(run):
        return "stale"
    return "extendable" if may_extend(run, facts["last_step"]) else "complete"


def identity(run: Run) -> dict[str, Any]:
    """Return what a record of `run` says of its making: parameters, NUMERICS, and the hash of the packages' lock."""
    return dict(parameters=run.model_dump(mode="json"), numerics=NUMERICS, lock_sha256=provenance.lock_sha256())


def why_run_stale(run: Run, facts: dict[str, Any]) -> str:
    """Say in one sentence why records with these `facts` are not what `run` would compute today; empty if they are."""
    if (made := facts.get("numerics")) != NUMERICS:
        return f"made under NUMERICS {made}, today's is {NUMERICS}"
    return other_parameters(run, facts.get("parameters"))


def why_no_weights(run: Run) -> str:
    """Say in one sentence that the final weights of `run` are asked for and not there; empty if nothing is missing."""
    file = weights_path(run)
    return f"keep_weights asks for {file.name}, which is not there" if run.keep_weights and not file.exists() else ""


def why_run_again(run: Run) -> str:
    """Say in one sentence what is damaged, stale or missing of the records of `run`; empty if nothing is."""
    records = RunFolder(run_folder(run))
    facts = records.facts
    return why_run_stale(run, facts) or why_no_weights(run) if facts else records.damage()


def why_not_of(run: Run, now: dict[str, Any], then: dict[str, Any]) -> str:
    """Say why a checkpoint that is about `then` is not one that `run` would make, which is about `now`; or nothing."""
    other = [key for key in ("device", "corpus_sha256") if then.get(key) != now[key]]
    differ = "; ".join(f"its {key} was {then.get(key)}, today's is {now[key]}" for key in other)
    return why_run_stale(run, then) or differ


def other_parameters(run: Run, recorded: Any) -> str:
    """Say in one sentence how `recorded` parameters differ from those of `run`; empty if they don't.

    They are read by today's schema: a setting that is newer than the record had its default then.
    """
    try:
        then = Run.model_validate(recorded)
    except ValidationError as error:
        return f"today's schema refuses its parameters: {faults(error)[0]}"
    return difference(*(each.model_dump(exclude=UNUSED) for each in (then, run)))


def difference(then: dict[str, Any], now: dict[str, Any]) -> str:
    """Say in one sentence where the mapping `now` differs first from `then`, and in how much more; empty if equal."""
    if not (found := differences(then, now)):
        return ""
    key, was, is_now = found[0][0], *(textwrap.shorten(repr(value), 80, placeholder=" …") for value in found[0][1:])
    return f"{key} was {was}, today's is {is_now}" + (f", and {len(found) - 1} more differ" if len(found) > 1 else "")


def differences(then: dict[str, Any], now: dict[str, Any], above: str = "") -> list[tuple[str, Any, Any]]:
    """Return dotted key, value in `then` and value in `now` wherever the two nested mappings differ.

    A key that is not there has the value None. `above` is put before all keys.
    """
    found = []
    for key in dict.fromkeys([*then, *now]):
        one, other = then.get(key), now.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found += differences(one, other, f"{above}{key}.")
        elif one != other or (key in then) != (key in now):
            found.append((f"{above}{key}", one, other))
    return found


def target_loss(run: Run) -> float | None:
    """Return the final held-out loss of the baseline on the data and seed of `run`; None while it has no record."""
    facts = RunFolder(baseline_folder(run)).facts
    return facts["summary"]["held_out_loss"] if facts else None


def awaits_target(run: Run) -> bool:
    """Return whether `run` goes on to its baseline's loss, which is not known yet: its checkpoints are still needed."""
    return run.goes_on and target_loss(run) is None


def may_extend(run: Run, last_step: int) -> bool:
    """Return whether `run`, at `last_step`, should go on: it has a target, not reached yet, and steps left to try."""
    target = target_loss(run)
    if target is None or last_step >= run.most_steps:
        return False
    return RunFolder(run_folder(run)).evals().held_out_loss.min() > target


def summarise(steps: pd.DataFrame, evals: pd.DataFrame, nominal_steps: int, tokens_per_step: int) -> dict[str, Any]:
    """Return a run's figures after `nominal_steps` steps of `tokens_per_step` tokens, from its records.

    Rows of `steps` and `evals` after that belong to the extension for time to target. `train_s` and the rates leave out
    the first UNTIMED_STEPS steps. Raise `ValueError` if the run is shorter than its nominal steps.
    """
    nominal = steps[steps.step <= nominal_steps]
    if len(nominal) < nominal_steps:
        raise ValueError(f"the records hold {len(nominal)} of {nominal_steps} nominal steps")
    timed = nominal[nominal.step > UNTIMED_STEPS]
    train_s, real = timed.step_s.sum(), nominal[nominal.real == 1]
    slowdown, drift_s = pace(timed[timed.real == 1].step_s.to_numpy())
    final = evals[evals.step <= nominal_steps].held_out_loss.iloc[-1]
    peaks, stored = (nominal.groupby("phase")[memory].max() for memory in ("peak_mb", "stored_mb"))
    events = nominal.event.str.split("+").explode().value_counts()
    return dict(
        nominal_steps=nominal_steps,
        real_steps=len(real),
        train_s=float(train_s),
        nominal_tokens_per_s=float(len(timed) * tokens_per_step / train_s),
        steady_tokens_per_s=float(len(timed) * tokens_per_step / (train_s - drift_s)),
        slowdown=slowdown,
        trained_tokens_per_s=float((timed.real == 1).sum() * tokens_per_step / train_s),
        real_step_median_s=float(timed[timed.real == 1].step_s.median()),
        predict_s=float(timed[timed.real == 0].step_s.sum()),
        held_out_loss=float(final),
        perplexity=math.exp(min(final, 700.0)),
        train_loss_last_100=float(real[real.step > nominal_steps - 100].loss.mean()),
        grad_norm_mean=float(real.grad_norm.mean()),
        grad_norm_sd=float(real.grad_norm.std()),
        peak_mb={phase: float(peaks[phase]) for phase in PHASES if phase in peaks} | {"run": float(peaks.max())},
        stored_mb={phase: float(stored[phase]) for phase in PHASES if phase in stored},
        phase_share={p: float((nominal.phase == p).mean()) for p in PHASES},
        jumps_accepted=int(events.get("jump", 0) - events.get("rejected", 0)),
        jumps_rejected=int(events.get("rejected", 0)),
        loss_spikes=int(events.get("loss_spike", 0)),
        skipped=int(events.get("skipped", 0)),
        divergences=int(events.get("rollback", 0)),
    )


def pace(step_s: np.ndarray) -> tuple[float, float]:
    """Return how many times as slow the slowest tenth of the steps is as the fastest, and the seconds lost by that.

    `step_s` holds the seconds of each computed step, shape (n_real_steps,). Tenths are compared by their medians, and
    the time lost is what all tenths took beyond the fastest's pace. A machine at rest with steps of one cost gives 1
    and about 0. What one run shows and another of its arm does not is either the machine's doing or its own numbers':
    gradients that underflow to subnormal numbers, which some processors multiply many times as slowly.
    """
    tenths = np.array_split(step_s, min(TENTHS, len(step_s)))
    medians = np.array([np.median(part) for part in tenths])
    return float(medians.max() / medians.min()), float(np.dot([len(part) for part in tenths], medians - medians.min()))


def time_to_target_s(evals: pd.DataFrame, target_loss: float) -> float:
    """Return the seconds of training after which `evals` are first at or below `target_loss`; infinite if never."""
    reached = evals[evals.held_out_loss <= target_loss]
    return float(reached.train_s.iloc[0]) if len(reached) else math.inf
