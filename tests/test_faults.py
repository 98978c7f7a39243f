"""Faults of every kind are seen within a step, training recovers from them, and nothing sound is interfered with."""

import random
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch
from chapter import definitions
from tiny import baseline, run, timeless

from hybridlib.method.guards import DivergenceMonitor
from hybridlib.method.schedule import Phase
from hybridlib.study import progress
from hybridlib.study.arm import Fault, Guards
from hybridlib.study.parameters import OUTPUTS, load_study
from hybridlib.study.records import RunFolder
from hybridlib.study.run import Run
from hybridlib.training.assemble import schedule_of
from hybridlib.training.experiment import train

FACTORS = dict(lr_spike=300.0, exploding_gradient=1e4, vanishing_gradient=1e6, wild_jump=50.0)
KINDS = [
    "lr_spike",
    "exploding_gradient",
    "vanishing_gradient",
    "nan_gradient",
    "inf_gradient",
    "corrupt_batch",
    "wild_jump",
]
RECOVER_STEPS = 100
SOUND_LR = 1e-3


@pytest.fixture(autouse=True)
def own_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(progress, "OUTPUTS", tmp_path)
    return tmp_path


def faulty(kind: str, seed: int) -> Run:
    """The frozen hybrid as the cpu study has it, with a fault at a random step of its second half."""
    study = load_study("cpu")
    short = dict(study=f"faults-{kind}", steps=320, extend=1.0, eval_every=320, threads=1)
    sound = study.run("hybrid", "text", study.pilot_seeds[0] + seed).model_copy(update=short)
    states = [state for state in schedule_of(sound).unroll() if 150 < state.step < 230]
    jumps = [state.step for state in states if state.phase is Phase.PREDICT and state.index == 0]
    step = random.Random(f"{kind} {seed}").choice(jumps if kind == "wild_jump" else [s.step for s in states if s.real])
    return sound.model_copy(update=dict(fault=Fault(kind=kind, step=step, factor=FACTORS.get(kind, 2.0))))


def test_faults_are_detected_and_recovered_from(request, measured) -> None:
    rows, traces = [], []
    for kind in KINDS:
        for seed in range(request.config.getoption("faults")):
            hurt = faulty(kind, seed)
            train(hurt, "cpu")
            steps, at = RunFolder(progress.run_folder(hurt)).steps(), hurt.fault.step
            detected, recovered = definitions("07_stress")["recovery_steps"](steps)
            rows.append(dict(kind=kind, seed=hurt.seed, step=at, detected_steps=detected, recovered_steps=recovered))
            near = steps[(steps.step - at).between(-60, 120)]
            traces.append(near[["step", "phase", "real", "loss", "event"]].assign(kind=kind, seed=hurt.seed, fault=at))
    found = pd.DataFrame(rows)
    measured.table("faults", rows)
    measured.table("traces", pd.concat(traces).to_dict("records"))
    worst = found.recovered_steps.max()
    measured.add(
        faults=len(found), detection_rate=float(found.detected_steps.notna().mean()), recovery_steps_max=float(worst)
    )
    assert (found.detected_steps <= 1).all(), found
    assert (found.recovered_steps <= RECOVER_STEPS).all(), found


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", ["adam", "muon", "schedule_free", "lookahead"])
def test_a_sound_baseline_that_is_trained_here_raises_no_alarm(name: str, seed: int) -> None:
    plain = baseline(seed=seed, steps=160, optimizer=dict(name=name))
    summary = train(plain, "cpu")["summary"]
    assert summary["skipped"] == summary["divergences"] == 0 and summary["real_steps"] == 160


def test_recorded_sound_baselines_raise_no_alarm(measured) -> None:
    """Today's monitor lets training take every step of all recorded baselines.

    Those whose learning rate was so high in tuning that some do diverge are left out.
    """
    verdicts, count = Counter(), 0
    for file in sorted(OUTPUTS.rglob("run.json")):
        records = RunFolder(file.parent)
        facts = records.facts or dict(role="damaged")
        plain = facts["role"] == "baseline" and facts["study"] != "smoke"
        if not plain or facts["parameters"]["optimizer"]["lr"] > SOUND_LR:
            continue
        guards = Guards().model_dump(exclude={"jump_margin_nats"})
        monitor, count = DivergenceMonitor(**guards), count + 1
        for step in records.steps().itertuples():
            verdicts[monitor.judge(step.loss, step.grad_norm, armed=step.phase != "warmup")] += 1
    alarms = verdicts["skip"] + verdicts["roll_back"]
    measured.add(clean_baselines=count, false_alarms=alarms, high_losses=verdicts["loss_spike"])
    if count < 20:
        pytest.skip(f"{count} recorded baselines, 20 are needed")
    assert alarms == 0


def test_memory_that_runs_out_halves_the_micro_batch_and_keeps_the_batch() -> None:
    enough, scarce = run(study="enough"), run(study="scarce", fault=dict(kind="out_of_memory", step=20))
    for each in (enough, scarce):
        train(each, "cpu")
    (plain, _), (halved, _) = (timeless(progress.run_folder(each)) for each in (enough, scarce))
    assert halved.event[19].startswith("fault+halved") and "halved" not in "".join(halved.event[20:])
    assert plain[:19].equals(halved[:19]) and (plain.tokens_trained == halved.tokens_trained).all()
    assert halved.loss[19:].dropna().to_numpy() == pytest.approx(plain.loss[19:].dropna().to_numpy(), rel=1e-3)


def test_memory_that_does_not_suffice_for_one_sequence_is_said_so() -> None:
    with pytest.raises(torch.OutOfMemoryError, match="no memory for a micro-batch of one sequence"):
        train(run(batch_size=1, fault=dict(kind="out_of_memory", step=3)), "cpu")


@pytest.mark.parametrize(("kind", "step"), [("nan_gradient", 12), ("wild_jump", 7), ("wild_jump", 11)])
def test_a_fault_where_nothing_is_spoilt_is_said_and_not_recorded(kind: str, step: int) -> None:
    spared = run(study="spared", fault=dict(kind=kind, step=step))  # Full to 8, Predict to 16, then Correct
    why = "begins no Predict" if kind == "wild_jump" else "is in Predict"
    with pytest.warns(UserWarning, match=f"fault: step {step} {why}, so it spoils nothing"):
        train(spared, "cpu")
    train(run(study="sound"), "cpu")
    for one, other in zip(*(timeless(progress.run_folder(run(study=name))) for name in ("spared", "sound"))):
        pd.testing.assert_frame_equal(one, other, check_exact=True)
