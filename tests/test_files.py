"""Results replace nothing by accident, and a file is written whole or not at all."""

import errno
import os

import pytest

from retinanet.errors import UserError
from retinanet.files import check_output_folder, check_writable, write_atomically, write_folder


def test_an_output_folder_is_free_unless_it_holds_one_of_the_files(tmp_path):
    check_output_folder(tmp_path / "new" / "folder", ["a.json"], overwrite=False)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "other.json").touch()
    check_output_folder(tmp_path, ["a.json", "deep/b.png"], overwrite=False)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.png").touch()
    with pytest.raises(UserError, match=r"holds results already \(deep/b.png\). Choose another --output or pass --ov"):
        check_output_folder(tmp_path, ["a.json", "deep/b.png"], overwrite=False)
    check_output_folder(tmp_path, ["a.json", "deep/b.png"], overwrite=True)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file; expected the name of a folder"):
        check_output_folder(tmp_path / "file", ["a.json"], overwrite=True)
    with pytest.raises(UserError, match=r"/in/it cannot be written: .*/file is a file, not a folder"):
        check_output_folder(tmp_path / "file" / "in" / "it", ["a.json"], overwrite=True)


def test_a_folder_that_may_not_be_written_is_refused(tmp_path, monkeypatch):
    """By the answer of the system, since nothing is forbidden to the superuser."""
    asked = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append((path, mode)))
    for check in (check_writable, lambda path: check_output_folder(path, [], overwrite=False)):
        with pytest.raises(UserError, match=rf"new/folder cannot be written: {tmp_path} is read-only"):
            check(tmp_path / "new" / "folder")
    assert asked == [(tmp_path, os.W_OK)] * 2


@pytest.mark.parametrize("content", ["Grüße\n", "Grüße\n".encode(), lambda path: path.write_text("Grüße\n", "utf-8")])
def test_text_bytes_or_a_function(tmp_path, content):
    path = tmp_path / "new" / "file.txt"
    for _ in range(2):
        write_atomically(path, content)
        assert path.read_bytes() == "Grüße\n".encode() and os.listdir(path.parent) == ["file.txt"]


def fail(error):
    def write(path):
        path.write_text("half")
        raise error

    return write


def test_after_an_error_the_old_file_is_there_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(UserError, match=r"file.txt cannot be written \(No space left.*\)\. .* choose another place"):
        write_atomically(path, fail(full))
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail(KeyboardInterrupt()))
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file.txt"]


def test_a_place_that_is_taken(tmp_path):
    (tmp_path / "taken" / "in").mkdir(parents=True)
    (tmp_path / "file").touch()
    for path in (tmp_path / "taken", tmp_path / "file" / "in.txt"):
        with pytest.raises(UserError, match=rf"{path} cannot be written \(.+\)"):
            write_atomically(path, "text")
    assert sorted(os.listdir(tmp_path)) == ["file", "taken"] and os.listdir(tmp_path / "taken") == ["in"]


def test_the_bytes_reach_the_disk_before_the_name(tmp_path, monkeypatch):
    order = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: order.append(name) or real(*args))
    write_atomically(tmp_path / "file.txt", "text")
    assert order == ["fsync", "replace", "fsync"]  # the file, then the folder


def test_two_calls_that_write_one_file_have_a_draft_each(tmp_path):
    path = tmp_path / "file.txt"

    def write(draft):
        draft.write_text("first")
        write_atomically(path, "second")
        assert path.read_text() == "second"

    write_atomically(path, write)
    assert path.read_text() == "first" and os.listdir(tmp_path) == ["file.txt"]


def test_outdated_results_go_when_the_new_ones_are_there(tmp_path):
    for name in ("old", "both", "other"):
        (tmp_path / name).write_text("1")
    outdated = [tmp_path / "old", tmp_path / "both", tmp_path / "never"]
    with pytest.raises(KeyError), write_folder(tmp_path, replace=False, outdated=outdated):
        raise KeyError
    assert sorted(os.listdir(tmp_path)) == ["both", "old", "other"]
    with write_folder(tmp_path, replace=False, outdated=outdated) as draft:
        (draft / "both").write_text("2")
    assert sorted(os.listdir(tmp_path)) == ["both", "other"] and (tmp_path / "both").read_text() == "2"
