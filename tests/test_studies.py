"""Parameter files: the studies that there are can be used, and a bad file is refused with what is wrong and where."""

import copy
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hybridlib.study import progress
from hybridlib.study.parameters import ParameterError, known_studies, load_study, merged, read_yaml
from hybridlib.study.run import HELD_OUT_SEED
from hybridlib.study.schema import Study

STUDIES = known_studies()
GOOD = dict(
    study="good",
    model=dict(preset="nano", vocab_size=512),
    sources=dict(text=dict(kind="text", tokenizer_vocab=512)),
    steps=60,
    batch_size=4,
    seq_len=32,
    seeds=[42],
    arms=dict(mine=dict(like="hybrid", steps=80)),
    plan=dict(benchmark=[dict(arms=["baseline", "hybrid", "memory_optimized", "mine"], data=["text"])]),
)


def changed(path: str, value: object) -> dict:
    """GOOD with one value put in at a dotted path, which is made if need be."""
    content = copy.deepcopy(GOOD)
    *above, last = path.split(".")
    place = content
    for key in above:
        place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
    place[last] = value
    return content


def load(folder: Path, content: dict | str) -> Study:
    file = folder / "bad.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return load_study(str(file))


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_there_is_can_be_used(name):
    study = load_study(name)
    assert study.study == name
    for stage, sweeps in study.plan.items():
        runs = [study.run(arm, data, study.seeds[0]) for s in sweeps for arm in s.arms for data in s.data]
        assert runs, stage
    assert not set(study.seeds) & set(study.pilot_seeds)


@pytest.mark.parametrize("name", ["smoke", "cpu", "gpt2-small"])
def test_the_briefs_arms_controls_and_stages_are_planned(name):
    study = load_study(name)
    planned = {stage: {arm for sweep in sweeps for arm in sweep.arms} for stage, sweeps in study.plan.items()}
    assert {"baseline", "hybrid", "memory_optimized", "hold", "sham"} <= planned["benchmark"]
    assert {"baseline_bf16", "hybrid_bf16", "hybrid_accumulation", "hybrid_offload"} <= planned["ablation"]
    assert {arm[:3] for arm in planned["stress"]} == {"st1", "st2", "st3", "st4"}
    assert {source.kind for source in study.sources.values()} == {"text", "markov", "uniform"}
    fault = next(study.arms[arm].fault for arm in planned["stress"] if arm.startswith("st4"))
    recovery = next(study.run(arm, "text", study.seeds[0]) for arm in planned["stress"] if arm.startswith("st4"))
    cycle = recovery.schedule.full + recovery.schedule.predict + recovery.schedule.correct
    place = (fault.step - 1 - recovery.schedule.warmup) % cycle
    assert place < recovery.schedule.full, "the fault must hit a real step of Full"


