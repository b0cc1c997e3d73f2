"""The folder of a run: every state in which a kill can leave it, and what it must not touch."""

import json
import os
import re
import shutil
import signal
import socket
import sys
from pathlib import Path

import pytest
import torch
from tests.training.test_resume import assert_same_run

from retinanet.data.dataset import training_datasets
from retinanet.detector import Detector
from retinanet.errors import UserError
from retinanet.files import write_atomically
from retinanet.spec import CONFIG
from retinanet.training import loop, output, resume
from retinanet.training.output import LOCK, OPTIONS, check_space, lock, remove_drafts
from retinanet.training.resume import STATE
from retinanet.training.run import train

WRITES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
watched: dict[str, Path] = {}  # folder and place of the copies while a run is watched; an audit hook cannot be removed


def copy_if_new(event: str, arguments: tuple[object, ...]) -> None:
    """Copy the folder before an operation on a file in it, as a kill at this moment would leave it."""
    folder = watched.get("folder")
    if event not in WRITES or not folder or not str(arguments[0]).startswith(str(folder)):
        return
    if event == "open" and not int(arguments[2]) & (os.O_WRONLY | os.O_RDWR):
        return
    watched.pop("folder")
    copy = watched["copies"] / str(len(list(watched["copies"].iterdir())))

    def link_or_copy(source: str, target: str) -> None:
        # files that are only ever replaced keep their bytes
        (os.link if Path(source).suffix in (".pt", ".safetensors", ".part") else shutil.copy)(source, target)

    if folder.is_dir():
        shutil.copytree(folder, copy, copy_function=link_or_copy)
    watched["folder"] = folder


def contents(folder):
    """What decides how a run goes on: all but drafts, the lock, the card, and the log, whose rows may be dropped."""
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {
        name: path.stat().st_ino if path.suffix in (".pt", ".safetensors") else path.read_bytes()
        for name, path in files.items()
        if path.suffix != ".part" and path.name not in (LOCK, "log.csv", "README.md")
    }


def test_wherever_a_run_is_killed_it_can_be_resumed_or_started_anew(data, tiny, tmp_path, monkeypatch):
    """A crash point at every file operation: each state of the folder leads to the weights of the whole run."""

    def finish_as_the_best(training, progress, log, finish=loop.finish_epoch):
        progress.best = -1.0  # so that the second epoch replaces the model of the first
        finish(training, progress, log)

    monkeypatch.setattr(loop, "finish_epoch", finish_as_the_best)
    monkeypatch.setattr("retinanet.training.run.training_curves", lambda rows: rows)
    monkeypatch.setattr("retinanet.training.run.save_figure", lambda rows, path: write_atomically(path, str(rows)))
    options = tiny(batch_size=6)
    folder, copies = tmp_path / "run", tmp_path / "copies"
    copies.mkdir()
    sys.addaudithook(copy_if_new)
    watched.update(folder=folder, copies=copies)
    try:
        train(str(data), str(folder), **options)
    finally:
        watched.clear()
    whole = Path(shutil.copytree(folder, tmp_path / "whole"))

    states = []
    for copy in sorted(copies.iterdir(), key=lambda path: int(path.name)):
        if not states or contents(copy) != contents(states[-1]):
            states.append(copy)
    assert len(states) > 15
    resumed = 0
    for state in states:
        shutil.rmtree(folder)
        shutil.copytree(state, folder)
        if (folder / CONFIG).exists():
            assert Detector.load(folder).spec.class_names == ("disc", "square")
        can_resume = (folder / STATE).exists() and (folder / OPTIONS).exists()
        train(str(data), str(folder), resume=can_resume, **options)
        assert_same_run(folder, whole)
        resumed += can_resume
    assert 15 < resumed < len(states)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_runs_cannot_share_a_folder(data, tiny, tmp_path):
    """A second run is told who holds the folder; when that process is killed, its lock is nobody's."""
    folder = tmp_path / "run"
    reader, writer = os.pipe()
    other = os.fork()
    if not other:
        with lock(folder):
            os.write(writer, b"held")
            signal.pause()
    try:
        assert os.read(reader, 4) == b"held"
        with pytest.raises(UserError, match=f"in use by another run, process {other} on {socket.gethostname()}"):
            train(str(data), str(folder), **tiny(epochs=1))
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
    assert (folder / LOCK).read_text().startswith(f"process {other} ")
    with lock(folder):
        assert (folder / LOCK).read_text().startswith(f"process {os.getpid()} ")
    assert not (folder / LOCK).exists()


def test_a_lock_of_another_machine(data, tiny, tmp_path):
    (tmp_path / LOCK).write_text("process 7 on elsewhere\n")
    with pytest.raises(UserError, match=r"process 7 on elsewhere, or that run was killed.*delete .*run\.lock"):
        train(str(data), str(tmp_path), **tiny(epochs=1))
    assert os.listdir(tmp_path) == [LOCK]


def test_a_lock_holds_within_one_process(tmp_path):
    with lock(tmp_path):
        with pytest.raises(UserError, match=f"in use by another run, process {os.getpid()} "), lock(tmp_path):
            pass
        assert (tmp_path / LOCK).exists()


@pytest.mark.parametrize("kind", ["text", "bytes", "folder", "pipe", "link"])
def test_a_lock_that_is_none(kind, tmp_path):
    path, mine = tmp_path / "run" / LOCK, tmp_path / "mine"
    path.parent.mkdir()
    mine.write_text("mine")
    {
        "text": lambda: path.write_text("my notes\n"),
        "bytes": lambda: path.write_bytes(b"\xff\0"),
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "link": lambda: path.symlink_to(mine),
    }[kind]()
    with pytest.raises(UserError, match=r"run\.lock is no lock of a run"), lock(path.parent):
        pass
    assert os.path.lexists(path) and mine.read_text() == "mine" and (kind != "text" or path.read_text() == "my notes\n")


