"""The command as a user starts it: the smoke study from nothing to the PDF, and once more."""

import json
import re
import subprocess
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from command import finish

from hybridlib.study import export
from hybridlib.study.parameters import PARAMS, ROOT, load_study
from hybridlib.study.plan import CHAPTERS, plan

CRITERIA = ["C1", "C2", "C3", "C4", "C5", "C6", "C7", "C8", "H1", "H2"]  # C9 is about a study that smoke does not read


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def smoke(outputs) -> tuple[Path, str]:
    """The smoke study's folder after one start, and what the command printed."""
    status, said = finish(outputs, "--study", "smoke")
    assert status == 0, said[-3000:]
    return outputs / "smoke", said


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
    """Also the figures that are gone; of what reads records, one chapter, the largest, and the report stand for all."""
    folder, _ = smoke
    status, said = finish(outputs, "--study", "smoke", "--dry-run")
    assert status == 0 and "missing" not in said and "stale" not in said
    again = ("benchmark", "report")
    read = [folder / "notebooks" / f"{CHAPTERS[stage]}.ipynb" for stage in again]
    kept = {path: path.stat().st_mtime_ns for path in [*folder.glob("runs/*/*"), *folder.glob("notebooks/*")]}
    kept = {path: changed for path, changed in kept.items() if path not in read}
    reading = {path: path.read_bytes() for path in read}
    plots = {path: path.read_bytes() for path in (folder / "shown").glob("*.svg")}
    for path in plots:
        path.unlink()
    status, said = finish(outputs, "--study", "smoke", "--only", *again)
    assert status == 0 and "missing" not in said and "stale" not in said, said[-3000:]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert [path.name for path in reading if path.read_bytes() != reading[path]] == []
    remade = list((folder / "shown").glob("*.svg"))
    assert len(remade) >= 4 and [path.name for path in remade if path.read_bytes() != plots[path]] == []


@pytest.mark.parametrize("name", ["gpt2-small", "gpt2-medium"])
def test_the_larger_studies_can_be_planned(name, outputs):
    status, said = finish(outputs, "--study", name, "--dry-run")
    assert status == 0 and f"Study {name}" in said
    assert (PARAMS / f"{name}.yaml").exists() and not (outputs / name).exists()
