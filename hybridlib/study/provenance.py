"""What the system is asked: the code, machine and packages that make a record; and to end a process with its parent."""

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
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def git(*args: str) -> str:
    """Return what git, given `args`, prints in the project's folder; empty where there is no git or no repository."""
    options = dict(cwd=ROOT, capture_output=True, encoding="utf-8", errors="replace", timeout=20)
    try:
        done = subprocess.run(["git", *args], **options)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def code() -> dict[str, str | bool]:
    """Return the commit, and whether code or parameters differ from it."""
    changed = git("status", "--porcelain", "--", "hybridlib", "params", "notebooks", "run_all.py")
    return dict(commit=git("rev-parse", "HEAD"), dirty=bool(changed))


def lock_sha256() -> str:
    """Return the hash of `requirements.lock`: the versions of all packages, by one name."""
    return hashlib.sha256((ROOT / "requirements.lock").read_bytes()).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that compute."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def interpreter() -> str:
    """Return the Python that makes the record: its implementation, version and path."""
    name, path = platform.python_implementation(), from_root(Path(sys.executable))
    return f"{name} {platform.python_version()}, {path}"


def from_root(path: Path) -> Path:
    """Return `path` as records may keep it: from the project's folder, wherever that lies, if it is inside."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def processor() -> str:
    """Return the CPU's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def end_with(parent: int) -> bool:
    """Ask the system to kill this process when its parent, process `parent`, ends. Return False if it has ended."""
    if sys.platform != "linux":
        return True
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent
