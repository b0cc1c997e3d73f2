"""What the documentation promises is held by tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "SECURITY.md", "AGENTS.md", "llms.txt")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


def test_every_test_that_is_named_exists():
    text = "\n".join(page.read_text() for page in PAGES)
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) > 15
    assert [f"{file}::{test}" for file, test in named if f"def {test}" not in (ROOT / file).read_text()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []
