"""The plan and the command: what would be run, in which order, and what is refused before anything is."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console

import run_all
from hybridlib.study import chapters, execute, pipeline, progress, progress_line
from hybridlib.study.parameters import ROOT, ParameterError, load_study
from hybridlib.study.plan import CHAPTERS, STAGES, TRAINING, Job, estimated_s, plan
from hybridlib.study.records import EvalRecord, RunFolder, StepRecord
from hybridlib.study.storage import InUse, locked

SMOKE = load_study("smoke")


@pytest.fixture
def outputs(tmp_path, monkeypatch) -> Path:
    """The folder of outputs, empty, for all that a start in this process reads and writes."""
    for module in (run_all, pipeline, chapters, progress):
        monkeypatch.setattr(module, "OUTPUTS", tmp_path)
    return tmp_path


def command(*args: str, outputs: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HYBRIDLIB_OUTPUTS": str(outputs)}
    return subprocess.run(
        [sys.executable, "run_all.py", *args], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def status(*args: str) -> int:
    try:
        return run_all.main(list(args))
    except SystemExit as refused:  # by argparse
        return refused.code


def training(jobs: list[Job]) -> list[Job]:
    return [job for job in jobs if job.run]


def test_every_planned_run_is_a_job_and_every_stage_ends_with_its_chapter():
    jobs = plan(SMOKE, "smoke")
    planned = {
        (stage, arm, data, seed)
        for stage, sweeps in SMOKE.plan.items()
        for sweep in sweeps
        for arm in sweep.arms
        for data in sweep.data
        for seed in sweep.seeds or SMOKE.seeds
    }
    first = [job for job in training(jobs) if not job.extends]
    assert {(job.stage, job.run.arm, job.run.data, job.run.seed) for job in first} == planned
    assert len(first) == len(planned)
    assert [job.notebook for job in jobs if not job.run] == list(CHAPTERS.values())
    last = {job.stage: job for job in jobs}
    assert all(last[stage].notebook == CHAPTERS[stage] for stage in STAGES)


def test_the_plan_is_a_pure_function():
    assert plan(SMOKE, "smoke") == plan(load_study("smoke"), "smoke")


def test_seeds_come_in_blocks_and_the_seed_shuffles_the_arms():
    jobs = [
        job for job in training(plan(load_study("cpu"), "cpu", only=["benchmark"], data=["text"])) if not job.extends
    ]
    seeds = [job.run.seed for job in jobs]
    assert seeds == sorted(seeds)
    orders = [[(job.run.arm, job.run.data) for job in jobs if job.run.seed == seed] for seed in sorted(set(seeds))]
    assert len({tuple(sorted(order)) for order in orders}) == 1
    assert len({tuple(order) for order in orders}) == len(orders)


def test_a_run_before_its_baseline_is_extended_after_it_and_no_other():
    jobs = training(plan(SMOKE, "smoke"))
    at = {job.name: place for place, job in enumerate(jobs)}
    for job in jobs:
        if job.extends:
            continue
        baseline = at.get(f"baseline-{job.run.data}-s{job.run.seed}")
        again = job.run.extend > 1 and baseline is not None and at[job.name] < baseline and job.stage == "benchmark"
        assert (f"{job.name} (extend)" in at) == again, job.name
        if again:
            assert at[f"{job.name} (extend)"] > baseline
            assert all(
                later.extends or later.run.seed != job.run.seed
                for later in jobs[at[f"{job.name} (extend)"] :]
                if later.stage == job.stage
            )
    assert any(job.extends for job in jobs)


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"arms": ["baseline", "hybrid"]},
        {"data": ["text"]},
        {"seeds": [43]},
        {"only": ["stress"]},
        {"arms": ["hybrid"], "data": ["text"], "seeds": [42]},
    ],
)
def test_a_choice_is_a_part_of_the_whole_plan_in_its_order(chosen):
    whole = [job.name for job in plan(SMOKE, "smoke")]
    part = plan(SMOKE, "smoke", **chosen)
    assert [name for name in whole if name in {job.name for job in part}] == [job.name for job in part]
    for job in training(part):
        assert job.run.arm in chosen.get("arms", [job.run.arm]) and job.run.seed in chosen.get("seeds", [job.run.seed])


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"arms": ["hybird"]}, "'hybird'.*baseline"),
        ({"data": ["prose"]}, "'prose'.*text"),
        ({"seeds": [7]}, "7.*42, 43"),
    ],
)
def test_a_choice_of_nothing_is_refused(chosen, said):
    with pytest.raises(ValueError, match=said):
        plan(SMOKE, "smoke", **chosen)


def test_sweeps_marked_full_are_left_to_full(tmp_path):
    content = yaml.safe_load((ROOT / "params" / "smoke.yaml").read_text())
    content["plan"]["benchmark"][2]["full"] = True
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    study = load_study(str(tmp_path / "s.yaml"))
    short, whole = ({job.run.data for job in training(plan(study, "s", full=full))} for full in (False, True))
    assert short == {"text"} and whole == {"text", "markov", "uniform"}
    assert plan(study, "s", data=["markov"]), "a name that only --full runs is no misspelling"


def test_jobs_carry_what_their_notebooks_need_and_nothing_else(tmp_path):
    jobs = plan(SMOKE, "smoke", device="cpu")
    execute.check(jobs)
    job = next(job for job in jobs if job.run)
    assert job.parameters == dict(study="smoke", arm=job.run.arm, data=job.run.data, seed=job.run.seed, device="cpu")
    wrong = Job("report", "09_report", {"study": "smoke", "stduy": 1})
    with pytest.raises(ValueError, match="09_report.ipynb: no parameter 'stduy': did you mean study"):
        execute.check([wrong])
    with pytest.raises(ValueError, match="no such notebook"):
        execute.check([Job("report", "10_sequel", {})])


def test_estimates_come_from_records_where_there_are_any():
    slow, fast = (load_study(name).run("baseline", "text", 42) for name in ("gpt2-small", "smoke"))
    guess = [estimated_s(Job("benchmark", TRAINING, {}, run), {}) for run in (slow, fast)]
    assert 1200 < guess[0] < 3600, "20 to 60 minutes for 1000 steps of GPT-2 Small on two cores"
    assert guess[1] < 15
    known = {("baseline", "text"): 100.0 / (slow.steps * slow.batch_size * slow.seq_len)}
    assert 100 < estimated_s(Job("benchmark", TRAINING, {}, slow), known) < 115
    longer = slow.model_copy(update=dict(steps=3 * slow.steps, batch_size=2 * slow.batch_size))
    assert 600 < estimated_s(Job("benchmark", TRAINING, {}, longer), known) < 615, "the records are of a shorter run"
    hybrid = load_study("gpt2-small").run("hybrid", "text", 42)
    assert estimated_s(Job("benchmark", TRAINING, {}, hybrid), {}) < 0.6 * guess[0]


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")])
def test_durations(seconds, said):
    assert progress_line.duration(seconds) == said


def test_progress_is_read_from_whole_rows_of_this_start_only(outputs):
    run = SMOKE.run("hybrid", "text", 42)
    records = RunFolder(progress.run_folder(run))
    assert progress_line.how_far(run, records.path, 0.0) == "starting"
    for step in range(1, 31):
        records.add(StepRecord(step, "full", 1, 5.0, 148.4, 1.0, 128 * step, 0.5, None, 10.0, 0.0, ""))
    records.add(StepRecord(31, "predict", 0, None, None, None, 3840, 0.5, 0.4, 10.0, 0.0, ""))
    records.flush()
    with (records.path / "steps.csv").open("a") as out:
        out.write("32,full,1,9")
    assert progress_line.how_far(run, records.path, 0.0) == "step 31/60, loss 5.000, 256 tokens/s, 14 s left"
    assert progress_line.how_far(run, records.path, (records.path / "steps.csv").stat().st_mtime + 1) == "starting"


def test_the_pipelines_outcome_keeps_what_is_still_true(outputs):
    first = pipeline.Pipeline(SMOKE, "smoke", Console())
    jobs = plan(SMOKE, "smoke")
    failed = jobs[0]
    first.add(failed, "failed", 3.21, "one\n two")
    table = first.write(STAGES[:-1]).set_index("job")
    assert "09_report" not in table.index and len(table) == len(jobs) - 1
    assert tuple(table.loc[failed.name, ["status", "seconds", "message"]]) == ("failed", 3.2, "one two")
    assert set(table.status) == {"failed", "missing"}
    again = pipeline.Pipeline(SMOKE, "smoke", Console()).write().set_index("job")
    assert again.status[failed.name] == "failed" and again.status["09_report"] == "missing"
    assert (outputs / "smoke" / "results" / "pipeline.csv").read_text().splitlines()[0] == ",".join(pipeline.COLUMNS)


def executed(job: Job, outputs: Path) -> None:
    """Lay a copy of the chapter of `job` in `outputs`, as if it had been executed."""
    path = outputs / "smoke" / "notebooks" / f"{job.notebook}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(metadata=dict(made_by=chapters.made_by(job)))))


def test_chapters_made_on_a_device_are_complete_when_the_same_command_comes_again(outputs):
    job = next(job for job in plan(SMOKE, "smoke", device="cpu") if job.stage == "functionality")
    executed(job, outputs)
    for device, said in (("cpu", "complete"), ("cuda:0", "missing")):
        table = pipeline.Pipeline(SMOKE, "smoke", Console(), device=device).write().set_index("job")
        assert table.status[job.name] == said


def test_a_report_that_was_not_typeset_stays_failed_until_it_is(outputs):
    report = plan(SMOKE, "smoke")[-1]
    executed(report, outputs)
    first = pipeline.Pipeline(SMOKE, "smoke", Console())
    first.add(report, "failed", 1.0, "no TeX")
    first.write()
    for then in ("failed", "complete"):
        again = pipeline.Pipeline(SMOKE, "smoke", Console())
        if then == "complete":
            again.add(report, "complete", 1.0)
        assert again.write().set_index("job").status[report.name] == then


@pytest.mark.parametrize("baseline_is_known", [False, True])
def test_a_checkpoint_is_kept_while_it_is_open_whether_its_run_goes_on(
    baseline_made, tmp_path, baseline_is_known: bool
) -> None:
    run = SMOKE.run("hybrid", "text", 42)
    records = RunFolder(progress.run_folder(run))
    for step in range(1, 61):
        records.add(StepRecord(step, "full", 1, 4.0, 54.6, 1.0, 128 * step, 0.5, None, 10.0, 0.0, ""))
    records.add(EvalRecord(60, 60, 30.0, 4.0))
    facts = dict(arm="hybrid", data="text", seed=42, last_step=60, device="cpu: by hand, 1 threads")
    records.finish(progress.identity(run) | facts | dict(summary=dict(held_out_loss=4.0)))
    progress.weights_path(run).touch()
    checkpoint = progress.checkpoint_path(run)
    checkpoint.touch()
    if not baseline_is_known:
        shutil.rmtree(baseline_made.path)
    assert run.goes_on and progress.run_state(run) == "complete"
    execute.tidy(Job("benchmark", TRAINING, {}, run), "smoke")
    assert checkpoint.exists() != baseline_is_known


def test_a_job_that_the_whole_plan_has_otherwise_is_concluded_with_the_others(outputs, capsys):
    """In which order a seed's arms come depends on which stages are asked for, and by it which runs are extended."""
    whole = {job.name for job in plan(SMOKE, "smoke")}
    first = next(job for job in training(plan(SMOKE, "smoke")) if f"{job.name} (extend)" not in whole)
    made = pipeline.Pipeline(SMOKE, "smoke", Console())
    assert made.conclude([first, replace(first, extends=True)], 1.0) == 1
    assert f"missing: {first.name} (extend)" in capsys.readouterr().out