@pytest.mark.parametrize("name", ["smoke", "cpu", "gpt2-small", "gpt2-small-gpu", "gpt2-medium"])
def test_hybrids_phases_are_in_the_briefs_bands(name):
    s = load_study(name).arms["hybrid"].schedule
    cycle = s.full + s.predict + s.correct
    assert s.warmup == 10
    assert 0.20 <= s.full / cycle <= 0.30 and 0.50 <= s.predict / cycle <= 0.60 and 0.10 <= s.correct / cycle <= 0.20


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("stepps", 10, ["stepps", "unknown key"]),
        ("model.layers", 2, ["model.layers", "unknown key"]),
        ("arms.mine.preicsion", "bf16", ["arms.mine.preicsion", "unknown key"]),
        ("steps", "many", ["steps", "'many'", "integer"]),
        ("steps", 60.0, ["steps", "60.0", "integer"]),
        ("steps", True, ["steps", "True", "integer"]),
        ("steps", 0, ["steps", "0", "greater than or equal to 1"]),
        ("seeds", [], ["seeds", "at least 1"]),
        ("seeds", [42, -1], ["seeds.1", "-1", "greater than or equal to 0"]),
        ("study", "../elsewhere", ["study", "../elsewhere"]),
        ("pilot_seeds", [42], ["[42]", "pilot"]),
        ("arms.hybrid.schedule.predict", -1, ["arms.hybrid.schedule.predict", "-1", "greater than or equal to 0"]),
        ("arms.hybrid.schedule.warmup", 60, ["arms.hybrid", "schedule.warmup 60", "60 steps"]),
        ("arms.hybrid.predictor.name", "oracle", ["arms.hybrid.predictor", "'oracle'", "spectral"]),
        ("arms.hybrid.predictor.gian", 1.0, ["arms.hybrid.predictor", "gian", "gain"]),
        ("arms.mine.schedule", None, ["arms.mine", "schedule and predictor go together"]),
        ("arms.mine.precision", "fp8", ["arms.mine.precision", "'fp8'", "bf16"]),
        ("arms.mine.like", "nobody", ["arms.mine.like", "'nobody'", "hybrid"]),
        ("arms.hybrid.like", "mine", ["like", "itself"]),
        ("arms.memory_optimized.accumulation", 3, ["accumulation 3", "batch_size 4"]),
        ("arms.mine.fault", dict(kind="lr_spike", step=0, factor=10.0), ["arms.mine.fault.step", "0"]),
        ("sources.text.tokenizer_vocab", 513, ["tokenizer_vocab 513", "vocab_size 512"]),
        ("sources.text.tokenizer_vocab", 256, ["sources.text.tokenizer_vocab", "256", "257"]),
        ("sources.text.kind", "wiki", ["sources.text.kind", "'wiki'", "markov"]),
        ("sources.even", dict(kind="uniform", paths=["x"]), ["sources.even", "paths", "text"]),
        ("sources.even", dict(kind="markov", max_mb=1.0), ["sources.even", "max_mb", "text"]),
        ("model.n_head", 3, ["n_embd 128", "n_head 3"]),
        ("model.preset", "huge", ["model.preset", "'huge'", "nano"]),
        ("seq_len", 600, ["seq_len 600", "block_size 512"]),
        ("plan.benchmark.0.arms", ["nobody"], ["plan.benchmark", "'nobody'", "baseline"]),
        ("plan.benchmark.0.data", ["prose"], ["plan.benchmark", "'prose'", "text"]),
        ("plan.tuning", [], ["plan", "tuning", "benchmark"]),
        ("arms", ["baseline"], ["arms", "must map"]),
        ("seeds", [42, 42], ["seeds", "42 is given twice"]),
        ("pilot_seeds", [7, 7], ["pilot_seeds", "7 is given twice"]),
        ("seeds", [2**63], ["seeds.0", str(2**63), "less than"]),
        ("seeds", [HELD_OUT_SEED], ["seeds.0", str(HELD_OUT_SEED), "held-out batches"]),
        ("seeds", [42.0], ["seeds.0", "42.0", "write 42"]),
        ("seeds", ["42"], ["seeds.0", "'42'", "without quotes"]),
        ("study", 7, ["study", "7", "put it in quotes"]),
        ("study", "x" * 101, ["study", "at most 100"]),
        ("sources", {"a/b": dict(kind="uniform")}, ["sources.a/b", "pattern"]),
        ("arms.a/b", dict(like="baseline"), ["arms.a/b", "pattern"]),
        ("plan.benchmark.0.seeds", [1, 1], ["plan.benchmark.0.seeds", "1 is given twice"]),
        ("plan.benchmark.0.arms", ["hybrid", "hybrid"], ["plan.benchmark.0.arms", "'hybrid' is given twice"]),
        ("plan.benchmark.0.arms", ["hybird"], ["plan.benchmark", "'hybird'", "did you mean hybrid?"]),
        ("plan.benchmark.0.data", ["txet"], ["plan.benchmark", "'txet'", "did you mean text?"]),
        ("judged_on", "txt", ["judged_on", "'txt'", "did you mean text?"]),
        ("leave_out", ["predictor"], ["leave_out.0", "'predictor'", "did you mean predictors?"]),
        ("chapters", {"03_predictor": {}}, ["chapters.03_predictor", "did you mean 03_predictors?"]),
        ("step", 10, ["bad.yaml: step: unknown key: did you mean steps?"]),
        ("arms.mine.precison", "bf16", ["arms.mine.precison: unknown key: did you mean precision?"]),
        ("arms.mine.optimizer.name", "adm", ["arms.mine.optimizer.name", "'adm'", "did you mean adam?"]),
        ("arms.mine.optimizer.lr", float("inf"), ["arms.mine.optimizer.lr", "inf", "finite"]),
        ("arms.mine.optimizer.lr", float("nan"), ["arms.mine.optimizer.lr", "nan"]),
        ("arms.mine.optimizer.lr", "0.001", ["arms.mine.optimizer.lr", "'0.001'", "without quotes"]),
        ("arms.hybrid.predictor.name", "spectrl", ["arms.hybrid.predictor", "'spectrl'", "did you mean spectral?"]),
        ("arms.hybrid.predictor.gain", "big", ["arms.hybrid.predictor", "gain: 'big' must be a number"]),
        ("arms.hybrid.predictor.precision", "fp8", ["arms.hybrid.predictor", "precision: 'fp8'", "bf16"]),
        ("arms.hybrid.predictor.iterations", -3, ["arms.hybrid.predictor", "iterations: -3"]),
        ("arms.mine.fault", dict(kind="lr_spike", step=81), ["arms.mine", "fault.step 81", "80 steps"]),
        ("threads", 5000, ["threads", "5000", "1024"]),
        ("arms.mine", None, ["arms.mine: None: must be settings"]),
        ("arms", 0, ["arms: 0: must map"]),
        ("seeds", 3, ["seeds: 3", "write [3]"]),
        ("seeds", ["08"], ["seeds.0: '08'", "write 8 without quotes"]),
        ("leave_out", [["phases"] * 1000], ["leave_out.0", "'phases', ...]"]),
        ("chapters", {"09_report": dict(study="cpu")}, ["chapters.09_report.study", "--study"]),
        ("chapters", {"02_phases": dict(device="cpu")}, ["chapters.02_phases.device", "--device"]),
        ("sources.text.paths", [""], ["sources.text.paths.0: ''", "at least 1 character"]),
        ("sources.text.successors", 2, ["sources.text: successors = 2 belongs to kind markov, not text"]),
        ("sources.even", dict(kind="uniform", held_out_pct=9.0), ["sources.even: held_out_pct = 9.0", "kind text"]),
        ("arms.mine.optimizer.lr_matrices", 0.01, ["arms.mine.optimizer: lr_matrices = 0.01", "muon, not adam"]),
        ("arms.mine.optimizer.slow_every", 6, ["arms.mine.optimizer: slow_every = 6", "lookahead, not adam"]),
        ("also_reads", ["gpt2-smal"], ["also_reads", "'gpt2-smal'", "did you mean gpt2-small?"]),
    ],
)
def test_a_bad_value_is_refused_by_name(tmp_path, path, value, said):
    with pytest.raises(ParameterError) as refused:
        load(tmp_path, changed(path, value))
    for words in ["bad.yaml", *said]:
        assert words in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("study: good\nsteps: 1\nsteps: 2\n", ["'steps'", "twice", "line 3"]),
        ("study: [good\n", ["not valid YAML"]),
        ("- study\n- good\n", ["key: value"]),
        ("", ["key: value"]),
        ("1: 2\n", ["key 1 must be text", "quotes"]),
        ("study: good\n? [a]\n: 1\n", ["not valid YAML"]),
        ("seeds: [042, 43]", ["042", "base 8", "34", "42", "line 1"]),
        ("seeds: [-042]", ["-042", "base 8"]),
        ("seeds: [1:30, 43]", ["1:30", "base 60", "90", "line 1"]),
        ("max_mb: 1:30.5", ["1:30.5", "base 60", "90.5"]),
        ("on: true", ["key True", "quotes"]),
        ("study: 007", ["007 is read in base 8", '"007" for text']),
        ("steps: 1" + "0" * 400, ["line 1", "1000", "too large"]),
        ("arms:\n\t- a", ["line 2", "Indent with spaces"]),
        ("arms: &a {b: *a}", ["an alias inside of what it stands for"]),
        ("arms: " + "[" * 500 + "]" * 500, ["more than 30 levels"]),
        ("arms: " + "[" * 200_000, ["more than 30 levels"]),
        ("arms: {a: {b: 1, <<: {c: 2}, b: 3}}", ["'b' given twice"]),
    ],
)
def test_a_malformed_file_is_refused(tmp_path, text, said):
    with pytest.raises(ParameterError) as refused:
        load(tmp_path, text)
    for words in ["bad.yaml", *said]:
        assert words in str(refused.value)


