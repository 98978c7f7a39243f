"""Kills while chapters, figures and the report are written: what is there is whole, the same command makes the same."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import nbformat
from command import start
from conftest import FakeStudy
from test_crash import descendants, using

from hybridlib.study.storage import PART

STAGES = ["benchmark", "memory", "report"]  # they read records, and write all kinds of file
ENDS = {".png": b"IEND\xaeB`\x82", ".pdf": b"%%EOF", ".svg": b"</svg>", ".html": b"</html>"}
SAME = ["results.json", "shown/*.json", "shown/*.csv", "results/criteria*.csv", "results/runs.csv", "*.md"]


def started(fake: FakeStudy) -> subprocess.Popen[str]:
    return start(fake.outputs, "--study", str(fake.file), "--only", *STAGES)


def not_whole(folder: Path) -> list[str]:
    """Return the files below a study's folder that are not what a finished write leaves."""
    found = []
    for file in filter(Path.is_file, folder.rglob("*")):
        content = file.read_bytes()
        if file.suffix == ".json":
            whole = readable(lambda content=content: json.loads(content))
        elif file.suffix == ".ipynb":
            whole = readable(lambda file=file: nbformat.read(file, as_version=4))
        else:
            whole = file.name == ".lock" or content.rstrip().endswith(ENDS.get(file.suffix, b""))
        if not whole or ".part" in file.suffixes:
            found.append(str(file.relative_to(folder)))
    return found


def readable(read) -> bool:
    try:
        return bool(read())
    except Exception:  # of many kinds, for a file may be torn in many ways
        return False


def contents(folder: Path) -> dict[str, bytes]:
    """Return what the records decide alone."""
    files = sorted(file for pattern in SAME for file in folder.glob(pattern))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_a_kill_leaves_whole_files_and_the_same_command_makes_the_same(request, fake_study, measured) -> None:
    chance, torn, orphans = random.Random(request.config.getoption("seed")), [], 0
    began_s = time.monotonic()
    first = started(fake_study)
    assert first.communicate()[0] and first.returncode == 0
    took_s, whole = time.monotonic() - began_s, contents(fake_study.folder)
    assert not not_whole(fake_study.folder) and len(whole) > 20
    kills = max(1, request.config.getoption("pipeline_kills") // 2)
    for _ in range(kills):
        if chance.random() < 0.5:  # a first time, too: nothing was there before
            for part in ("notebooks", "shown", "results"):
                shutil.rmtree(fake_study.folder / part)
        pipeline = started(fake_study)
        time.sleep(chance.uniform(0.2, 1.0) * took_s)
        running = descendants(pipeline.pid) if pipeline.poll() is None else []
        for victim in chance.choice([[pipeline.pid], running]):
            os.kill(victim, signal.SIGKILL)
        pipeline.communicate()
        until_s = time.monotonic() + 10
        while using(fake_study.outputs) and time.monotonic() < until_s:
            time.sleep(0.05)
        orphans += len(using(fake_study.outputs))
        # What a killed process was at is in parts, which nobody reads and the next start deletes.
        torn += [file for file in not_whole(fake_study.folder) if not PART.search(file)]
    last = started(fake_study)
    said = last.communicate()[0]
    measured.add(report_kills=kills, report_files_torn=len(torn), report_orphans=orphans)
    assert last.returncode == 0, said
    assert not torn and not orphans
    assert contents(fake_study.folder) == whole and not not_whole(fake_study.folder)
