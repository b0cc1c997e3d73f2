"""``python docs/generate [FOLDER]``: all that the site is built of, in build/docs; then ``zensical build --strict``.

The pages of docs/ are taken as they are. The marker ``<!-- generated -->`` in one of ``FILLED`` is replaced by what the
sources say, notebooks become pages, and pages that lie at the root of the repository, where code hosts look, are added.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import commands
import errors
import notebooks

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
ADDED = {"SECURITY.md": "security.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
ADDED |= {"Dockerfile": "Dockerfile", "requirements-runner.txt": "requirements-runner.txt"}
FILLED = {"reference/errors.md": lambda: errors.render(ROOT / "src" / "retinanet"), "reference/cli.md": commands.render}
MARKER = "<!-- generated -->"


def main(stage: Path) -> None:
    """Write the pages of the site into a folder, anew."""
    if stage.exists() and not (stage / "index.md").is_file():
        raise SystemExit(f"{stage} is no folder that this has made: name a new one")
    shutil.rmtree(stage, ignore_errors=True)
    shutil.copytree(DOCS, stage, ignore=shutil.ignore_patterns("generate", "__pycache__"))
    pages = {page: page.relative_to(DOCS) for page in DOCS.rglob("*.md")}
    pages |= {file: file.relative_to(DOCS).with_suffix(".md") for file in DOCS.rglob("*.ipynb")}
    pages |= {ROOT / name: Path(added) for name, added in ADDED.items()}
    for source, page in pages.items():
        if source.suffix == ".ipynb":
            text = notebooks.render(source, (stage / page).parent / "output")
        else:
            text = source.read_text(encoding="utf-8")
        if fill := FILLED.get(page.as_posix()):
            text = text.replace(MARKER, fill())
        text = follow_links(text, source, page, pages)
        if source.suffix == ".ipynb":
            text += f"\n[This page as a notebook]({source.name})\n"
        (stage / page).write_text(text, encoding="utf-8")


def follow_links(text: str, source: Path, page: Path, pages: dict[Path, Path]) -> str:
    """The text of a page with its links to pages that lie elsewhere in the site."""

    def follow(link: re.Match[str]) -> str:
        target = Path(os.path.normpath(source.parent / link[1]))
        there = pages.get(target) or (target.relative_to(DOCS) if target.is_relative_to(DOCS) else None)
        return f"]({os.path.relpath(there, page.parent)}" if there and target.exists() else link[0]

    return re.sub(r"\]\(([^)#\s:]+)(?=[)#])", follow, text)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else ROOT / "build" / "docs")