def test_numbers_are_read_as_they_are_written(tmp_path):
    (tmp_path / "x.yaml").write_text(
        "\ufeffa: [1e-3, 1E3, -2e+5, .5e1, 1.0e-3, 0, -7, 1_000, 0.5, 2026-01-01, 1e, e1, on]"
    )
    found = read_yaml(tmp_path / "x.yaml")["a"]
    assert found == [1e-3, 1e3, -2e5, 5.0, 1e-3, 0, -7, 1000, 0.5, "2026-01-01", "1e", "e1", True]
    assert [type(value) for value in found[:5]] == [float] * 5


def test_merge_keys_and_anchors_are_read(tmp_path):
    own = "a: {guards: &g {sigmas: 3.0, grace_steps: 1}}, b: {guards: &h {<<: *g, sigmas: 2.0}}, c: {guards: {<<: *h}}"
    (tmp_path / "merged.yaml").write_text(f"arms: {{{own}}}")
    arms = read_yaml(tmp_path / "merged.yaml")["arms"]
    assert arms["b"]["guards"] == arms["c"]["guards"] == dict(sigmas=2.0, grace_steps=1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            dict(
                sources=dict(text=GOOD["sources"]["text"]) | {"x-text": dict(kind="uniform")},
                arms={"baseline-x": dict(like="baseline")},
                plan=dict(benchmark=[dict(arms=["baseline", "baseline-x"], data=["text", "x-text"])]),
            ),
            "arm baseline on x-text and arm baseline-x on text would share a folder",
        ),
        (
            dict(pilot_seeds=[7], plan=dict(benchmark=[dict(arms=["hybrid"], data=["text"], seeds=[7])])),
            "plan.benchmark: seeds [7] are pilot seeds",
        ),
        (
            dict(sources=dict(text=dict(kind="text")), model=dict(preset="nano", vocab_size=256)),
            "on text: vocab_size 256 is too small for text: at least 257",
        ),
    ],
)
def test_settings_that_do_not_fit_one_another_are_refused(tmp_path, given, said):
    with pytest.raises(ParameterError) as refused:
        load(tmp_path, GOOD | given)
    assert "bad.yaml: " in str(refused.value) and said in str(refused.value)


