"""Headless Chromium, driven by Playwright, for tests of pages as a reader sees them.

    with chromium() as browser:
        page = browser.new_page()

The browser is $CHROMIUM, else the one that `playwright install chromium` downloads, else chromium, chromium-browser or
google-chrome on the PATH.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome")
ADVICE = "install one (Debian: apt-get install chromium; anywhere: playwright install chromium) or name it in $CHROMIUM"


class NoBrowserError(Exception):
    """No browser can be started; the message has the reason and the remedy."""


def executable(downloaded: str) -> str:
    """The path of the browser to start; `downloaded` is the path of Playwright's own."""
    if named := os.environ.get("CHROMIUM"):
        if not shutil.which(named):
            raise NoBrowserError(f"$CHROMIUM is {named}, which is not an executable program")
        return named
    found = [downloaded] if Path(downloaded).is_file() else [path for name in NAMES if (path := shutil.which(name))]
    if not found:
        raise NoBrowserError(f"no Chromium on this machine: {ADVICE}")
    return found[0]


@contextmanager
def chromium(skip: bool = True) -> Iterator[Browser]:
    """A headless browser. Without one, skip the test with the reason, or raise NoBrowserError if `skip` is False."""
    try:
        try:
            from playwright.sync_api import sync_playwright
        except ImportError as error:
            raise NoBrowserError("Playwright is missing: pip install playwright") from error
        with sync_playwright() as playwright:
            # Chromium's sandbox does not work for root; /dev/shm is small in a container
            flags = ["--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
            browser = playwright.chromium.launch(executable_path=executable(playwright.chromium.executable_path), args=flags)
            try:
                yield browser
            finally:
                browser.close()
    except NoBrowserError as error:
        if not skip:
            raise
        pytest.skip(str(error))
