"""Sweeps: tuning sees pilot seeds alone, equally often; what transfers is the frozen hybrid; bad settings are named."""

import json

import pandas as pd
import pytest
import yaml

from hybridlib.benchmark.peers import equal_steps
from hybridlib.method.schedule import PhaseSchedule
from hybridlib.study import sweeps as module
from hybridlib.study.parameters import OUTPUTS, ParameterError, load_study
from hybridlib.study.sweeps import COMPARED, EQUAL_TIME, YARDSTICK, Sweep, put, runs, sweeps

STUDY = load_study("cpu")
SWEEPS = sweeps(STUDY)


def of(prefix: str) -> dict[str, Sweep]:
    return {name: sweep for name, sweep in SWEEPS.items() if name.startswith(prefix)}


def test_trials_are_the_variants_and_every_combination_of_the_grid() -> None:
    sweep = Sweep(
        about="", seeds=[1], settings={"batch_size": 4},
        variants={"own": {"batch_size": 8}}, grid={"predictor.gain": [1.0, 2.0], "optimizer.lr": [0.1]},
    )  # fmt: skip
    assert sweep.trials() == {
        "own": {"batch_size": 8},
        "gain=1.0,lr=0.1": {"batch_size": 4, "predictor.gain": 1.0, "optimizer.lr": 0.1},
        "gain=2.0,lr=0.1": {"batch_size": 4, "predictor.gain": 2.0, "optimizer.lr": 0.1},
    }


@pytest.mark.parametrize("name", SWEEPS)
def test_every_trial_is_a_possible_run_of_its_own(name: str) -> None:
    found = runs(STUDY, name, SWEEPS[name])
    settings = {json.dumps(run.model_dump(exclude={"arm", "about", "role"})) for run in found}
    assert found and len({run.id for run in found}) == len(settings) == len(found)
    assert all(run.threads == 1 and run.study == f"cpu/research/{name}" for run in found)


def test_tuning_sees_pilot_seeds_alone_and_what_is_measured_other_seeds() -> None:
    assert of("tuning_") and all(set(sweep.seeds) <= set(STUDY.pilot_seeds) for sweep in of("tuning_").values())
    measured = of(YARDSTICK) | of(COMPARED)
    assert len({tuple(sweep.seeds) for sweep in measured.values()}) == 1, "every yardstick has every seed"
    assert all(len(s.seeds) >= 8 and not {*STUDY.seeds, *STUDY.pilot_seeds} & {*s.seeds} for s in measured.values())


def test_the_frozen_hybrid_has_settings_that_were_tried() -> None:
    tried = [run.model_dump() for run in runs(STUDY, "tuning_hybrid", SWEEPS["tuning_hybrid"])]
    frozen = STUDY.run("hybrid", STUDY.judged, STUDY.seeds[0]).model_dump()
    same = ("optimizer", "predictor", "schedule", "steps", "batch_size", "model")
    assert any(all(t[key] == frozen[key] for key in same) for t in tried)


def test_computed_steps_are_equal_or_take_the_tuned_hybrids_time() -> None:
    """Each rate is decayed over the whole run, so a length is a run of its own."""
    in_time = equal_steps(pd.read_csv(OUTPUTS / "cpu" / "results" / "speed_peers.csv"), "hybrid_tuned")
    for name, sweep in of(COMPARED).items():
        arms = {trial: settings.get("arm", sweep.arm) for trial, settings in sweep.trials().items()}
        for run in runs(STUDY, name, sweep):
            if name.endswith(EQUAL_TIME):
                assert run.steps == in_time[arms[run.arm]], run.arm
            elif run.schedule:
                lengths = run.schedule.model_dump()
                assert PhaseSchedule(**lengths, total=run.steps).computed == 410, run.arm
            else:
                assert run.steps == 410, run.arm