def test_speed_is_measured_on_the_judged_source_without_pilot_seeds_too(tmp_path):
    study = load(tmp_path, GOOD | dict(sources=dict(prose=GOOD["sources"]["text"]), plan={}))
    run = study.timed_run("baseline")
    assert (run.data, run.seed) == ("prose", 42)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ParameterError, match="binary.yaml: is not UTF-8 text: invalid start byte at byte 0"):
        load_study(str(tmp_path / "binary.yaml"))
    with pytest.raises(ParameterError, match="cannot be read"):
        read_yaml(tmp_path)
    with pytest.raises(ParameterError, match="no study 'cpuu'.*cpu, gpt2-medium"):
        load_study("cpuu")


def test_an_arm_takes_what_it_does_not_say_from_the_arm_it_is_like(tmp_path):
    study = load(tmp_path, changed("arms.hybrid", dict(schedule=dict(full=3), precision="bf16")))
    hybrid, mine = study.arms["hybrid"], study.arms["mine"]
    assert mine.schedule == hybrid.schedule and mine.schedule.full == 3 and mine.precision == "bf16"
    assert (mine.steps, hybrid.steps) == (80, None)
    assert mine.schedule.predict == load_study("cpu").arms["hybrid"].schedule.predict


def test_another_predictor_does_not_inherit_settings():
    below = dict(predictor=dict(name="spectral", gain=1.0), precision="bf16")
    above = dict(predictor=dict(name="hold"))
    assert merged(below, above) == dict(predictor=dict(name="hold"), precision="bf16")
    assert merged(below, dict(predictor=dict(gain=0.5)))["predictor"] == dict(name="spectral", gain=0.5)


def test_parameters_that_change_a_record_make_it_stale_and_descriptions_do_not(tmp_path):
    run = load(tmp_path, GOOD).run("hybrid", "text", 42)
    for same in (
        changed("about", "other words"),
        changed("arms.hybrid.about", "other words"),
        changed("study", "other"),
    ):
        assert not progress.why_run_stale(load(tmp_path, same).run("hybrid", "text", 42), progress.identity(run))
    for other in (
        changed("steps", 61),
        changed("sources.text.held_out_pct", 4.0),
        changed("arms.hybrid.precision", "bf16"),
    ):
        assert progress.why_run_stale(load(tmp_path, other).run("hybrid", "text", 42), progress.identity(run))


scalars = st.none() | st.booleans() | st.integers(-5, 5000) | st.floats(allow_nan=True) | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*GOOD, "kind", "like"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.dictionaries(st.sampled_from([*Study.model_fields]), values, max_size=4),
    drop=st.sets(st.sampled_from([*GOOD])),
)
def test_any_mapping_is_a_study_or_a_parameter_error(tmp_path, changes, drop):
    content = {key: value for key, value in (GOOD | changes).items() if key not in drop or key in changes}
    try:
        assert isinstance(load(tmp_path, content), Study)
    except ParameterError as error:
        assert str(tmp_path / "bad.yaml") in str(error)
