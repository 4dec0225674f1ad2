"""Chromium for the tests that open a page, where there is one.

``apt install chromium`` and ``pip install -e '.[browser]'``; ``SYNQ_CHROMIUM`` names another one.
"""

import os
import shutil

import pytest

CHROMIUM = os.environ.get("SYNQ_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
if CHROMIUM is None:
    pytest.skip("there is no Chromium on this machine", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        # As root, in a container, Chromium cannot put its pages into a sandbox of their own.
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()
