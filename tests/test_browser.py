"""The committed reports as people see them: in a browser."""

from collections.abc import Iterator

import pytest
from browsing import CHARTS, chromium, complaints, needs_browser, until
from selenium import webdriver

from hybridlib.study.parameters import ROOT

pytestmark = needs_browser


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    with chromium() as driver:
        yield driver


@pytest.mark.parametrize("study", ["cpu", "gpt2-small", "gpt2-small-gpu", "gpt2-medium"])
def test_a_report_draws_every_chart_without_a_network_and_without_a_complaint(browser: webdriver.Chrome, study: str):
    complaints(browser)
    browser.execute_cdp_cmd("Network.enable", {})
    offline = dict(offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    try:
        browser.get((ROOT / "outputs" / study / "report.html").as_uri())
        until(browser, lambda b: all(w and h for w, h, _ in b.execute_script(CHARTS, ".chart")), "every chart drawn")
    finally:
        browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline | dict(offline=False))
    assert len(browser.execute_script(CHARTS, ".chart")) > 5
    assert not complaints(browser)
