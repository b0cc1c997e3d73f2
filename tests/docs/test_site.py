"""The site builds without a warning, needs no other host, and says what the sources say."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

import retinanet
from retinanet.cli.main import COMMANDS, main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; warnings are errors."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(ROOT / "zensical.toml", folder)
    for name in ("src", "docs"):
        (folder / name).symlink_to(ROOT / name)
    with mock.patch.object(sys, "argv", ["generate", str(folder / "build/docs")]):
        runpy.run_path(str(ROOT / "docs" / "generate"), run_name="__main__")
    words, environment = [sys.executable, "-m", "zensical", "build", "--strict"], {**os.environ, "NO_COLOR": "1"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


def test_nothing_is_loaded_from_another_host(site):
    loaded = (
        r"<(?:script|img|iframe)[^>]+src=\"?(https?:[^\"> ]+)|<link[^>]+rel=\"?stylesheet[^>]+href=\"?(https?:[^\"> ]+)"
    )
    for page in site.rglob("*.html"):
        assert re.findall(loaded, page.read_text()) == [], page


def test_every_public_name_is_explained(site):
    page = (site / "reference" / "api.html").read_text()
    assert [name for name in retinanet.__all__ if f'id="retinanet.{name}"' not in page] == []
    assert ":func:" not in page and ":class:" not in page


def test_every_command_and_its_options_are_listed(site):
    page = (site / "reference" / "cli.html").read_text()
    assert [name for name in COMMANDS if f'id="{name}"' not in page] == []
    assert "--optim.lr_batch" in page and "--dry_run" in page


MISTAKES = [
    ["evaluate", "nowhere", "DATA"],
    ["train", "nowhere", "--output", "x"],
    ["train", "DATA", "--output", "x", "--epochs", "many"],
    ["predict", "MODEL", "nowhere.png", "--output", "x"],
    ["check", "DATA", "--otput", "x"],
]


@pytest.mark.parametrize("words", MISTAKES, ids=lambda words: words[0])
def test_a_message_is_found_in_the_catalogue(words, site, data, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    places = {"DATA": str(data), "MODEL": str(trained)}
    assert main([places.get(word, word) for word in words]) == 2
    message = capsys.readouterr().err.strip().removeprefix(f"retinanet {words[0]}: ")
    page = (site.parent / "build" / "docs" / "reference" / "errors.md").read_text()
    known = re.findall(r"^\* `+ ?(.+?) ?`+ \(line \d+\)$", page, re.MULTILINE)
    assert len(known) > 450
    fitting = [text for text in known if re.fullmatch(".*".join(map(re.escape, text.split("…"))), message, re.DOTALL)]
    assert max(len(text.replace("…", "")) for text in fitting) > 12, message