def test_known_times_of_a_token_are_means_by_arm_and_data(outputs):
    for seed, tokens_per_s in ((1, 10.0), (2, 40.0)):
        records = RunFolder(outputs / "s" / "runs" / f"a-d-s{seed}")
        records.add(EvalRecord(1, 1, 1.0, 1.0))
        records.finish(dict(arm="a", data="d", summary=dict(nominal_tokens_per_s=tokens_per_s)))
    assert pipeline.known_times("s") == {("a", "d"): pytest.approx((0.1 + 0.025) / 2)}
    assert pipeline.known_times("nothing") == {}


@pytest.fixture
def baseline_made(outputs) -> RunFolder:
    """The records of a study with one run, which is complete."""
    records = RunFolder(progress.run_folder(SMOKE.run("baseline", "text", 42)))
    for step in range(1, 61):
        records.add(StepRecord(step, "full", 1, 5.0, 148.4, 1.0, 128 * step, 0.5, None, 10.0, 0.0, ""))
    records.add(EvalRecord(60, 60, 30.0, 5.0))
    run = SMOKE.run("baseline", "text", 42)
    facts = dict(arm="baseline", data="text", seed=42, last_step=60, device="cpu: by hand, 1 threads")
    summary = dict(held_out_loss=5.0, train_s=30.0, nominal_tokens_per_s=256.0)
    records.finish(progress.identity(run) | facts | dict(summary=summary))
    progress.weights_path(run).touch()  # the smoke study keeps them
    assert progress.run_state(run) == "complete"
    return records


