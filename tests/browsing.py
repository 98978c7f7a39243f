"""A browser for the tests that look at pages and notebooks as people see them."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium with chromedriver: make browser")

PATIENCE_S = 120.0  # before a test gives up
CHARTS = """return [...document.querySelectorAll(arguments[0])].map(chart => {
    const drawn = chart.matches('img, svg, canvas') ? chart : chart.querySelector('img, svg, canvas');
    const size = drawn?.getBoundingClientRect();
    return [size?.width ?? 0, size?.height ?? 0, drawn?.src ?? ''];
})"""


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """A browser without a window, 1400 px wide, whose console is kept."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("headless=new", "disable-dev-shm-usage", "window-size=1400,1000", "disable-background-networking"):
        options.add_argument(f"--{argument}")
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(PATIENCE_S)
    try:
        yield driver
    finally:
        driver.quit()


def until(browser: webdriver.Chrome, holds: Any, what: str) -> Any:
    return WebDriverWait(browser, PATIENCE_S, 0.2).until(holds, what)


def complaints(browser: webdriver.Chrome) -> list[str]:
    """Return what the console complained of since it was asked last; not that a page with changes was left."""
    entries = [entry for entry in browser.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")]
    return [entry["message"] for entry in entries if "beforeunload" not in entry["message"]]
