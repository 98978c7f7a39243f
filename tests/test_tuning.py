"""Searches: every arm has as many trials, on pilot seeds; proposals depend on the table alone; edges are named."""

from pathlib import Path

import optuna
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlib.study import parameters, progress, searches, sweeps
from hybridlib.study.parameters import ParameterError, load_study
from hybridlib.study.searches import Range, Search, at_an_edge, best, tried
from hybridlib.training import tuning
from hybridlib.training.assemble import schedule_of

optuna.logging.set_verbosity(optuna.logging.WARNING)
STUDY = load_study("cpu")
SEARCHES = searches.searches(STUDY)
TINY = dict(
    study="tiny",
    model=dict(preset="nano", n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=32),
    sources=dict(text=dict(kind="markov", successors=2)),
    steps=40, batch_size=4, seq_len=8, eval_batches=1, seeds=[1], pilot_seeds=[8, 9],
)  # fmt: skip
RANGES = {"optimizer.lr": dict(low=0.0001, high=0.01, log=True), "optimizer.lr_warmup_steps": dict(low=1, high=9)}
ASKED = dict(about="two settings", arm="baseline", seeds=[8, 9], trials=4, start=2, ranges=RANGES)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("research", "tuning"):
        (tmp_path / name).mkdir()
    (tmp_path / "tuning" / "tiny.yaml").write_text(yaml.safe_dump({"adam": ASKED}))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    (tmp_path / "arms.yaml").write_text((parameters.PARAMS / "arms.yaml").read_text())
    monkeypatch.setattr(parameters, "PARAMS", tmp_path)
    for module in (parameters, progress):
        monkeypatch.setattr(module, "OUTPUTS", tmp_path / "outputs")
    monkeypatch.setenv("HYBRIDLIB_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path


ends = st.floats(1e-4, 1e3).map(lambda x: float(f"{x:.3g}"))


@given(st.tuples(ends, ends).filter(lambda e: e[0] < e[1]), st.booleans(), st.floats(0, 1))
def test_a_value_lies_in_its_range_and_where_its_share_says(span: tuple[float, float], log: bool, share: float) -> None:
    within = Range(low=span[0], high=span[1], log=log)
    value = within.at(share)
    assert span[0] <= value <= span[1] and within.rounded(value) == value
    assert (within.at(0.0), within.at(1.0)) == span
    exact = within.low * (within.high / within.low) ** share if log else within.low + share * (within.high - within.low)
    assert value == pytest.approx(exact, rel=0.006)


def test_whole_numbers_stay_whole() -> None:
    assert [Range(low=1, high=5).at(share) for share in (0, 0.3, 0.5, 1)] == [1, 2, 3, 5]
    assert all(isinstance(Range(low=1, high=20, log=True).at(i / 9), int) for i in range(10))


@pytest.mark.parametrize(("value", "said"), [(0.0012, "low end"), (0.009, "high end"), (0.003, None)])
def test_a_best_setting_near_an_end_is_named_unless_the_setting_ends_there(value: float, said: str | None) -> None:
    search = Search(**ASKED | dict(ranges={"optimizer.lr": dict(low=0.001, high=0.01, log=True)}))
    found = at_an_edge({"optimizer.lr": value}, search)
    assert (said in found[0] and f"optimizer.lr = {value}" in found[0]) if said else not found
    at_limits = dict(low=0.001, high=0.01, log=True, limit=["low", "high"])
    assert not at_an_edge({"optimizer.lr": value}, Search(**ASKED | dict(ranges={"optimizer.lr": at_limits})))


@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(2.0, 5.0), min_size=0, max_size=6))
def test_what_is_proposed_depends_on_the_table_alone(losses: list[float]) -> None:
    search = Search(**ASKED)
    rows = pd.DataFrame(columns=["trial", *RANGES, "loss_8", "loss_9"])
    for at, loss in enumerate(losses):
        point = tuning.propose(search, rows.assign(loss=rows[["loss_8", "loss_9"]].mean(axis=1)))
        assert point == tuning.propose(search, rows.assign(loss=rows[["loss_8", "loss_9"]].mean(axis=1)))
        assert all(search.ranges[place].low <= value <= search.ranges[place].high for place, value in point.items())
        row = pd.DataFrame([dict(trial=at) | point | dict(loss_8=loss, loss_9=loss)])
        rows = pd.concat([rows, row]) if len(rows) else row


