"""The documentation names files that are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_files_exist(page):
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)  # examples name files of their readers
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    gone = [link for link in links if not (page.parent / link).exists()]
    named = re.findall(r"`([\w./-]+/\w+\.py)`", text)
    gone += [name for name in named if not any((root / name).exists() for root in (ROOT, ROOT / "llmcfsr_merlin"))]
    assert not gone, f"{page.relative_to(ROOT)} names what is not there: {gone}"
