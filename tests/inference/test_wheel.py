"""The wheel in an empty environment, with the packages of requirements-runner.txt and no others: no torch."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import urllib.request
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest
from PIL import Image

import retinanet
from retinanet.cli.main import TRAINING

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKED = re.findall(r"^([\w-]+)==", (ROOT / "requirements-runner.txt").read_text(), re.MULTILINE)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    words = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="session")
def command(wheel, tmp_path_factory):
    """The command of an environment; its packages are linked from this one, so that nothing is downloaded."""
    folder = tmp_path_factory.mktemp("runner")
    venv.create(folder)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    (site,) = folder.glob("[Ll]ib/**/site-packages")
    for name in LOCKED:
        package = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in package.files} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(package.locate_file(top))
    pip = [sys.executable, "-m", "pip", "--python", programs / "python"]
    subprocess.run([*pip, "install", "--quiet", "--no-index", "--no-deps", wheel], check=True, env=surroundings())
    return programs / "retinanet"


def surroundings():
    """The environment variables, without those that would bring packages from elsewhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def call(*words, **more):
    surrounding = {**surroundings(), **more}
    return subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=300, env=surrounding)


def test_it_holds_the_package_and_nothing_else(wheel):
    inside = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [path for path in (ROOT / "src" / "retinanet").rglob("*") if path.is_file()]
    assert inside == {f.relative_to(ROOT / "src").as_posix() for f in files if "__pycache__" not in f.parts}
    assert wheel.name.startswith(f"retinanet-{retinanet.__version__}-")


def test_it_predicts_and_serves(command, exported, tmp_path):
    picture = tmp_path / "bright.png"
    Image.new("RGB", (40, 32), (255, 255, 255)).save(picture)
    (home := tmp_path / "home").mkdir()
    done = call(command, "predict", exported, picture, "--output", tmp_path / "out", HOME=str(home))
    assert not list(home.iterdir())  # runtimes would keep a number there, by which their makers know a machine
    assert (done.returncode, done.stderr) == (0, "") and "2 objects in 1 images" in done.stdout
    assert (tmp_path / "out" / "pictures" / "bright.png").is_file()
    server = subprocess.Popen(
        [command, "serve", exported, "--port", "0"], stdout=subprocess.PIPE, text=True, env=surroundings()
    )
    try:
        url = re.search(r"http://[\w.:]+", server.stdout.readline())[0]
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{url}/detect", data=picture.read_bytes(), timeout=60) as answer:
            assert answer.read().count(b'"box"') == 2
        server.terminate()
        assert server.communicate(timeout=60)[0] == "stopped\n" and server.returncode == 0
    finally:
        server.kill()


@pytest.mark.parametrize(
    "words",
    [
        ["train", "DATA", "--output", "x"],
        ["train", "--help"],
        ["demo"],
        ["predict", "MODEL", "DATA"],
        ["serve", "MODEL"],
    ],
    ids=" ".join,
)
def test_what_needs_torch_says_so(command, trained, data, words):
    done = call(command, *({"MODEL": trained, "DATA": data / "test"}.get(word, word) for word in words))
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(
        rf"retinanet {words[0]}: this needs \w+, which is not .*: pip install retinanet\. .*\n", done.stderr
    )


def test_the_runner_is_a_part_of_the_whole():
    runner, optional = PROJECT["dependency-groups"]["runner"], PROJECT["project"]["optional-dependencies"]
    assert set(runner) <= {*PROJECT["project"]["dependencies"], *optional["export"], *optional["serve"]}
    names = {re.match(r"[\w-]+", line)[0].lower() for line in runner}
    assert names <= set(LOCKED)
    needed = {re.match(r"[\w-]+", line)[0].lower() for line in PROJECT["project"]["dependencies"]}
    assert {name.replace("-", "_") for name in needed - names} == set(TRAINING)