def test_what_carries_is_the_frozen_hybrid() -> None:
    frozen = STUDY.arms["hybrid"]
    for name, sweep in of("carry_").items():
        hybrids = [run for run in runs(STUDY, name, sweep) if run.predictor]
        for run in hybrids:
            settings = run.predictor.settings | {"precision": None}
            assert settings == frozen.predictor.settings | {"precision": None}, "nothing but the precision may differ"
            assert run.schedule == frozen.schedule and run.optimizer == frozen.optimizer
        assert hybrids and {run.arm for run in runs(STUDY, name, sweep)} == {"baseline", "hybrid"}


def test_a_setting_that_no_run_has_is_refused_by_name() -> None:
    bad = Sweep(about="", seeds=[1], variants={"x": {"schedule.fulll": 3}})
    with pytest.raises(ParameterError, match=r"research.cpu\.yaml: mine: x: .*schedule\.fulll': did you mean full"):
        runs(STUDY, "mine", bad)
    with pytest.raises(ParameterError, match="predictor: predictor spectral has no setting 'gian': did you mean gain"):
        runs(STUDY, "mine", Sweep(about="", seeds=[1], variants={"x": {"predictor.gian": 3.0}}))
    for place in (["b", "c"], ["a", "b", "c"], ["number", "b"], ["predictor", "gain"]):
        with pytest.raises(ValueError, match="no setting"):
            put({"a": {}, "number": 1, "predictor": None}, place, 1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (dict(arm="hybird"), "no arm 'hybird': did you mean hybrid"),
        (dict(data="txet"), "no data source 'txet': did you mean text"),
        (dict(variants={"x": {"arm": ["hybrid"]}}), "no arm .'hybrid'."),
        (dict(variants={"x": {"arm": "baseline", "predictor.gain": 1.0}}), "no setting 'predictor.gain'"),
        *((dict(settings={key: 5}), f"{key}: where a trial's records lie") for key in ("study", "seed", "data")),
    ],
)
def test_a_trial_that_cannot_be_is_refused_with_file_and_sweep(given, said) -> None:
    with pytest.raises(ParameterError, match=rf"research.cpu\.yaml: mine: x: .*{said}"):
        runs(STUDY, "mine", Sweep(**dict(about="", seeds=[1], variants={"x": {}}) | given))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (dict(grid={"optimizer.lr": [1e-3, 1e-3]}), "two trials are called 'lr=0.001'"),
        (dict(grid={"optimizer.lr": [1e-3]}, variants={"lr=0.001": {}}), "two trials are called"),
        (dict(variant={}), "variant: unknown key: did you mean variants"),
        (dict(seeds=[1, 1]), "seeds: 1 is given twice"),
        (dict(grid={"optimizer.lr": []}), "no trial"),
    ],
)
def test_a_bad_sweep_is_refused_by_name(tmp_path, monkeypatch, given, said) -> None:
    monkeypatch.setattr(module, "PARAMS", tmp_path)
    (tmp_path / "research").mkdir()
    (tmp_path / "research" / "cpu.yaml").write_text(yaml.safe_dump(dict(one=dict(about="x", seeds=[1]) | given)))
    with pytest.raises(ParameterError) as refused:
        sweeps(STUDY)
    assert "cpu.yaml: one" in str(refused.value) and said.split(": ")[-1] in str(refused.value)


def test_a_broken_file_is_refused_with_its_name(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "PARAMS", tmp_path)
    assert sweeps(STUDY) == {}, "a study without sweeps has none"
    (tmp_path / "research").mkdir()
    (tmp_path / "research" / "cpu.yaml").write_text("one: {about: x, seeds: []}")
    with pytest.raises(ParameterError, match="cpu.yaml: one"):
        sweeps(STUDY)


def test_a_setting_that_reaches_into_another_is_its_own_trials_alone() -> None:
    sweep = Sweep(
        about="",
        seeds=[1, 2],
        settings={"predictor": dict(name="spectral", gain=1.0)},
        variants={"plain": {}, "twice": {"predictor.gain": 2.0}},
    )
    found = [(run.arm, run.seed, run.predictor.settings["gain"]) for run in runs(STUDY, "mine", sweep)]
    assert found == [("plain", 1, 1.0), ("twice", 1, 2.0), ("plain", 2, 1.0), ("twice", 2, 2.0)]