@pytest.mark.parametrize("name", ["run.json", "steps.csv", "evals.csv"])
@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"[]",
        b"{}",
        b"null",
        b'{"files": 3, "sha256": "x"}',
        b'{"summary": {"train_s": 1}}',
        b"[" * 9999,
        b"\xff",
    ],
)
def test_a_damaged_run_is_listed_and_stops_nothing(baseline_made, capsys, name: str, content: bytes | None) -> None:
    file = baseline_made.path / name
    file.write_bytes(file.read_bytes()[:-20] if content is None else content)
    assert status("--study", "smoke", "--dry-run", "--arms", "baseline", "--data", "text", "--seeds", "42") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "baseline-text-s42 │ damaged" in said and f"damaged: baseline-text-s42: {file} is damaged" in said
    assert "a rough guess" in said and pipeline.known_times("smoke") == {}


def test_a_copy_of_a_run_beside_it_is_no_run(baseline_made, tmp_path) -> None:
    shutil.copytree(baseline_made.path, tmp_path / "copied" / "baseline-text-s42 (copy)")
    copied = RunFolder(tmp_path / "copied" / "baseline-text-s42 (copy)")
    assert baseline_made.facts["seed"] == 42
    assert copied.facts is None and copied.damage().endswith("is a copy of the run baseline-text-s42")


