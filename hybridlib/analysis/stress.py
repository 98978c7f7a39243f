"""The stress tests ST-1…ST-4: each judges one run's records and returns (passed, evidence)."""

import math

import numpy as np
import pandas as pd

from hybridlib.analysis.load import KEYS, Records
from hybridlib.analysis.results import Evidence
from hybridlib.analysis.series import around_fault
from hybridlib.analysis.wording import number

DETECT_STEPS = 3  # real steps within which a fault must be answered by a rollback
RECOVER_STEPS = 100  # nominal steps within which the loss must be back under its level before the fault
LEAST_THROUGHPUT = 0.5  # of the study's `hybrid`, in trained tokens a second
SHARE_TOLERANCE = 0.05  # how far a phase's share may move between the run's halves


def long_training(steps: pd.DataFrame, evals: pd.DataFrame) -> tuple[bool, str]:
    """Judge ST-1: no divergence, a final held-out loss not above the one at mid-run, phases in stable shares."""
    rollbacks = int(steps.event.str.contains("rollback").sum())
    middle = evals[evals.step <= steps.step.max() / 2].held_out_loss
    final = evals.held_out_loss.iloc[-1]
    after = steps[steps.phase != "warmup"].phase
    halves = [half.value_counts(normalize=True) for half in (after[: len(after) // 2], after[len(after) // 2 :])]
    moved = float(halves[0].sub(halves[1], fill_value=0.0).abs().max())
    passed = rollbacks == 0 and len(middle) > 0 and final <= middle.iloc[-1] and moved <= SHARE_TOLERANCE
    at_half = number(middle.iloc[-1], 4) if len(middle) else "none"
    return passed, (
        f"{len(steps)} steps, {rollbacks} divergences; held-out loss {at_half} at mid-run, "
        f"{number(final, 4)} at the end; a phase's share moves by at most {number(100 * moved, 2)} points"
    )


def finishes(steps: pd.DataFrame, trained_tokens_per_s: float, reference_tokens_per_s: float) -> tuple[bool, str]:
    """Judge ST-2 and ST-3: all losses finite and at least half of the study's `hybrid` trained tokens/s (np.nan: not known)."""
    real = steps[steps.real == 1]
    finite = bool(np.isfinite(real.loss).all())
    share = trained_tokens_per_s / reference_tokens_per_s
    return bool(finite and share >= LEAST_THROUGHPUT), (
        f"{len(real)} real steps, losses {'all finite' if finite else 'NOT all finite'}; "
        f"{number(trained_tokens_per_s)} trained tokens/s, {number(share)} of hybrid's {number(reference_tokens_per_s)}"
    )


def recovery(steps: pd.DataFrame) -> tuple[bool, str]:
    """Judge ST-4: a fault, a rollback within DETECT_STEPS real steps, and the loss back under its mean before the fault."""
    near = around_fault(steps)
    if near.empty:
        return False, "no fault was put in"
    at = int(steps[steps.event.str.contains("fault")].step.iloc[0])
    (rolled, recovered), (detected, _) = recovery_steps(steps, "rollback"), recovery_steps(steps)
    if math.isnan(rolled):
        return False, f"fault at step {at}, no rollback after it"
    return rolled <= DETECT_STEPS and recovered <= RECOVER_STEPS, (
        f"fault at step {at}, detected {number(detected)} and rolled back {number(rolled)} real steps later; "
        f"loss {number(near[near.step >= at].loss.max(), 4)} at worst, back under its mean before the fault, {number(near.running_mean.iloc[0], 4)}, "
        + ("never" if math.isnan(recovered) else f"{number(recovered)} steps after it")
    )


def recovery_steps(steps: pd.DataFrame, answer: str = "high|skipped|rollback|rejected") -> tuple[float, float]:
    """Return of a run with a fault the real steps until it was answered, and the nominal steps until the loss was back under its
    running mean from before. NaN for what did not happen.
    """
    near = around_fault(steps)
    at = int(steps[steps.event.str.contains("fault")].step.iloc[0])
    answers = steps[(steps.step >= at) & steps.event.str.contains(answer)].step
    if answers.empty:
        return math.nan, math.nan
    answered = int(answers.iloc[0])
    took = float(((steps.step > at) & (steps.step <= answered) & (steps.real == 1)).sum())
    back = near[(near.step > answered) & (near.loss <= near.running_mean.iloc[0])].step
    return took, float(back.iloc[0]) - at if len(back) else math.nan


# Test -> the arm that takes it, and what it asks.
TESTS = {
    "ST-1": ("st1_long", "long training: no divergence, stable phases"),
    "ST-2": ("st2_large_batch", "large batch: finishes, throughput at least half of hybrid's"),
    "ST-3": ("st3_long_sequence", "long sequence: finishes, throughput at least half of hybrid's"),
    "ST-4": ("st4_recovery", "divergence recovery: detected, rolled back, and recovered from"),
}


def judge(records: Records, test: str, evidence_of: Evidence) -> str:
    """Judges every run of a test's arm, adds the result to the evidence, and says it in Markdown; without a run, nothing
    is added."""
    arm, about = TESTS[test]
    mine = records.where(arm=[arm])
    results = []
    for run in mine.runs.itertuples():
        steps, evals = (f[(f[KEYS] == [run.arm, run.data, run.seed]).all(axis=1)] for f in (mine.steps, mine.evals))
        hybrid = records.runs[(records.runs.arm == "hybrid") & (records.runs.data == run.data)].trained_tokens_per_s
        if test == "ST-1":
            results.append(long_training(steps, evals))
        elif test == "ST-4":
            results.append(recovery(steps))
        else:
            results.append(finishes(steps, run.trained_tokens_per_s, hybrid.mean()))
    if not results:
        return f"**{test}** was not run: `{arm}` has no complete run."
    passed, evidence = all(good for good, _ in results), "; ".join(said for _, said in results)
    evidence_of.add(test, about, passed, evidence)
    return f"**{test} {'passes' if passed else 'fails'}**: {evidence}."
