"""Debian's Chromium, for the tests that load the page."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

import pytest


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium; its tests are skipped where there is none.

    With PSYFAST_REQUIRE_CHROMIUM=1 its absence is a failure: the gate must not pass by skipping.
    """
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    lacking = "chromium (Debian: apt-get install chromium)" if path is None else ""
    if find_spec("playwright") is None:
        lacking = "playwright, which drives chromium (pip install playwright)"
    if lacking:
        if os.environ.get("PSYFAST_REQUIRE_CHROMIUM") == "1":
            pytest.fail(f"PSYFAST_REQUIRE_CHROMIUM=1, but there is no {lacking}")
        pytest.skip(f"needs {lacking}, to load the report's page")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
