"""A predictor of one's own that is half-written: the arms that use it are refused by file and line, all others work."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hybridlib.study.parameters import ROOT

GOOD = """
from hybridlib.method.predictors.base import Predictor

class Mine(Predictor):
    def __init__(self, gain: float = 1.0):
        super().__init__()

    def predict(self, weights, horizon, progress):
        pass
"""
# name -> what the file holds, what is said where it is used
BROKEN = {
    "half-written": ("class Mine(Predictor:\n    def", "line 1"),
    "a missing package": (f"import not_installed\n{GOOD}", "not_installed"),
    "a mistake": (f"{GOOD}\n1 / 0\n", "ZeroDivisionError"),
    "no predict": (GOOD[: GOOD.index("    def predict")], "define predict"),
    "no text": ("\0\0", "null bytes"),
}
USE = """
import sys
from hybridlib.method.predictors import make_predictor
from hybridlib.study.arm import PredictorSettings
for name in ("spectral", "wnn", "mine"):
    try:
        PredictorSettings(name=name)
        print(name, "made", type(make_predictor(name)).__name__)
    except ValueError as error:
        print(name, "refused", " ".join(str(error).split()))
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the library, to put files into."""
    shutil.copytree(ROOT / "hybridlib", tmp_path / "hybridlib", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def used(copy: Path, content: str, name: str = "aaa.py") -> dict[str, str]:
    (copy / "hybridlib" / "method" / "predictors" / name).write_text(content, encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", USE], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_stops_only_those_who_use_it(copy: Path, kind: str) -> None:
    content, said = BROKEN[kind]
    found = used(copy, content)
    assert found["spectral"] == "made Spectral" and found["wnn"] == "made Wnn"
    assert found["mine"].startswith("refused") and "aaa.py" in found["mine"] and said in found["mine"]


@pytest.mark.parametrize("content", ["class Mine(Mine): pass", "class A(B): pass\nclass B(A): pass"])
def test_classes_in_a_circle_stop_only_those_who_use_them(copy: Path, content: str) -> None:
    found = used(copy, content)
    assert found["spectral"] == "made Spectral" and found["wnn"] == "made Wnn" and found["mine"].startswith("refused")


def test_a_class_that_is_its_own_base_and_named_as_another_stops_only_those_who_use_it(copy: Path) -> None:
    found = used(copy, "class Wnn(Wnn): pass")
    assert found["spectral"] == "made Spectral" and found["mine"].startswith("refused")
    assert found["wnn"].startswith("refused") and "aaa.py and in wnn.py: rename one" in found["wnn"]


def test_a_copy_of_a_file_beside_it_stops_only_those_who_use_it(copy: Path) -> None:
    wnn = (copy / "hybridlib" / "method" / "predictors" / "wnn.py").read_text(encoding="utf-8")
    found = used(copy, wnn, "wnn-Copy1.py")
    assert found["spectral"] == "made Spectral"
    assert found["wnn"].startswith("refused") and "wnn-Copy1.py and in wnn.py: rename one" in found["wnn"]


def test_a_byte_order_mark_is_fine(copy: Path) -> None:
    assert used(copy, f"\ufeff{GOOD}")["mine"] == "made Mine"
