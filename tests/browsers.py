"""A real headless Chromium, where there is one, and the page's own process."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@contextmanager
def chromium() -> Iterator:
    """Playwright's browser; skips the test, with the reason, where it cannot be had."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra `test`)")
    if CHROMIUM is None:
        pytest.skip("no chromium here: on Debian, apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def exploring(*arguments: object) -> Iterator[str]:
    """The address of `llmcfsr explore ARGUMENTS` in a process of its own."""
    command = [sys.executable, "-m", "llmcfsr_merlin.cli.main", "explore", *map(str, arguments), "--page-port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.fullmatch(r"explore: (http://127\.0\.0\.1:\d+)\n", said)
        assert found, said
        yield found[1]
    finally:
        process.terminate()
        process.wait(20)
