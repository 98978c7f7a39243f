"""The machine and its locale: text is UTF-8 everywhere, folders may have any name, and kernels are this very Python."""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import yaml

from hybridlib.study import progress_line
from hybridlib.study.parameters import ROOT
from hybridlib.study.plan import STAGES

SOURCES = [
    ROOT / "run_all.py",
    *sorted([*ROOT.glob("hybridlib/**/*.py"), *ROOT.glob("examples/*.py"), *ROOT.glob("notebooks/*.ipynb")]),
]
PROJECT = ["run_all.py", "hybridlib", "notebooks", "params", "requirements.lock"]
ODD = "a{b}c:d e%f#g&h~i$j ü {study}"
STUDY = dict(
    study="little", model=dict(n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=257), steps=20, batch_size=2,
    seq_len=16, sources=dict(text=dict(kind="text", tokenizer_vocab=257, max_mb=0.2)), eval_every=10, eval_batches=1,
    threads=1, seeds=[3], plan=dict(benchmark=[dict(arms=["baseline"], data=["text"])]),
    leave_out=sorted({*STAGES} - {"benchmark", "report"}),
)  # fmt: skip


def code(path: Path) -> str:
    """The Python in a source or a notebook."""
    if path.suffix == ".py":
        return path.read_text(encoding="utf-8")
    return "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")


def in_some_encoding(tree: ast.AST) -> Iterator[str]:
    """Calls that read or write text in whatever encoding the locale has."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        modes = [ast.unparse(arg).strip("'") for arg in call.args] + [given.get("mode", "").strip("'")]
        binary = any("b" in mode and set(mode) <= set("rwxab+") for mode in modes)
        opens = name in ("open", "fdopen") and ast.unparse(call.func) not in ("Image.open", "os.open")
        piped = "True" in (given.get("text"), given.get("universal_newlines"))
        if (name in ("read_text", "write_text") or (opens and not binary) or piped) and "encoding" not in given:
            yield ast.unparse(call)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_and_pipe_says_its_encoding(path: Path) -> None:
    assert list(in_some_encoding(ast.parse(code(path)))) == []


@pytest.mark.parametrize(
    ("call", "found"),
    [
        ("p.read_text()", True), ("p.read_text(encoding='utf-8')", False), ("open(p)", True), ("p.open('rb')", False),
        ("p.open('a')", True), ("open(p, mode='wb')", False), ("subprocess.run(c, text=True)", True),
        ("subprocess.run(c, capture_output=True)", False), ("subprocess.run(c, encoding='utf-8')", False),
    ],
)  # fmt: skip
def test_the_law_bites(call: str, found: bool) -> None:
    assert bool(list(in_some_encoding(ast.parse(call)))) == found


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[bytes]]:
    """A copy of the project in a folder of an odd name, and a study in it, from training to the PDF.

    The locale is C, the terminal Latin-1; a kernel `python3` of the user's and an IPython profile do not work.
    """
    base = tmp_path_factory.mktemp("elsewhere")
    project, kernel = base / ODD, base / "jupyter" / "kernels" / "python3"
    project.mkdir()
    for name in PROJECT:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, project / name)
    (project / "params" / "little.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    kernel.mkdir(parents=True)
    broken = dict(argv=["false", "{connection_file}"], display_name="mine", language="python")
    (kernel / "kernel.json").write_text(json.dumps(broken), encoding="utf-8")
    startup = base / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "mine.py").write_text("import torch; torch.set_default_device('meta')", encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "HYBRIDLIB_OUTPUTS")}
    environment |= dict(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING="latin-1")
    environment |= dict(JUPYTER_PATH=str(base / "jupyter"), IPYTHONDIR=str(base / "ipython"), OMP_NUM_THREADS="1")
    command = [sys.executable, "run_all.py", "--study", "little"]
    return project, subprocess.run(command, cwd=project, env=environment, capture_output=True)


def test_a_study_is_made_in_any_folder_and_any_locale(elsewhere) -> None:
    project, done = elsewhere
    assert done.returncode == 0, (done.stdout + done.stderr).decode("utf-8", "replace")[-3000:]
    outputs = project / "outputs" / "little"
    assert (outputs / "report.pdf").read_bytes().startswith(b"%PDF")
    assert "Δ" in (outputs / "results.json").read_text(encoding="utf-8"), "there is something to say beyond Latin-1"
    said = done.stdout.decode("latin-1")
    assert "Verdicts" in said and "?" in said and not done.stderr
    assert not [path for path in outputs.rglob("*") if ".part" in path.name]


def test_kernels_are_the_python_that_runs_the_command_and_records_say_so(elsewhere) -> None:
    facts = json.loads((elsewhere[0] / "outputs/little/runs/baseline-text-s3/run.json").read_text(encoding="utf-8"))
    assert facts["interpreter"].endswith(f", {sys.executable}")


def test_what_a_terminal_lacks_is_replaced(capsys: pytest.CaptureFixture) -> None:
    with open(os.devnull, "w", encoding="latin-1") as narrow, pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "stdout", narrow)
        with pytest.raises(UnicodeEncodeError):
            print("≥", flush=True)
        progress_line.replace_unknown_characters()
        print("≥", flush=True)