def test_a_search_is_trained_kept_and_goes_on_where_it_stopped(tiny: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["--study", str(tiny / "tiny.yaml")]
    study = load_study(command[1])
    search = searches.searches(study)["adam"]
    assert tuning.main([*command, "--trials", "1"]) in (0, 1)
    first = tried(study, "adam", search)
    tuning.main([*command, "--trials", "3"])
    rows = tried(study, "adam", search)
    assert list(rows.trial) == [0, 1, 2] and rows[:1].equals(first) and rows[["loss_8", "loss_9"]].notna().all(None)
    points = [{place: search.ranges[place].rounded(row[place]) for place in RANGES} for _, row in rows.iterrows()]
    assert points == [tuning.propose(search, rows[:at]) for at in range(3)], "whether it was stopped or not"
    assert len({tuple(point.values()) for point in points}) == 3
    assert [p.name for p in (tiny / "outputs/tiny/tuning").iterdir()] == ["adam.csv"]
    assert f"best {rows.loss.min():.4f} at {best(rows, search)}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(seeds=[1]), r"adam: seeds \[1\] are no pilot seeds"),
        (dict(ranges={"optimizer.lrr": RANGES["optimizer.lr"]}), "no setting 'optimizer.lrr': did you mean lr"),
        (dict(ranges={"optimizer.lr": dict(low=2.0, high=1.0)}), "from 2.0 to 1.0: low must be below high"),
        (dict(ranges={"optimizer.beta1": dict(low=0.5, high=1.5)}), "beta1"),
        (dict(ranges={"optimizer.momentum": dict(low=0.5, high=0.9)}), "belongs to name muon"),
    ],
)
def test_a_search_that_cannot_be_made_is_refused_by_name(tiny: Path, change: dict, said: str) -> None:
    (tiny / "tuning" / "tiny.yaml").write_text(yaml.safe_dump({"adam": ASKED | change}))
    with pytest.raises(ParameterError, match=rf"tiny\.yaml.*{said}"):
        searches.searches(load_study(str(tiny / "tiny.yaml")))


def test_a_table_of_another_search_is_named(tiny: Path, capsys: pytest.CaptureFixture) -> None:
    study = load_study(str(tiny / "tiny.yaml"))
    (name, search), *_ = searches.searches(study).items()
    file = searches.table(study, name)
    file.parent.mkdir(parents=True)
    file.write_text("trial,loss_9\n0,1.0\n")
    assert tuning.main(["--study", str(tiny / "tiny.yaml"), "--searches", name]) == 2
    lacking = min({*search.ranges, *(f"loss_{seed}" for seed in search.seeds)} - {"loss_9"})
    assert f"{name}.csv has no column {lacking}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(settings=dict(steps=31)), "has trials of other settings"),
        (dict(ranges=RANGES | {"optimizer.lr": dict(low=1e-9, high=1e-8, log=True)}), "outside of the range"),
    ],
)
def test_trials_that_the_search_would_not_make_now_are_refused(tiny: Path, change: dict, said: str) -> None:
    study = load_study(str(tiny / "tiny.yaml"))
    search = searches.searches(study)["adam"]
    file = searches.table(study, "adam")
    file.parent.mkdir(parents=True)
    row = dict(trial=0) | {place: span.at(0.5) for place, span in search.ranges.items()} | dict(loss_8=3.0, loss_9=3.0)
    for more in ({}, dict(asked=searches.asked_of(study, "adam", search))):
        pd.DataFrame([row | more]).to_csv(file, index=False)
        assert len(tried(study, "adam", search)) == 1
    with pytest.raises(ParameterError, match=rf"adam\.csv.*{said}"):
        tried(study, "adam", Search(**ASKED | change))


def test_every_arm_has_as_many_trials_on_the_same_pilot_seeds() -> None:
    assert len({(search.trials, search.start, tuple(search.seeds)) for search in SEARCHES.values()}) == 1
    assert all(search.trials >= 24 and len(search.seeds) >= 2 for search in SEARCHES.values())


@pytest.mark.parametrize("name", SEARCHES)
def test_every_arm_is_judged_after_as_many_computed_steps(name: str) -> None:
    run = searches.trial(STUDY, name, SEARCHES[name], 0, {})[0]
    assert schedule_of(run).computed == {"adamw_1000": 1000}.get(name, 410)


# A run that a search decided -> the search: arms of the study, and the yardstick where another search is nearer.
DECIDED = {name: (STUDY.run(name, STUDY.judged, STUDY.seeds[0]), name) for name in SEARCHES if name in STUDY.arms}
DECIDED |= {
    f"{name} of {run.steps}": (run, "adamw_1000" if run.steps >= 800 else name)
    for name in ("adamw", "muon")
    for run in sweeps.runs(STUDY, f"yardstick_{name}", sweeps.sweeps(STUDY)[f"yardstick_{name}"])
}


@pytest.mark.parametrize("name", sorted({of for _, of in DECIDED.values()}))
def test_a_search_that_decided_is_complete_and_its_best_lies_inside_of_its_ranges(name: str) -> None:
    rows = tried(STUDY, name, SEARCHES[name])
    assert len(rows) == SEARCHES[name].trials
    assert not at_an_edge(best(rows, SEARCHES[name]), SEARCHES[name])


@pytest.mark.parametrize("name", DECIDED)
def test_what_is_reported_has_its_searchs_best_settings(name: str) -> None:
    run, of = DECIDED[name]
    wanted = searches.trial(STUDY, of, SEARCHES[of], 0, best(tried(STUDY, of, SEARCHES[of]), SEARCHES[of]))[0]
    for key in ("optimizer", "clip_norm", "schedule", "predictor"):
        assert getattr(run, key) == getattr(wanted, key), key
    assert name not in STUDY.arms or run.steps == wanted.steps


@pytest.mark.parametrize("count", ["0", "-1", "two"])
def test_a_number_of_trials_that_is_none_is_refused(count: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        tuning.main(["--trials", count])
    assert "argument --trials" in capsys.readouterr().err
