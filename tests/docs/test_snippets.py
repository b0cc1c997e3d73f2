"""Every example of the pages: commands are read by the real parser, and what can run here runs, on tiny data.

A Python block that cannot run has ``<!-- not run: why -->`` before it; for commands ``NOT_RUN`` says why.
"""

import ast
import importlib
import inspect
import re
import shlex
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import retinanet
from retinanet.cli.main import COMMANDS, main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TUTORIAL = ROOT / "docs" / "tutorial.md"  # runs as a whole, in test_tutorial.py
FENCE = re.compile(r"(?:^<!-- not run: (.+?) -->\n+)?^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = {  # command lines that are read only, and why
    r"^(train|demo|benchmark) ": "takes minutes; the tutorial trains",
    r"^serve ": "ends when it is told to; the tutorial serves",
    r"^push ((?!--dry_run).)*$": "uploads",
    r"^predict me/": "a model of the hub",
    r"^convert ": "weights that are downloaded or of other code; tests/interop",
    r"--engine ray": "starts a cluster; tests/cluster",
    r"--track": "needs the package trackers, which brings OpenCV; tests/inference/test_video.py",
    r"export |openvino|pt2": "minutes of NNCF and compilers; the tutorial exports",
    r"--folds": "trains three models; tests/curation",
    r"suspects\.csv": "a table that a person has filled in; tests/analysis/data",
}


def blocks(page, *languages):
    """(reason not to run, text) of the blocks of a page in one of these languages."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [(reason, text) for reason, language, text in found if language in languages]


def list_commands(page):
    """The command lines of a page, words after ``retinanet``; of A|B the first, what is in brackets is given."""
    for _, text in blocks(page, "", "sh", "bash"):
        for line in text.replace("\\\n", " ").splitlines():
            shown = re.match(
                r"(?:[A-Z_]+=\S+ |time |.*\bmain )*retinanet +(\w+ .*|\w+$)|.*-m retinanet.cli.main (.*)", line
            )
            if not shown:
                continue
            command = re.split(r" [|>] | && | # |  +#", shown[1] or shown[2])[0]
            command = re.sub(r"(?<=[A-Z])(\|[\w:/.]+)+", "", command).replace("[", "").replace("]", "")
            words = shlex.split(command.replace("...", ""), comments=True)
            if words[0] in COMMANDS and not command.endswith("..."):
                yield words


@pytest.fixture(scope="module")
def sandbox(data, trained, tmp_path_factory):
    """A folder where the names that the pages use are tiny data and a tiny model."""
    folder = tmp_path_factory.mktemp("snippets")
    shutil.copytree(data, folder / "data")
    for name in ("DATA", "data/cells", "bccd"):
        (folder / name).symlink_to(data)
    for name in ("MODEL", "RUN", "runs/cells", "runs/bccd", "runs/bccd/seed0/last"):
        shutil.copytree(trained, folder / name)
    (folder / "FOLDER").symlink_to(data / "test")
    for name in ("IMAGE", "smear.jpg", "image.jpg"):
        (folder / name).symlink_to(data / "test" / "test_0.png")
    noise = np.random.default_rng(0).integers(0, 255, (120, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "huge.tif")
    (folder / "IMAGES").mkdir()  # of which none is annotated
    for number in range(3):
        Image.fromarray(np.roll(noise, 40 * number, axis=1)).save(folder / "IMAGES" / f"{number}.png")
    with av.open(str(folder / "film.mp4"), "w") as film:
        stream = film.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 80, 64, "yuv420p"
        for _ in range(6):
            film.mux(stream.encode(av.VideoFrame.from_ndarray(noise[:64, :80])))
        film.mux(stream.encode())
    (folder / "plan.yaml").symlink_to(trained / "plan.yaml")
    return folder


def reads(words):
    """Whether the parser takes a command line, whose files of options need not exist."""
    command, *rest = words
    return main([command, *rest, "--print_config"]) == 0


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page != TUTORIAL], ids=lambda page: str(page.relative_to(ROOT))
)
def test_command_lines_are_read(page, sandbox, monkeypatch, capsys):
    monkeypatch.chdir(sandbox)
    anchors = Path("anchors.yaml")  # which another command of the page writes
    anchors.write_text("architecture: {anchors: {sizes: [8, 16, 32, 64, 128]}}\n")
    assert [words for words in list_commands(page) if not reads(words)] == [], capsys.readouterr().err
    anchors.unlink()


def test_command_lines_run(sandbox, monkeypatch, capsys):
    """Each once, in the order of the pages; every reason not to run is still needed."""
    monkeypatch.chdir(sandbox)
    lines = dict.fromkeys(tuple(words) for page in PAGES if page != TUTORIAL for words in list_commands(page))
    reasons = {line: [one for one in NOT_RUN if re.search(one, " ".join(line))] for line in lines}
    run = [line for line, found in reasons.items() if not found]
    there, failed = set(sandbox.iterdir()), {}
    for line in run:
        if main(line) != 0:
            failed[line] = capsys.readouterr().err
        for written in set(sandbox.iterdir()) - there:
            shutil.rmtree(written) if written.is_dir() else written.unlink()
    assert failed == {}
    assert len(run) >= 20 and {command for command, *_ in run} >= {
        "check",
        "plan",
        "evaluate",
        "predict",
        "diagnose",
        "why",
    }
    assert {one for found in reasons.values() for one in found} == set(NOT_RUN)


PYTHON = [page for page in PAGES if page != TUTORIAL and blocks(page, "python")]


@pytest.mark.parametrize("page", PYTHON, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_run_or_name_what_exists(page, sandbox, tiny, monkeypatch):
    train = retinanet.train

    def train_a_little(data, output, **options):
        shutil.rmtree(output, ignore_errors=True)
        return train(data, output, **{**options, **tiny(), "optim": options.get("optim", tiny()["optim"])})

    monkeypatch.setattr(retinanet, "train", train_a_little)
    monkeypatch.chdir(sandbox)
    names = {"__name__": "__main__", "retinanet": retinanet, "paths": ["smear.jpg", "image.jpg"]}
    names["predictor"] = retinanet.Predictor.load("runs/cells")
    for reason, text in blocks(page, "python"):
        check_names(text)
        if not reason:
            text = text.replace("score=0.3", "score=0.0")  # the tiny model is sure of nothing
            exec(compile(text, str(page), "exec"), names)


def check_names(text):
    """Whether a block imports only what the package has, and calls it with parameters that it has."""
    known = {"retinanet": retinanet}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "retinanet":
            module = importlib.import_module(node.module)
            known |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            [importlib.import_module(alias.name) for alias in node.names if alias.name.startswith("retinanet")]
    for node in ast.walk(ast.parse(text)):
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        parts = called.split(".") if re.fullmatch(r"[\w.]+", called) else [""]
        if parts[0] in known:
            called = known[parts[0]]
            for part in parts[1:]:
                called = getattr(called, part)
            parameters = inspect.signature(called).parameters
            taken = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
            assert taken or {word.arg for word in node.keywords} <= set(parameters), ast.unparse(node)


def test_names_are_checked():
    with pytest.raises(AttributeError):
        check_names("from retinanet import nothing")
    with pytest.raises(AssertionError):
        check_names("import retinanet\nretinanet.evaluate('a', 'b', splitt='test')")


def test_about_half_of_the_python_blocks_run():
    given = [bool(reason) for page in PAGES for reason, _ in blocks(page, "python")]
    assert given.count(False) >= 9 and given.count(True) <= 8