def test_damaged_outcomes_are_said_and_stop_nothing(baseline_made, tmp_path, capsys) -> None:
    for content in (b"", b"job,seconds\n", b"\xff\xfe", b'{"criteria": []}'):
        (tmp_path / "smoke" / "results").mkdir(exist_ok=True)
        (tmp_path / "smoke" / "results" / "pipeline.csv").write_bytes(content)
        (tmp_path / "smoke" / "results.json").write_bytes(content)
        study = pipeline.Pipeline(SMOKE, "smoke", run_all.console)
        study.conclude(plan(SMOKE, "smoke"), 1.0)
        said = capsys.readouterr().out
        assert f"{tmp_path}/smoke/results/pipeline.csv is damaged" in said
        assert f"{tmp_path}/smoke/results.json is damaged: --only report writes it again" in said
        assert study.write().set_index("job").status["baseline-text-s42"] == "complete"


def test_a_disk_that_is_full_is_said_in_one_line(baseline_made, tmp_path, capsys, monkeypatch) -> None:
    (tmp_path / "smoke" / "results").write_text("a file, where a folder should be")
    monkeypatch.setattr(pipeline, "execute", lambda *given: None)
    assert status("--study", "smoke", "--only", "question") == 1
    assert re.search(
        r"results/pipeline.csv: [\d,]+ bytes could not be written: .*; [\d,]+ bytes", capsys.readouterr().out
    )


