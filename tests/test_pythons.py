"""The plan is the same on every Python, and needs no torch: another interpreter makes no record or chapter stale."""

import hashlib
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from conftest import FakeStudy

from hybridlib.study import chapters
from hybridlib.study.parameters import ROOT
from hybridlib.study.plan import READERS, plan

# What `run_all.py --dry-run` imports; torch and all that trains is not among it.
NEEDED = ["filelock", "jupyter_client", "nbclient", "nbconvert", "nbformat", "numpy", "pandas", "papermill", "pydantic",
          "PyYAML", "rich", "traitlets", "vl-convert-python"]  # fmt: skip
LOCK = ROOT / "requirements.lock"


def interpreter(version: str) -> Path | None:
    """A Python of this version that can make environments: from PATH, or of pyenv, whose commands may not work."""
    found = [shutil.which(f"python{version}"), *sorted(Path.home().glob(f".pyenv/versions/*/bin/python{version}"))]
    for path in filter(None, found):
        if subprocess.run([path, "-c", "import ensurepip"], capture_output=True).returncode == 0:
            return Path(path)
    return None


@cache
def environment(version: str) -> Path:
    """Its Python in an environment with what is needed, in the versions of the lock; skips where that cannot be had."""
    if (python := interpreter(version)) is None:
        pytest.skip(f"no Python {version} on this machine")
    folder = ROOT / ".cache" / "pythons" / version
    wanted, made = hashlib.sha256(LOCK.read_bytes() + " ".join(NEEDED).encode()).hexdigest(), folder / "made_of"
    if not made.exists() or made.read_text() != wanted:
        subprocess.run([python, "-m", "venv", "--clear", folder], check=True, capture_output=True)
        install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "-c", LOCK, *NEEDED]
        done = subprocess.run(install, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"pip could not install what is needed: {done.stderr.strip()[-300:]}")
        made.write_text(wanted)
    return folder / "bin" / "python"


def dry_run(python: Path, study: str, outputs: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= dict(HYBRIDLIB_OUTPUTS=str(outputs))
    command = [python, "run_all.py", "--study", study, "--dry-run", "--full"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_the_plan_is_the_same_on_every_python(version: str, fake_study: FakeStudy, monkeypatch) -> None:
    python = environment(version)
    fake_study.rewrite("hold", 1, parameters=fake_study.study.run("sham", "text", 1).model_dump())
    (fake_study.folder / "runs" / "hold-text-s2" / "steps.csv").write_text("step\n")
    monkeypatch.setattr(chapters, "OUTPUTS", fake_study.outputs)
    for job in plan(fake_study.study, fake_study.name):
        if not job.run and job.stage not in READERS:
            chapters.stamp(chapters.source(job), chapters.chapter_path(job, "fake"), made_by=chapters.made_by(job))
    here = dry_run(Path(sys.executable), fake_study.name, fake_study.outputs)
    states = {line.split("│")[3].strip(): line.split("│")[4].strip() for line in here.splitlines() if "│ " in line}
    assert states["baseline-text-s1"] == states["01_functionality"] == states["00_question"] == "complete"
    assert states["hold-text-s1"] == "stale" and states["hold-text-s2"] == "damaged"
    assert dry_run(python, fake_study.name, fake_study.outputs) == here


def test_the_plan_is_made_without_torch() -> None:
    done = subprocess.run([sys.executable, "-c", "import sys, run_all; sys.exit('torch' in sys.modules)"], cwd=ROOT)
    assert done.returncode == 0
