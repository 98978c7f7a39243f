"""A report in LaTeX typeset to PDF, and what is wrong with its pages: too wide, too high, too small, or lost."""

import os
import re
import shutil
import subprocess
import tempfile
from datetime import datetime
from pathlib import Path

from hybridlib.study.storage import write_atomically

OVERFULL_PT = 1.0  # beyond its box: less is not seen
TYPE_PT, LEAST_PT = 9, 7  # of a table's type: as it is set, and as far as a wide one may shrink
TEX = {  # engine -> its command, and how often it runs until cross-references and the table of contents have settled
    "xelatex": (["xelatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"], 3),
    "tectonic": (["tectonic", "--keep-logs", "--keep-intermediates", "report.tex"], 1),
}
TOO_LARGE = re.compile(r"(?:Overfull \\[hv]box \(|Float too large for page by )([\d.]+)pt(.*)")  # in TeX's log
SHRUNK = re.compile(r"Shrunk \{(.+)\} from ([\d.]+)pt to ([\d.]+)pt")  # said by tables that do
CAPTION = re.compile(  # in its .aux: kind, number, text, page
    r"contentsline \{(\w+)\}\{\\numberline \{(\d+)\}\{\\ignorespaces (.*?)\s*(?:\\relax )?\}\}\{(\d+)\}"
)


class ExportFailed(Exception):
    """A format that could not be made, or is not right; the message says which and why. The others are written."""


def typeset(folder: Path, tex: str, written: datetime) -> None:
    """Write to `folder` report.pdf, dated `written`, of the report `tex`, by xelatex or, where there is none, tectonic.

    TeX works in a folder of its own, where all names are plain: in a user's it takes some characters for its own.
    """
    if (engine := next(filter(shutil.which, TEX), None)) is None:
        raise ExportFailed(
            "report.pdf was not made: there is no xelatex and no tectonic. `make tex` installs TeX on Debian and"
            " Ubuntu; elsewhere it takes TeX Live with XeTeX and the TeX Gyre fonts, or tectonic"
        )
    command, times = TEX[engine]
    clock = {"SOURCE_DATE_EPOCH": f"{written.timestamp():.0f}", "FORCE_SOURCE_DATE": "1"}
    environment = os.environ | clock | {"max_print_line": "10000"}
    try:
        with tempfile.TemporaryDirectory() as name:
            made = Path(name)
            (made / "report.tex").write_text(tex, encoding="utf-8")
            (made / "shown").symlink_to((folder / "shown").resolve())
            for _ in range(times):
                done = subprocess.run(command, cwd=made, env=environment, capture_output=True)
                if done.returncode:
                    raise ExportFailed(f"report.pdf was not made: LaTeX says\n{tex_errors(done.stdout + done.stderr)}")
            texts = (made / f"report.{kind}" for kind in ("log", "aux"))
            log, aux = (text.read_text(encoding="utf-8", errors="replace") for text in texts)
            pdf = (made / "report.pdf").read_bytes()
    except OSError as error:  # as where the folder for temporary files is full
        raise ExportFailed(f"report.pdf was not made: {error}") from None
    write_atomically(folder / "report.pdf", pdf)
    if lost := sorted(set(re.findall(r"Missing character: There is no (\S+)", log))):
        raise ExportFailed(f"report.pdf lacks characters that its fonts don't have: {' '.join(lost)}")
    if wrong := overfull(log, aux, tex) + too_small(log):
        raise ExportFailed("\n".join(f"report.pdf: {said}" for said in wrong))


def tex_errors(output: bytes) -> str:
    """Return the errors in a LaTeX run's `output`, each with the source line that it points at; its end without any."""
    lines = output.decode("utf-8", "replace").splitlines()
    errors = [at for at, line in enumerate(lines) if line.startswith("!")]
    return "\n".join(line for at in errors for line in lines[at : at + 6]) or "\n".join(lines[-20:])


def overfull(log: str, aux: str, tex: str) -> list[str]:
    """Say by how much each box that TeX's `log` calls too large is so, and in which table, figure or section it stands.

    A box is found by its line in the source `tex`, or, where TeX knows only the page, by the captions that `aux` puts
    on it.
    """
    found = []
    for box in TOO_LARGE.finditer(log):
        if float(box[1]) <= OVERFULL_PT:
            continue
        if line := re.search(r"lines? (\d+)", box[2]):
            where = surrounding(tex, int(line[1]))
        else:
            page = re.search(r"\[(\d+)", log[box.end() :])
            there = [caption for caption in CAPTION.findall(aux) if page and caption[3] == page[1]]
            where = "; ".join(f"{kind} {number}: {text}" for kind, number, text, _ in there) or "the text of a page"
        found.append(f"{where}: {box[1]} pt too {'wide' if 'too wide' in box[2] else 'high'} for its page")
    return found


def too_small(log: str) -> list[str]:
    """Say which tables TeX's `log` tells that they shrink, to fit their page, to a type below LEAST_PT."""
    found = []
    for name, from_pt, to_pt in SHRUNK.findall(log):
        if (size := TYPE_PT * float(to_pt) / float(from_pt)) < LEAST_PT:
            found.append(f"table {name}: too wide for its page: its type would be {size:.1f} pt")
    return found


def surrounding(tex: str, line: int) -> str:
    """Return the caption of the table or figure around a `line` of `tex`, counted from 1, or the heading above it."""
    for block in re.finditer(r"\\begin\{(table|figure|longtable)\}.*?\\end\{\1\}", tex, re.DOTALL):
        first = tex.count("\n", 0, block.start()) + 1
        if first <= line <= first + block[0].count("\n") and (caption := re.search(r"\\caption\{(.*)\}", block[0])):
            return f"{block[1].removeprefix('long')}: {caption[1]}"
    headings = re.findall(r"^\\(?:sub)*section\{(.*?)\}(?:\\label|$)", "\n".join(tex.splitlines()[:line]), re.MULTILINE)
    return f"section: {headings[-1]}" if headings else "before the first section"
