"""What the system is asked: code, machine and packages that make a record; and that no process outlives the one that started it."""

import ctypes
import hashlib
import os
import platform
import signal
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "transformers", "tokenizers", "numpy")


def git(*args: str) -> str:
    """Output of a git command in the project's folder; empty where there is no git or no repository."""
    try:
        done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def code() -> dict[str, str | bool]:
    """The commit, and whether code or parameters differ from it."""
    changed = git("status", "--porcelain", "--", "hybridlib", "params", "notebooks", "run_all.py")
    return dict(commit=git("rev-parse", "HEAD"), dirty=bool(changed))


def lock_sha256() -> str:
    """Hash of `requirements.lock`: the versions of all packages, by one name."""
    return hashlib.sha256((ROOT / "requirements.lock").read_bytes()).hexdigest()


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def processor() -> str:
    """The CPU's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with(parent: int) -> bool:
    """Asks the system to kill this process when its parent, whose number is given, ends. False if that has ended already."""
    if sys.platform != "linux":
        return True
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent
