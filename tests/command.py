"""The command as a user starts it, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

from hybridlib.study.parameters import ROOT


def start(outputs: Path, *args: str) -> subprocess.Popen[str]:
    environment = os.environ | {"HYBRIDLIB_OUTPUTS": str(outputs), "OMP_NUM_THREADS": "1"}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen([sys.executable, "run_all.py", *args], cwd=ROOT, env=environment, **pipes)


def finish(outputs: Path, *args: str) -> tuple[int, str]:
    """Exit status and everything printed."""
    process = start(outputs, *args)
    said, _ = process.communicate()
    return process.returncode, said
