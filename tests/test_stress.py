"""The stress tests' rules on runs made by hand."""

import math
from types import SimpleNamespace

import pandas as pd
import pytest
from chapter import definitions, run_chapter

from hybridlib.analysis.rules import read_rules


def rule(name: str, own_tokens_per_s: float = 100.0):
    """Return a rule of the chapter, beside a hybrid of this throughput at the study's own shape, and faster others."""
    arms, seeds = ["st4_recovery", "st4_recovery", "hybrid"], [45, 42, 45]
    runs = dict(arm=arms, data="text", seed=seeds, trained_tokens_per_s=[own_tokens_per_s, 1e6, 1e6])
    records = SimpleNamespace(runs=pd.DataFrame(runs))
    return definitions("07_stress", asked=read_rules().stress, records=records)[name]


def stress_steps(losses, events) -> pd.DataFrame:
    frame = pd.DataFrame({"step": range(1, len(losses) + 1), "loss": losses, "event": "", "real": 1, "phase": "full"})
    for step, event in events.items():
        frame.loc[frame.step == step, "event"] = event
    return frame


def test_recovery_needs_a_prompt_rollback_and_the_level_before_the_fault() -> None:
    recovery = rule("recovery")
    losses = [5.0] * 60 + [9.0] * 3 + [4.9] * 40
    assert recovery(stress_steps(losses, {60: "fault", 62: "rollback"}))[0]
    assert not recovery(stress_steps(losses, {60: "fault", 64: "rollback"}))[0]  # four real steps too late
    assert not recovery(stress_steps(losses[:63] + [5.1] * 40, {60: "fault", 62: "rollback"}))[0]
    assert not recovery(stress_steps(losses, {60: "fault"}))[0]


def test_long_training_needs_stable_phases_and_no_rollback() -> None:
    long_training = rule("long_training")
    evals = pd.DataFrame({"step": [50, 100], "held_out_loss": [5.0, 4.0]})
    steps = stress_steps([5.0] * 100, {})
    assert long_training(steps, evals)[0]
    assert not long_training(stress_steps([5.0] * 100, {70: "rollback"}), evals)[0]
    assert not long_training(steps, evals.assign(held_out_loss=[4.0, 5.0]))[0]
    assert not long_training(steps.assign(phase=["full"] * 50 + ["predict"] * 50), evals)[0]


@pytest.mark.parametrize(
    ("losses", "tokens_per_s", "own_tokens_per_s", "passes"),
    [
        ([5.0] * 4, 50.0, 100.0, True),
        ([5.0] * 4, 49.0, 100.0, False),
        ([5.0, math.inf], 50.0, 100.0, False),
        ([5.0] * 4, 50.0, math.nan, None),
    ],
)
def test_finishing_needs_finite_losses_and_half_the_throughput(
    losses: list[float], tokens_per_s: float, own_tokens_per_s: float, passes: bool | None
) -> None:
    run = SimpleNamespace(data="text", seed=45, trained_tokens_per_s=tokens_per_s)
    found = rule("finishes", own_tokens_per_s)(stress_steps(losses, {}), None, run)
    assert (found and found[0]) is passes, "without what it is compared with there is no result"


def test_a_test_without_a_run_leaves_no_result(fake_study, monkeypatch) -> None:
    executed = run_chapter("07_stress", fake_study, monkeypatch)
    assert "**ST-1** was not run" in executed.said and executed.names["evidence"].rows == []
    assert not (fake_study.folder / "results" / "stress.csv").exists()
