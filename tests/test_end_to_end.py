"""The command as a user starts it: the smoke study from nothing to the PDF, and what it does when things go wrong."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml

from hybridlib.study import export
from hybridlib.study.parameters import PARAMS, ROOT, load_study
from hybridlib.study.plan import CHAPTERS, READERS, plan
from hybridlib.study.records import RunFolder

CRITERIA = ["C1", "C2", "C3", "C4", "C5", "C6", "C7", "C8", "H1", "H2"]  # C9 is about a study that smoke does not read
TIMED = ["step_s", "jump_s", "peak_mb"]

# A study of one small run after another, long enough to be interrupted.
TINY = dict(
    study="tiny",
    model=dict(preset="nano", n_layer=1, n_head=2, n_embd=32, block_size=32, vocab_size=257),
    sources=dict(markov=dict(kind="markov"), text=dict(kind="text", tokenizer_vocab=257, paths=["no such file"])),
    steps=4000,
    batch_size=2,
    seq_len=16,
    eval_every=500,
    eval_batches=1,
    snapshot_every=100,
    threads=1,
    seeds=[1],
    plan=dict(benchmark=[dict(arms=["baseline"], data=["text", "markov"])]),
)


def start(outputs: Path, *args: str) -> subprocess.Popen[str]:
    environment = os.environ | {"HYBRIDLIB_OUTPUTS": str(outputs), "OMP_NUM_THREADS": "1"}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen([sys.executable, "run_all.py", *args], cwd=ROOT, env=environment, **pipes)


def finish(outputs: Path, *args: str) -> tuple[int, str]:
    """Exit status and everything printed."""
    process = start(outputs, *args)
    said, _ = process.communicate()
    return process.returncode, said


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def smoke(outputs) -> tuple[Path, str]:
    """The smoke study's folder after one start, and what the command printed."""
    status, said = finish(outputs, "--study", "smoke")
    assert status == 0, said[-3000:]
    return outputs / "smoke", said


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("params") / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    return str(file)


def test_smoke_prints_the_plan_each_job_and_the_verdicts(smoke):
    folder, said = smoke
    for job in plan(load_study("smoke"), "smoke"):
        assert job.name in said
    assert all(re.search(rf"\b{name}\b", said) for name in CRITERIA)
    assert str(folder / "report.pdf") in said
    assert "Traceback" not in said and "Warning" not in said and "WARNING" not in said


def test_smoke_judges_every_criterion(smoke):
    results = json.loads((smoke[0] / "results.json").read_text())
    assert sorted(results["criteria"]) == sorted(CRITERIA)
    for criterion in results["criteria"].values():
        assert criterion["verdict"] in ("PASS", "FAIL", "INCONCLUSIVE") and criterion["why"]
    assert results["criteria"]["C8"]["verdict"] == "PASS"
    assert {"text/baseline", "text/hybrid", "text/memory_optimized", "text/hold", "text/sham"} <= set(results["arms"])


def test_smoke_delivers_the_report_in_every_form(smoke):
    folder, _ = smoke
    pdf = subprocess.run(
        ["pdftotext", "-layout", str(folder / "report.pdf"), "-"], capture_output=True, text=True
    ).stdout
    assert all(re.search(rf"\b{name}\b", pdf) for name in CRITERIA)
    lost = {c for c in (folder / "report.tex").read_text() if ord(c) > 127} - set(pdf)
    assert set("α≤≥Δ×") <= set(pdf) and not lost
    for section in ("Executive summary", "Methodology", "Results", "Discussion", "Limitations", "Appendix"):
        assert section.lower() in pdf.lower(), section
    html = (folder / "report.html").read_text()
    assert not re.search(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"']https?:", html)
    assert html.count("draw(document.currentScript") >= 8
    links = re.findall(r"!\[[^]]*\]\(([^)]*)\)", (folder / export.MARKDOWN).read_text())
    assert len(links) >= 8 and all((folder / link).is_file() for link in links)
    for link in links:
        assert (folder / link).with_suffix(".svg").is_file()
    assert (folder / "report.tex").is_file() and len(list((folder / "shown").glob("*.tex"))) >= 5