def test_a_dry_run_prints_the_plan_and_leaves_nothing(tmp_path):
    done = command("--study", "smoke", "--dry-run", outputs=tmp_path / "outputs")
    assert done.returncode == 0 and not (tmp_path / "outputs").exists()
    for job in plan(SMOKE, "smoke"):
        assert job.name in done.stdout
    assert "Estimated time" in done.stdout


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--study", "nothing"], "no study 'nothing'"),
        (["--study", "smoke", "--arms", "hybird"], "no arm 'hybird'"),
        (["--study", "smoke", "--only", "reprot"], "invalid choice: 'reprot'"),
        (["--study", "smoke", "--device", "gpu"], "'gpu' is none of auto, cpu, cuda:0"),
        (["--study", "smoke", "--seeds", "x"], "invalid int value"),
        (["--study", "smoke", "--verify", "-1"], "'-1' is no whole number from 1 on"),
        (["--study", "smoke", "--verify", "0"], "'0' is no whole number from 1 on"),
        (["--study", "smoke", "--only", "report", "--arms", "hybrid"], "nothing to train in these stages"),
        (["--study", "gpt2-small", "--only", "report", "predictors"], "--only predictors: study gpt2-small"),
        (["--study", f"{'x' * 300}.yaml"], "xxx.yaml is no file; "),
        (["--study", "smoke", "--choice", "3"], "--choice belongs to --verify"),
        (["--study", "smoke", "--verify", "--arms", "hybrid"], "--arms does not go with --verify"),
        (["--study", "smoke", "--verify", "--scheduler", "here"], "--scheduler does not go with --verify"),
    ],
)
def test_a_wrong_argument_is_refused(args, said, capsys):
    assert status(*args) == 2
    both = capsys.readouterr()
    assert said in " ".join((both.out + both.err).split())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (dict(max_horizn=3), "no parameter 'max_horizn': did you mean max_horizon?"),
        (dict(max_horizon="far"), "parameter max_horizon: 'far': must be a whole number"),
        (dict(max_horizon=4.5), "parameter max_horizon: 4.5: must be a whole number"),
        (dict(starts=60), "parameter starts: 60: must be a list like [60]"),
        (dict(starts=[60, "100"]), "parameter starts: [60, '100']: must be a whole number"),
    ],
)
def test_a_wrong_parameter_of_a_chapter_is_refused(tmp_path, capsys, given, said):
    content = yaml.safe_load((ROOT / "params" / "smoke.yaml").read_text())
    content["chapters"] = {"03_predictors": given}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    assert status("--study", str(tmp_path / "s.yaml"), "--dry-run") == 2
    assert said in " ".join(capsys.readouterr().out.split())


def test_an_option_given_twice_adds_to_itself():
    given = run_all.arguments(["--seeds", "1", "--seeds", "2", "3", "--only", "report", "--only", "memory"])
    assert (given.seeds, given.only, given.arms) == ([1, 2, 3], ["report", "memory"], [])


def test_a_run_that_two_stages_plan_is_one_job():
    lines = SMOKE.plan | dict(ablation=[*SMOKE.plan["ablation"], *SMOKE.plan["benchmark"]])
    twice = SMOKE.model_copy(update=dict(plan=lines))
    assert [job.name for job in plan(twice, "smoke")] == [job.name for job in plan(SMOKE, "smoke")]
    alone = training(plan(twice, "smoke", only=["ablation"]))
    assert {job.run.arm for job in alone} > {"baseline", "hybrid", "hybrid_bf16"}


def test_text_that_is_not_there_is_said_with_the_plan(tmp_path, capsys):
    content = yaml.safe_load((ROOT / "params" / "smoke.yaml").read_text())
    content["sources"]["text"]["paths"] = ["params", "~/no [such] text"]
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content | dict(study="without_text")))
    assert status("--study", str(tmp_path / "s.yaml"), "--dry-run") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "paths: '~/no [such] text': no such file or folder" in said and "'params'" not in said


@pytest.mark.parametrize("kind", ["file", "dangling link", "long name"])
def test_a_place_where_no_outputs_can_lie_is_said_in_one_line(tmp_path, kind):
    outputs = tmp_path / ("x" * 300 if kind == "long name" else "outputs")
    outputs.write_text("") if kind == "file" else outputs.symlink_to("nowhere") if kind == "dangling link" else None
    done = command("--study", "smoke", "--only", "report", outputs=outputs)
    assert done.returncode == 1 and not done.stderr
    said = done.stdout.splitlines()[-1]
    assert ("File name too long" if kind == "long name" else f"{outputs} is no folder)") in said and str(
        outputs
    ) in said