def test_drafts_of_a_killed_run_are_removed_and_no_other_files(tmp_path):
    (tmp_path / "last").mkdir()
    others = [".cache.part", ".state.pt.part", "state.pt.7.part"]
    for name in (".state.pt.7.part", "last/.model.safetensors.12.part", *others):
        (tmp_path / name).touch()
    remove_drafts(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "last"]) and not os.listdir(tmp_path / "last")


def test_a_lock_leaves_nothing_behind(tmp_path):
    with lock(tmp_path / "new"):
        assert os.listdir(tmp_path / "new") == [LOCK]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["log.csv", "config.yaml", "notes.txt", "last"])
@pytest.mark.parametrize("kind", ["file", "link", "dangling link"])
def test_a_folder_with_other_files_is_refused(name, kind, data, tiny, tmp_path):
    folder, mine = tmp_path / "run", tmp_path / "mine"
    folder.mkdir()
    (folder / "train.log").write_text("what the shell writes")
    if kind != "dangling link":
        mine.write_text("mine")
    (folder / name).symlink_to(mine) if "link" in kind else mine.rename(folder / name)
    with pytest.raises(UserError, match=rf"holds other files \({name}\).*Choose a new folder"):
        train(str(data), str(folder), **tiny(epochs=1))
    assert sorted(os.listdir(folder)) == sorted([name, "train.log"])
    assert kind == "dangling link" or (folder / name).read_text() == "mine"


def test_a_run_that_does_not_fit_on_the_disk_is_not_begun(data, tiny, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(output.shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(UserError, match=r"take about \d+ MB, and the disk has 1 MB free"):
        train(str(data), str(tmp_path / "run"), **tiny(epochs=1))
    assert not (tmp_path / "run").exists()


def test_the_space_that_a_run_asks_for_is_what_it_takes(data, tiny, tmp_path, monkeypatch):
    """At least what the folder holds in the end with another state beside it, and not half as much again."""
    asked = []

    class Enough:
        free = property(lambda _: asked.append(1) or 1 << 60)

    needed = {}
    monkeypatch.setattr(output.shutil, "disk_usage", lambda _: Enough())
    original = check_space
    monkeypatch.setattr("retinanet.training.run.check_space", lambda t: needed.update(run=t) or original(t))
    train(str(data), str(tmp_path / "run"), **tiny(epochs=1))
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file()}
    taken = 2 * sizes[STATE] + 3 * sizes["model.safetensors"]
    monkeypatch.setattr(output.shutil, "disk_usage", lambda _: type("Full", (), {"free": -1 << 40}))
    with pytest.raises(UserError, match="take about") as caught:
        original(needed["run"])
    assert asked and int(str(caught.value).split("take about ")[1].split()[0]) * 1e6 == pytest.approx(taken, rel=0.05)


def change(data, split, edit):
    path = data / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def swap_names(content):
    names = [category["name"] for category in content["categories"]]
    for category, name in zip(content["categories"], reversed(names), strict=True):
        category["name"] = name


def drop_boxes(content):
    content["annotations"] = content["annotations"][:5]


def drop_image(content):
    gone = content["images"].pop()["id"]
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != gone]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (swap_names, "the classes were disc, square and are square, disc"),
        (drop_boxes, r"train had 6 images and has 6: \d annotated differently \(train/train_\d\.png"),
        (drop_image, r"train had 6 images and has 5: 1 gone \(train/train_5\.png\)"),
        (lambda content: content["images"].reverse(), "the images of train are in another order"),
    ],
)
def test_how_the_data_of_a_run_have_changed(edit, words, data_copy):
    before = resume.describe_data(*training_datasets(str(data_copy)), data_copy)
    for split in ("train", "val"):
        if edit is swap_names or split == "train":
            change(data_copy, split, edit)
    now = resume.describe_data(*training_datasets(str(data_copy)), data_copy)
    assert re.search(words, resume.compare_data(before, now))


def test_a_run_does_not_go_on_with_other_data(data_copy, tiny, tmp_path):
    folder = tmp_path / "run"
    train(str(data_copy), str(folder), **tiny(epochs=1, batch_size=6))
    change(data_copy, "train", drop_boxes)
    with pytest.raises(UserError, match=r"not those that the run in .* began with: train had.*accept_changed_data"):
        train(str(data_copy), str(folder), resume=True, **tiny(epochs=1, batch_size=6))
    accepted = tiny(epochs=1, batch_size=6, run={"accept_changed_data": True})
    assert train(str(data_copy), str(folder), resume=True, **accepted).steps == 1


def test_the_same_data_elsewhere_are_the_same(data, data_copy):
    first, second = (resume.describe_data(*training_datasets(str(root)), root) for root in (data, data_copy))
    assert first == second and len(first["train"].splitlines()) == 6


def test_a_run_goes_on_with_the_threads_it_began_with(tmp_path, monkeypatch):
    set_to = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    resume.save_state(tmp_path, resume.Progress(1), {})
    assert resume.load_state(tmp_path, {})[1] == [] and set_to == []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert resume.load_state(tmp_path, {})[1] == [] and set_to == [3]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert resume.load_state(tmp_path, {})[1] == ["threads 3 -> 5"] and set_to == [3]
