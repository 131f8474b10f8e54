"""Debian's Chromium, for the tests that load the page."""

from __future__ import annotations

import os
import shutil

import pytest


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium; its tests are skipped where there is none.

    With PSYFAST_REQUIRE_CHROMIUM=1 its absence is a failure: the gate must not pass by skipping.
    """
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        if os.environ.get("PSYFAST_REQUIRE_CHROMIUM") == "1":
            pytest.fail("PSYFAST_REQUIRE_CHROMIUM=1, but there is no chromium")
        pytest.skip("needs chromium, to load the report's page (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, which drives chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
