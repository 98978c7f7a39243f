"""Executed chapters: what makes one stale, what does not, and that copies of the same inputs look alike."""

import json
import shutil
from pathlib import Path

import nbformat
import pytest

from hybridlib.method import settings
from hybridlib.study import chapters, parameters
from hybridlib.study.parameters import PARAMS, ROOT, ParameterError, load_study
from hybridlib.study.plan import READERS, Job, plan
from hybridlib.training import NUMERICS

SMOKE = load_study("smoke")
JOBS = {job.stage: job for job in plan(SMOKE, "smoke", device="cpu") if not job.run}
COMPUTING = [stage for stage in JOBS if stage not in READERS]


@pytest.fixture(autouse=True)
def own_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every chapter of the smoke study, as if it had been executed to its end."""
    monkeypatch.setattr(chapters, "OUTPUTS", tmp_path)
    for job in JOBS.values():
        assert chapters.chapter_state(job, "smoke") == "missing"
        out = chapters.chapter_path(job, "smoke")
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(chapters.source(job).read_text(encoding="utf-8"), encoding="utf-8")
        assert chapters.chapter_state(job, "smoke") == "partial"
        chapters.stamp(out, out, made_by=chapters.made_by(job))
    return tmp_path


def states() -> dict[str, str]:
    return {stage: chapters.chapter_state(job, "smoke") for stage, job in JOBS.items()}


def recorded(job: Job, **changes) -> None:
    """Write changes into what a chapter says it was made by."""
    path = chapters.chapter_path(job, "smoke")
    chapters.stamp(path, path, made_by=chapters.metadata(path)["made_by"] | changes)


def test_what_computes_is_complete_and_what_reads_is_executed_again() -> None:
    assert states() == {stage: "reads" if stage in READERS else "complete" for stage in JOBS}


def test_records_and_unrelated_files_make_nothing_stale(own_outputs: Path, tmp_path: Path, monkeypatch) -> None:
    record = own_outputs / "smoke" / "runs" / "baseline-text-s42" / "run.json"
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    params = tmp_path / "params"
    params.mkdir()
    for path in PARAMS.glob("*.yaml"):
        (params / path.name).write_text(path.read_text())
    (params / "another.yaml").write_text("study: another")
    (params / ".#smoke.yaml").symlink_to("somebody@a.machine.4711:1")  # an editor's lock
    (params / ".ipynb_checkpoints").mkdir()
    (params / ".ipynb_checkpoints" / "smoke-checkpoint.yaml").write_text("study: smoke")
    beside = tmp_path / "predictors"
    shutil.copytree(settings.FOLDER, beside, ignore=shutil.ignore_patterns("__pycache__"))
    (beside / ".#wnn.py").symlink_to("somebody@a.machine.4711:1")
    (beside / "wnn.lock.py").symlink_to("nowhere")
    (beside / "wnn.py~").write_text("class")
    (beside / ".ipynb_checkpoints").mkdir()
    (beside / ".ipynb_checkpoints" / "wnn-checkpoint.py").write_text("class Wnn: half")
    monkeypatch.setattr(settings, "FOLDER", beside)
    for module in (parameters, chapters):
        monkeypatch.setattr(module, "PARAMS", params)
    assert "stale" not in states().values()
    assert load_study("smoke") == SMOKE
    with pytest.raises(ParameterError, match="Known: another, cpu, gpt2-medium, gpt2-small, gpt2-small-gpu, smoke;"):
        load_study("nobody")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("about:", "about: other words, of", ""),
        ("keep_weights: true", "keep_weights: false", ""),
        ("seeds: [42, 43]", "seeds: [42, 44]", "study.seeds was [42, 43], today's is [42, 44]"),
        ("steps: 60", "steps: 61", "study.steps was 60, today's is 61"),
    ],
)
def test_settings_of_the_study_count_and_words_do_not(
    tmp_path: Path, monkeypatch, old: str, new: str, said: str
) -> None:
    text = (PARAMS / "smoke.yaml").read_text()
    assert old in text
    (tmp_path / "smoke.yaml").write_text(text.replace(old, new))
    changed = load_study(str(tmp_path / "smoke.yaml"))
    monkeypatch.setattr(chapters, "load_study", lambda name: changed)
    assert {stage: chapters.why_chapter_stale(JOBS[stage], "smoke") for stage in COMPUTING} == dict.fromkeys(
        COMPUTING, said
    )


def test_a_setting_newer_than_the_chapter_counts_as_at_its_default() -> None:
    job = JOBS["phases"]
    study = chapters.made_by(job)["study"]
    del study["timing"]
    recorded(job, study=study)
    assert chapters.chapter_state(job, "smoke") == "complete"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(cells_sha256="other"), "the notebook's cells have changed"),
        (dict(numerics=0), f"made under NUMERICS 0, today's is {NUMERICS}"),
        (dict(parameters=dict(study="smoke", device="cuda:0")), "parameters.device was 'cuda:0', today's is 'cpu'"),
        (dict(study=dict(colour="blue")), "today's schema refuses its study: colour: unknown key: "),
        (
            dict(study=None),
            "today's schema refuses its study: None: Input should be a valid dictionary or instance of Study",
        ),
    ],
)
def test_one_sentence_says_why_a_chapter_is_stale(changes: dict, said: str) -> None:
    recorded(JOBS["functionality"], **changes)
    assert chapters.chapter_state(JOBS["functionality"], "smoke") == "stale"
    assert chapters.why_chapter_stale(JOBS["functionality"], "smoke").startswith(said)


def test_criteria_are_what_the_question_shows() -> None:
    recorded(JOBS["question"], criteria={})
    assert [stage for stage, state in states().items() if state == "stale"] == ["question"]


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"cells": []}', '{"metadata": 3}', "\udc80"])
def test_a_copy_that_is_empty_or_cut_off_is_missing(content: str) -> None:
    for job in JOBS.values():
        chapters.chapter_path(job, "smoke").write_bytes(content.encode("utf-8", "surrogateescape"))
        chapters.stamp(*2 * [chapters.chapter_path(job, "smoke")])  # as at the end of an execution that was interrupted
    assert set(states().values()) == {"missing"}


def test_copies_name_no_folder_of_this_machine_and_no_time(tmp_path: Path) -> None:
    times = dict(start_time="1", end_time="2", duration=1)
    cell = nbformat.v4.new_code_cell(
        metadata=dict(execution={"iopub.busy": "1"}, papermill=times | dict(exception=False))
    )
    given = nbformat.v4.new_code_cell(metadata=dict(tags=["injected-parameters"]))
    notebook = nbformat.v4.new_notebook(
        cells=[cell, given], metadata=dict(papermill=times | dict(input_path="/a", output_path="/b"))
    )
    nbformat.write(notebook, tmp_path / "x.ipynb")
    chapters.stamp(tmp_path / "x.ipynb", tmp_path / "x.ipynb", made_by="abc")
    there = json.loads((tmp_path / "x.ipynb").read_text())
    assert there["metadata"] == dict(papermill={}, made_by="abc")
    assert [part["metadata"] for part in there["cells"]] == [
        dict(papermill=dict(exception=False)),
        dict(tags=["injected-parameters"]),
    ]
    assert there["cells"][1]["id"] == "injected-parameters"


@pytest.mark.parametrize("name", ["cpu", "gpt2-small", "gpt2-small-gpu", "gpt2-medium"])
def test_what_is_committed_was_made_by_what_is_there(monkeypatch, name: str) -> None:
    monkeypatch.setattr(chapters, "OUTPUTS", ROOT / "outputs")
    found = {job.stage: chapters.chapter_state(job, name) for job in plan(load_study(name), name) if not job.run}
    assert {stage for stage in found if found[stage] == "reads"} == set(found) & set(READERS)
    for job in plan(load_study(name), name):
        if not job.run and job.stage not in READERS and found[job.stage] != "complete":
            made_by = chapters.metadata(chapters.chapter_path(job, name))["made_by"]
            assert name != "cpu" and made_by["numerics"] < NUMERICS, "only larger models wait for their next training"