def test_a_broken_sweep_is_refused_before_anything_runs(tmp_path, monkeypatch, capsys):
    (tmp_path / "research").mkdir()
    (tmp_path / "research" / "smoke.yaml").write_text("one: {about: x, seeds: [1000], variants: {a: {arm: hybird}}}")
    monkeypatch.setattr(run_all.sweeps, "PARAMS", tmp_path)
    assert status("--study", "smoke", "--dry-run") == 2
    assert "smoke.yaml: one: a: run: no arm 'hybird': did you mean hybrid?" in " ".join(capsys.readouterr().out.split())
    assert status("--study", "smoke", "--dry-run", "--only", "benchmark") == 0


@pytest.mark.parametrize("content", ["a: [", "- alpha", "alpha: 1\nalpha: 2"])
def test_broken_criteria_are_refused_before_anything_runs(tmp_path, monkeypatch, capsys, content):
    (tmp_path / "criteria.yaml").write_text(content)
    monkeypatch.setattr(run_all, "PARAMS", tmp_path)
    assert status("--study", "smoke", "--dry-run") == 2
    assert str(tmp_path / "criteria.yaml") in " ".join(capsys.readouterr().out.split())


def test_what_turns_invalid_while_a_study_runs_is_said_in_one_line(outputs, monkeypatch, capsys):
    def turned(*given) -> None:
        raise ParameterError("s.yaml: no longer valid")

    monkeypatch.setattr(execute.chapters, "made_by", turned)
    assert status("--study", "smoke", "--only", "question", "--keep-going") == 1
    assert "the notebook could not be executed: s.yaml: no longer valid" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setattr(run_all, "run", turned)
    assert status("--study", "smoke", "--only", "question") == 1
    assert "s.yaml: no longer valid" in capsys.readouterr().out


@pytest.mark.parametrize(("number", "ends"), [(signal.SIGINT, 130), (signal.SIGTERM, run_all.RESUMABLE)])
def test_a_signal_at_any_time_is_said_and_the_status_tells_which(outputs, monkeypatch, capsys, number, ends):
    def interrupted(*given) -> None:
        raise KeyboardInterrupt(number)

    monkeypatch.setattr(run_all, "run", interrupted)
    assert status("--study", "smoke", "--only", "question") == ends
    assert "Stopped. The same command goes on from here." in capsys.readouterr().out


@pytest.mark.parametrize("only", [[], ["question"]])
def test_full_leaves_out_what_the_study_leaves_out(tmp_path, outputs, monkeypatch, only):
    content = yaml.safe_load((ROOT / "params" / "smoke.yaml").read_text())
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content | dict(study="s", leave_out=["research", "speed"])))
    began = []
    monkeypatch.setattr(run_all, "beside", lambda *command: began.append(command))
    monkeypatch.setattr(run_all, "go_through", lambda *given: True)
    asked = ["--only", *only] if only else []
    assert status("--study", str(tmp_path / "s.yaml"), "--full", *asked) == 1 and not began
    assert status("--study", "smoke", "--full", *asked) == 1
    assert [command[0] for command in began] == ([] if only else ["training.trials", "benchmark"])


def test_stages_that_a_study_leaves_out_are_not_planned():
    left = SMOKE.model_copy(update=dict(leave_out=["predictors", "stress"]))
    whole = plan(SMOKE, "smoke")
    assert plan(left, "smoke") == [job for job in whole if job.stage not in left.leave_out] != whole


def test_a_record_of_another_device_is_kept_and_named(outputs):
    run = SMOKE.run("baseline", "text", 42)
    RunFolder(progress.run_folder(run)).finish(dict(device="cpu: by hand, 1 threads"))
    job = Job("benchmark", TRAINING, {}, run)
    assert "on cpu: by hand, 1 threads: kept, --force" in run_all.on_device(job, "cuda:0")
    assert run_all.on_device(job, "cpu") == run_all.on_device(job, "auto") == ""


def test_records_that_a_process_writes_are_not_deleted(outputs):
    job = training(plan(SMOKE, "smoke"))[0]
    folder = progress.run_folder(job.run)
    with locked(folder, "trains it"), pytest.raises(InUse):
        execute.forget(job, "smoke")
    assert folder.exists()
    execute.forget(job, "smoke")
    assert not folder.exists()
    execute.forget(job, "smoke")
