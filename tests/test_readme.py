"""The README says what the records say, and its tree is the tree."""

import pytest

from hybridlib.analysis.results import readme_blocks, renewed
from hybridlib.analysis.rules import read_rules
from hybridlib.study.parameters import ROOT
from hybridlib.study.run import UNTIMED_STEPS

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_its_figures_are_those_of_the_committed_results() -> None:
    assert renewed(README, **readme_blocks()) == README


def test_numbers_in_its_prose_are_those_of_the_code() -> None:
    within_s = read_rules().reliability["sigterm_checkpoint_s"].at_most
    for said in (f"the first {UNTIMED_STEPS} steps of a run", f"a checkpoint, on small models within {within_s:g} s"):
        assert said in " ".join(README.split())


def test_renewing_changes_the_block_alone() -> None:
    text = "a\n<!-- x: begin -->\n{}\n<!-- x: end -->\nz<!-- y: begin -->\n1\n<!-- y: end -->\n"
    assert renewed(text.format("old"), x="new") == text.format("new")


@pytest.mark.parametrize(
    "folder",
    [
        "hybridlib/method",
        "hybridlib/training",
        "hybridlib/study",
        "hybridlib/analysis",
        "hybridlib/benchmark",
        "examples",
        "params",
    ],
)
def test_its_tree_names_every_file(folder: str) -> None:
    tree = README.split("## Tree")[1]
    files = [
        p.name for pattern in ("*.py", "*.yaml") for p in (ROOT / folder).glob(pattern) if not p.stem.startswith("__")
    ]
    assert files and not [name for name in files if name not in tree]


def test_its_tree_names_every_predictor_and_no_file_that_is_not_there() -> None:
    tree = README.split("## Tree")[1]
    assert all(p.stem in tree for p in (ROOT / "hybridlib" / "method" / "predictors").glob("[a-z]*.py"))
    named = [
        word for line in tree.splitlines() for word in line.split()[:1] if word.endswith(".py") and "*" not in word
    ]
    there = {path.name for folder in ("examples", "hybridlib") for path in (ROOT / folder).rglob("*.py")}
    assert not [name for name in named if name not in there and not list(ROOT.glob(name))]
