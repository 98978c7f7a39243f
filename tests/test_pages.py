"""The pages of the committed reports, as pictures: full, few enough, and with type that can be read."""

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hybridlib.analysis.show import PNG_SCALE
from hybridlib.analysis.theme import FONT, TEXT_WIDTH_PX
from hybridlib.study.parameters import OUTPUTS
from hybridlib.study.typesetting import LEAST_PT

REPORTS = sorted(OUTPUTS.glob("*/report.pdf"))
IDS = [path.parent.name for path in REPORTS]
MAIN_PAGES = 12  # at most, before the references
FULL = 2 / 3  # of the height of the text
TOP, BOTTOM = 2.4 / 29.7, 1 - 2.7 / 29.7  # of a page, without its number
TEXT_PT = 16 / 2.54 * 72  # width of the text


@pytest.mark.parametrize("report", REPORTS, ids=IDS)
def test_every_page_but_the_last_is_two_thirds_full(report: Path, tmp_path: Path) -> None:
    subprocess.run(["pdftoppm", "-r", "40", "-gray", "-png", str(report), str(tmp_path / "page")], check=True)
    empty = {}
    pages = sorted(tmp_path.glob("page-*.png"))
    for number, path in enumerate(pages[:-1], 1):
        page = np.asarray(Image.open(path))
        text = page[round(TOP * len(page)) : round(BOTTOM * len(page))]
        inked = np.flatnonzero((text < 200).any(axis=1))
        if not len(inked) or inked[-1] < FULL * len(text):
            empty[number] = inked[-1] / len(text) if len(inked) else 0.0
    assert not empty and len(pages) > 1


@pytest.mark.parametrize("report", REPORTS, ids=IDS)
def test_the_main_text_is_short(report: Path) -> None:
    text = subprocess.run(["pdftotext", "-layout", str(report), "-"], capture_output=True, text=True).stdout
    pages = text.split("\f")
    (references,) = [at for at, page in enumerate(pages, 1) if re.search(r"^\s*\d+ +References$", page, re.MULTILINE)]
    assert references <= MAIN_PAGES


@pytest.mark.parametrize("report", REPORTS, ids=IDS)
def test_the_abstract_is_short_and_nothing_refers_to_nothing(report: Path) -> None:
    abstract = json.loads((report.parent / "shown" / "abstract.json").read_text())["content"]
    assert 60 <= len(abstract.split()) <= 200
    text = subprocess.run(["pdftotext", str(report), "-"], capture_output=True, text=True).stdout
    assert "??" not in text


@pytest.mark.parametrize("report", REPORTS, ids=IDS)
def test_type_in_figures_can_be_read(report: Path) -> None:
    """The smallest is that of axes, a pixel below FONT; a figure that is wider than the text shrinks to it."""
    for path in report.parent.glob("shown/*.png"):
        width_px = Image.open(path).width / PNG_SCALE
        scale = TEXT_PT / max(width_px, TEXT_WIDTH_PX)
        assert (FONT - 1) * scale >= LEAST_PT, path


@pytest.mark.parametrize("report", REPORTS, ids=IDS)
def test_every_link_of_the_page_leads_somewhere(report: Path) -> None:
    page = report.with_suffix(".html").read_text(encoding="utf-8")
    page = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    links = set(re.findall(r'href="([^"]+)"', page))
    files = {link for link in links if not re.match(r"#|https?:|data:", link)}
    assert [link for link in sorted(files) if not (report.parent / link).is_file()] == []
    assert len(files) > 10
    anchors = {link[1:] for link in links if link.startswith("#")}
    assert anchors - set(re.findall(r'id="([^"]+)"', page)) == set()
