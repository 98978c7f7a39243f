"""The notebooks as people see them: in JupyterLab, in a browser."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from browsing import CHARTS, PATIENCE_S, chromium, complaints, needs_browser, until
from chapter import READING
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from hybridlib.study.parameters import ROOT

pytestmark = [needs_browser, pytest.mark.timed]

WITHIN_S = 60.0  # a notebook, on a machine that does nothing else
SETTINGS = {  # of JupyterLab: no announcements over the page, and every output in it, not only those in sight
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
    "notebook-extension/tracker": {"windowingMode": "none"},
}
PANEL = "const panel = jupyterapp.shell.currentWidget, kernel = panel.sessionContext.session?.kernel;"
LOADED = (
    "return (window.jupyterapp?.shell.currentWidget?.context?.isReady && jupyterapp.shell.currentWidget.context.path)"
)
IDLE = f"{PANEL} return kernel?.status"
# Chapters that read records, and the least number of charts in each. The report shows theirs again, on its page too.
CHARTS_OF = {name: 2 for name in READING if name != "09_report"}
CHARTS_OF |= {"00_question": 0, "04_memory": 1, "08_ablation": 1, "11_failures": 1, "your_model": 2}
IMAGES = ".jp-OutputArea-output img, .jp-OutputArea-output .vega-embed"


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    with chromium() as driver:
        yield driver


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]
    done = subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, encoding="utf-8", check=True)
    return done.stdout


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """JupyterLab on a copy of the project: the copy, and the address that `make lab` opens."""
    copy, own = tmp_path_factory.mktemp("copy") / "project", tmp_path_factory.mktemp("jupyter")
    left = (".git", ".venv", "prose", "smoke", "reproduced", "__pycache__", ".ipynb_checkpoints", "*.egg-info")
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*left))
    git(copy, "init", "--quiet")
    git(copy, "add", "--all")
    git(copy, "commit", "--quiet", "--message", "as it was")
    for name, values in SETTINGS.items():
        file = own / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    folders = dict(JUPYTER_CONFIG_DIR="config", JUPYTER_DATA_DIR="data", JUPYTER_RUNTIME_DIR="runtime")
    folders |= dict(JUPYTERLAB_SETTINGS_DIR="settings", JUPYTERLAB_WORKSPACES_DIR="workspaces", IPYTHONDIR="ipython")
    environment = os.environ | {name: str(own / folder) for name, folder in folders.items()} | {"PYTHONPATH": str(copy)}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port, token = free.getsockname()[1], secrets.token_hex()
    opened = next(word for word in (ROOT / "Makefile").read_text().split() if word.startswith("--LabApp.default_url="))
    options = [opened, "--LabApp.expose_app_in_browser=True", "--no-browser", "--allow-root"]
    options += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}"]
    with (own / "log").open("w") as log:
        command = [sys.executable, "-m", "jupyterlab", *options]
        server = subprocess.Popen(command, cwd=copy, env=environment, stdout=log, stderr=subprocess.STDOUT)
    address, ends = f"http://localhost:{port}", time.monotonic() + PATIENCE_S
    try:
        while not answers(f"{address}/api"):
            assert server.poll() is None and time.monotonic() < ends, (own / "log").read_text()
            time.sleep(0.2)
        yield copy, f"{address}/?token={token}"
    finally:
        server.terminate()
        server.wait(30)


def answers(address: str) -> bool:
    try:
        return urlopen(address).status == 200
    except URLError:
        return False


def opened(browser: webdriver.Chrome, lab: tuple[Path, str], path: str) -> None:
    """Open a notebook of the project in a fresh JupyterLab, and wait for its kernel."""
    _, address = lab
    browser.get(address.replace("/?", f"/lab/tree/{path}?reset&"))
    until(browser, lambda b: b.execute_script(LOADED) == path, f"{path} is open")
    until(browser, lambda b: b.execute_script(IDLE) == "idle", f"{path} has a kernel")


def run_all(browser: webdriver.Chrome) -> float:
    """Run all cells of the notebook that is open; return the seconds that it took. No cell may err or warn."""
    begun = time.monotonic()
    browser.execute_async_script(
        "const done = arguments[0]; jupyterapp.commands.execute('notebook:run-all-cells').then(done, done)"
    )
    until(browser, lambda b: b.execute_script(IDLE) == "idle", "the kernel is idle")
    seconds = time.monotonic() - begun
    cells = browser.execute_script(f"{PANEL} return panel.content.model.toJSON().cells")
    outputs = [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]
    wrong = [one for one in outputs if one["output_type"] == "error" or one.get("name") == "stderr"]
    assert not wrong, wrong
    return seconds


def images(browser: webdriver.Chrome) -> list[str]:
    """Return the sources of the images among the outputs; every chart must have been drawn."""
    charts = browser.execute_script(CHARTS, IMAGES)
    assert all(width > 100 and height > 50 for width, height, _ in charts), [c[:2] for c in charts]
    return [source for *_, source in charts]


def unchanged(lab: tuple[Path, str]) -> bool:
    return not git(lab[0], "status", "--porcelain")


def test_the_laboratory_opens_on_the_index_rendered_and_its_links_lead_on(browser: webdriver.Chrome, lab: tuple):
    browser.get(lab[1])
    until(browser, lambda b: b.execute_script(LOADED) == "notebooks/index.ipynb", "the index is open")
    title = until(browser, lambda b: b.find_element(By.CSS_SELECTOR, ".jp-RenderedMarkdown h1"), "it is rendered")
    assert title.is_displayed() and title.text.startswith("HybridTrainer")
    assert len(browser.find_elements(By.CSS_SELECTOR, ".jp-RenderedMarkdown table a")) > 20
    assert run_all(browser) <= WITHIN_S
    links = {
        "notebooks/playground.ipynb": "//a[.='The playground']",
        "outputs/cpu/notebooks/02_phases.ipynb": "//tr[td[.='02_phases']]//a[.='executed']",
    }
    for path, link in links.items():
        opened(browser, lab, "notebooks/index.ipynb")
        found = until(browser, lambda b, link=link: b.find_element(By.XPATH, link), f"the link to {path}")
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'}); arguments[0].click()", found)
        until(browser, lambda b, path=path: b.execute_script(LOADED) == path, f"the link leads to {path}")
    assert unchanged(lab)


@pytest.mark.parametrize("name", CHARTS_OF)
def test_a_notebook_runs_from_top_to_bottom_and_draws_its_charts(browser: webdriver.Chrome, lab: tuple, name: str):
    complaints(browser)
    opened(browser, lab, f"notebooks/{name}.ipynb")
    seconds = run_all(browser)
    assert len(images(browser)) >= CHARTS_OF[name]
    assert not complaints(browser) and unchanged(lab)
    assert seconds <= WITHIN_S


def test_the_playground_trains_at_a_click_and_again_after_an_interrupt(browser: webdriver.Chrome, lab: tuple):
    opened(browser, lab, "notebooks/playground.ipynb")
    seconds = run_all(browser)
    assert len(browser.find_elements(By.CSS_SELECTOR, ".widget-slider")) == 5
    train = browser.find_element(By.XPATH, "//button[normalize-space()='Train']")

    def says(words: str) -> bool:
        return bool(
            browser.find_elements(By.XPATH, f"//*[contains(@class, 'widget-label') and contains(., '{words}')]")
        )

    def ready() -> bool:
        return train.is_enabled() and browser.execute_script(IDLE) == "idle"

    before = images(browser)
    assert len(before) >= 2
    Select(browser.find_element(By.CSS_SELECTOR, ".widget-dropdown select")).select_by_visible_text("linear")
    train.click()
    until(browser, lambda _: images(browser)[0] != before[0] and ready(), "the chart has changed")
    assert says("against the baseline") and images(browser)[1:] == before[1:]
    browser.execute_async_script(
        f"{PANEL} kernel.requestExecute({{code: 'steps = 100000'}}).done.then(arguments[0], arguments[0])"
    )
    train.click()
    until(browser, lambda _: says("trains") and not train.is_enabled(), "it trains")
    browser.execute_script("jupyterapp.commands.execute('notebook:interrupt-kernel')")
    until(browser, lambda _: says("interrupted") and ready(), "it has been interrupted")
    browser.execute_async_script(
        f"{PANEL} kernel.requestExecute({{code: 'steps = 300'}}).done.then(arguments[0], arguments[0])"
    )
    train.click()
    until(browser, lambda _: says("against the baseline") and ready(), "it trains again")
    assert unchanged(lab)
    assert seconds <= WITHIN_S
