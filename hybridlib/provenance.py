"""Where a record comes from: the code, the machine and the packages that made it."""

import ast
import hashlib
import platform
import subprocess
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGES = ("torch", "transformers", "tokenizers", "numpy")


EXPERIMENT = "hybridlib.training.experiment"
PREDICTORS = "hybridlib.training.predictors"


@cache
def training_sha256() -> str:
    """Hash of the code that every record depends on: `records.py`, and what `training/experiment.py` imports of `training/`.

    Single predictors are not in it, for a run imports its own alone. Comments and docstrings are left out as well: a
    better one costs no rerun.
    """
    return code_sha256({"hybridlib.records"} | imported({EXPERIMENT}, within="hybridlib.training"))


@cache
def predictor_sha256(name: str) -> str:
    """Hash of a predictor's file and of those that it builds on: a new predictor makes no other's record stale."""
    return code_sha256(imported({f"{PREDICTORS}.{name}"}, within=PREDICTORS))


def imported(modules: set[str], within: str) -> set[str]:
    """The modules and all that they import, directly or not, of one package."""
    found: set[str] = set()
    while todo := modules - found:
        found.add(module := todo.pop())
        for node in ast.walk(ast.parse(path_of(module).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(f"{within}."):
                modules = modules | {node.module}
    return found


def path_of(module: str) -> Path:
    path = HERE.parent.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def code_sha256(modules: set[str]) -> str:
    """Hash of the modules' syntax trees, docstrings left out, in the order of their names."""
    digest = hashlib.sha256()
    for path in map(path_of, sorted(modules)):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
                if isinstance(body[0].value, ast.Constant) and isinstance(body[0].value.value, str):
                    body[0].value.value = ""
        digest.update(f"{path.relative_to(HERE)}\n{ast.dump(tree)}\n".encode())
    return digest.hexdigest()


def git(*args: str) -> str:
    """Output of a git command in the project's folder; empty where there is no git or no repository."""
    try:
        done = subprocess.run(["git", *args], cwd=HERE, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def code() -> dict[str, str | bool]:
    """Commit, whether code or parameters differ from it, and the hash of the training code."""
    changed = git("status", "--porcelain", "--", "../hybridlib", "../params", "../notebooks", "../run_all.py")
    return dict(commit=git("rev-parse", "HEAD"), dirty=bool(changed), training_sha256=training_sha256())


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def processor() -> str:
    """The CPU's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def processor_model() -> str:
    """The CPU as a compiler would tell it from others: name, family, model, stepping and instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
        facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        flags = hashlib.sha256(facts["flags"].encode()).hexdigest()[:12]
        return " ".join([facts["model name"], *(facts[key] for key in ("cpu family", "model", "stepping")), f"flags {flags}"])
    except (OSError, KeyError):
        return processor()


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