def test_smoke_executed_every_notebook_and_none_names_this_machine(smoke):
    folder, _ = smoke
    study = load_study("smoke")
    executed = [folder / "notebooks" / f"{name}.ipynb" for name in CHAPTERS.values()]
    executed += [folder / "runs" / job.run.id / "run.ipynb" for job in plan(study, "smoke") if job.run]
    for path in executed:
        notebook = nbformat.read(path, as_version=4)
        outputs = [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
        assert outputs and not any(out.output_type == "error" for out in outputs), path.name
        assert str(ROOT) not in path.read_text() and str(folder) not in path.read_text(), path.name
        for out in outputs:
            if "application/vnd.vegalite.v5+json" in out.get("data", {}):
                assert "image/png" in out.data, path.name


def test_smoke_keeps_weights_and_samples_baseline_and_hybrid_side_by_side(smoke):
    folder, pair = smoke[0] / "runs", ["baseline-text-s42", "hybrid-text-s42"]
    assert all((run / "weights.safetensors").is_file() for run in folder.iterdir())
    cells = nbformat.read(folder / pair[1] / "run.ipynb", as_version=4).cells
    pages = [out.data.get("text/html", "") for cell in cells for out in cell.get("outputs", []) if "data" in out]
    assert any(all(f"<th>{name}, step " in page for name in pair) and page.count("<pre>") == 12 for page in pages)


def test_smoke_writes_the_pipelines_outcome(smoke):
    table = pd.read_csv(smoke[0] / "results" / "pipeline.csv")
    assert list(table.job) == [job.name for job in plan(load_study("smoke"), "smoke")]
    assert set(table.status) == {"complete"}
    assert not list(smoke[0].rglob("checkpoint*")), "a complete run needs none"


def test_what_smoke_computed_is_kept_and_what_reads_it_is_executed_again_to_the_same(smoke, outputs):
    folder, _ = smoke
    computing = [
        folder / "notebooks" / f"{chapter}.ipynb" for stage, chapter in CHAPTERS.items() if stage not in READERS
    ]
    kept = {path: path.stat().st_mtime_ns for path in [*folder.glob("runs/*/*"), *computing]}
    reading = {
        path: path.read_bytes() for path in [folder / "notebooks" / f"{CHAPTERS[stage]}.ipynb" for stage in READERS]
    }
    status, said = finish(outputs, "--study", "smoke")
    assert status == 0 and "missing" not in said and "stale" not in said
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert [path.name for path in reading if path.read_bytes() != reading[path]] == []


def test_one_stage_is_rebuilt_from_records_without_training(smoke, outputs):
    folder, _ = smoke
    records = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*")}
    plots = sorted((folder / "shown").glob("*.svg"))
    for path in plots:
        path.unlink()
    status, said = finish(outputs, "--study", "smoke", "--only", "benchmark")
    assert status == 0, said[-3000:]
    assert {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*")} == records
    assert len(list((folder / "shown").glob("*.svg"))) >= 4


@pytest.mark.parametrize("name", ["gpt2-small", "gpt2-medium"])
def test_the_larger_studies_can_be_planned(name, outputs):
    status, said = finish(outputs, "--study", name, "--dry-run")
    assert status == 0 and f"Study {name}" in said
    assert (PARAMS / f"{name}.yaml").exists() and not (outputs / name).exists()


def test_a_failed_run_stops_the_others_unless_told_to_keep_going(tiny, tmp_path):
    status, said = finish(tmp_path, "--study", tiny, "--only", "benchmark")
    assert status == 1 and "no such file" in said and "CorpusError" in said and "--keep-going" in said
    assert "06_benchmark: complete" not in said
    status, said = finish(tmp_path, "--study", tiny, "--only", "benchmark", "--keep-going")
    assert status == 1 and "failed: baseline-text-s1" in said and "06_benchmark: complete" in said
    assert (tmp_path / "tiny" / "runs" / "baseline-markov-s1" / "run.json").exists()
    table = pd.read_csv(tmp_path / "tiny" / "results" / "pipeline.csv", index_col="job")
    assert table.status["baseline-text-s1"] == "failed" and "no such file" in table.message["baseline-text-s1"]
    assert table.status["baseline-markov-s1"] == "complete"


def until_checkpoint(folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not (folder / "checkpoint.safetensors").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def test_interrupted_locked_killed_and_resumed_is_as_if_nothing_was(tiny, tmp_path):
    args = ("--study", tiny, "--only", "benchmark", "--data", "markov")
    folder = tmp_path / "a" / "tiny" / "runs" / "baseline-markov-s1"
    first = start(tmp_path / "a", *args)
    until_checkpoint(folder, first)
    kernels = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    status, said = finish(tmp_path / "a", *args)
    assert status == 1 and f"process {first.pid}" in said, "a second start names the first"
    first.send_signal(signal.SIGTERM)
    said, _ = first.communicate(timeout=60)
    assert first.returncode == 75 and "goes on from here" in said and "Traceback" not in said
    assert kernels and not any(Path(f"/proc/{kernel}").exists() for kernel in kernels), "no kernel is left behind"
    assert not (folder / "run.json").exists()

    second = start(tmp_path / "a", *args)
    time.sleep(1.0)
    second.kill()
    second.communicate()
    status, said = finish(tmp_path / "a", *args)
    assert status == 0 and "partial" in said, said
    status, said = finish(tmp_path / "b", *args)
    assert status == 0, said[-3000:]
    whole = RunFolder(tmp_path / "b" / "tiny" / "runs" / "baseline-markov-s1").steps()
    assert RunFolder(folder).steps().drop(columns=TIMED).equals(whole.drop(columns=TIMED))
    assert not list((tmp_path / "a").rglob("*.safetensors")), "a complete run keeps no checkpoint"
