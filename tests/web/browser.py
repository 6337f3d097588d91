"""A headless Chromium for tests: the one on the machine, else one that is installed now; where there is none to be had
the tests are skipped with one loud line, and fail in CI."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, expect, sync_playwright

from tests import debian
from tests.waiting import PATIENCE

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def _brought() -> str | None:
    """The browser that its driver brings; None where it cannot."""
    command = [sys.executable, "-m", "playwright", "install", "chromium"]
    done = subprocess.run(command, check=False, capture_output=True, timeout=600)
    if done.returncode:
        return None
    with sync_playwright() as playwright:
        return playwright.chromium.executable_path


@contextmanager
def chromium(*more: str) -> Iterator[Browser]:
    """A browser, given ``more`` arguments."""
    path = debian.program(*NAMES, package="chromium") or _brought()
    if path is None:
        message = "NO BROWSER: the pages were not opened in one; install Chromium to test them"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*ARGUMENTS, *more])
        expect.set_options(timeout=1000 * PATIENCE)
        try:
            yield browser
        finally:
            browser.close()


def opened(browser: Browser, **more: Any) -> BrowserContext:
    """A new session in ``browser``, which waits for its pages as long as a busy machine may need."""
    made = browser.new_context(**more)
    made.set_default_timeout(1000 * PATIENCE)
    return made
