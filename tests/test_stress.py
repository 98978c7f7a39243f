"""The stress tests' rules on runs made by hand."""

import math

import pandas as pd

from hybridlib.analysis import load, stress
from hybridlib.study.records import Checks


def stress_steps(losses, events) -> pd.DataFrame:
    frame = pd.DataFrame({"step": range(1, len(losses) + 1), "loss": losses, "event": "", "real": 1, "phase": "full"})
    for step, event in events.items():
        frame.loc[frame.step == step, "event"] = event
    return frame


def test_recovery_needs_a_prompt_rollback_and_the_level_before_the_fault() -> None:
    losses = [5.0] * 60 + [9.0] * 3 + [4.9] * 40
    assert stress.recovery(stress_steps(losses, {60: "fault", 62: "rollback"}))[0]
    assert not stress.recovery(stress_steps(losses, {60: "fault", 64: "rollback"}))[0]  # four real steps too late
    assert not stress.recovery(stress_steps(losses[:63] + [5.1] * 40, {60: "fault", 62: "rollback"}))[0]
    assert not stress.recovery(stress_steps(losses, {60: "fault"}))[0]


def test_long_training_needs_stable_phases_and_no_rollback() -> None:
    evals = pd.DataFrame({"step": [50, 100], "held_out_loss": [5.0, 4.0]})
    steps = stress_steps([5.0] * 100, {})
    assert stress.long_training(steps, evals)[0]
    assert not stress.long_training(stress_steps([5.0] * 100, {70: "rollback"}), evals)[0]
    assert not stress.long_training(steps, evals.assign(held_out_loss=[4.0, 5.0]))[0]
    assert not stress.long_training(steps.assign(phase=["full"] * 50 + ["predict"] * 50), evals)[0]


def test_finishing_needs_finite_losses_and_half_the_throughput() -> None:
    assert stress.finishes(stress_steps([5.0] * 4, {}), 50.0, 100.0)[0]
    assert not stress.finishes(stress_steps([5.0] * 4, {}), 49.0, 100.0)[0]
    assert not stress.finishes(stress_steps([5.0, math.inf], {}), 50.0, 100.0)[0]
    assert not stress.finishes(stress_steps([5.0] * 4, {}), 50.0, math.nan)[0]


def test_a_test_without_a_run_leaves_no_result(fake_study) -> None:
    checks = Checks(fake_study.folder, "stress")
    said = stress.judge(load.read(fake_study.name, fake_study.outputs), "ST-1", checks)
    assert "was not run" in said and not checks.path.exists()
