"""The seal of a file: readers of its format do not mind it, and every change is noticed."""

import hashlib
import zipfile
from xml.etree import ElementTree

import onnx
import pytest
from onnx import helper

from retinanet.digest import check_seal, file_sha256, seal
from retinanet.errors import UserError


def write(path):
    """A small file of the format that its name says."""
    if path.suffix == ".onnx":
        model = helper.make_model(helper.make_graph([], "empty", [], []))
        helper.set_model_props(model, {"card": "{}"})
        onnx.save(model, path)
    elif path.suffix == ".xml":
        path.write_text('<?xml version="1.0"?>\n<net name="a"><layer id="0"/></net>\n')
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("weights", b"\x00" * 50)
    return path


@pytest.fixture(params=["a.onnx", "a.xml", "a.pt"])
def path(request, tmp_path):
    return write(tmp_path / request.param)


def refused(path, *others):
    with pytest.raises(UserError, match=rf"{path.name}.*damaged or changed.*Copy it again"):
        check_seal(path, *others, remedy="Copy it again")


def test_readers_pass_over_it(path):
    before = path.read_bytes()
    seal(path)
    digest = hashlib.sha256(before).hexdigest()
    assert path.read_bytes().startswith(before) and digest.encode() in path.read_bytes()
    check_seal(path, remedy="")
    if path.suffix == ".onnx":
        entries = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        assert entries == {"card": "{}", "retinanet.sha256": digest}
    elif path.suffix == ".xml":
        assert ElementTree.parse(path).getroot().attrib == {"name": "a"}
    else:
        assert zipfile.ZipFile(path).read("weights") == b"\x00" * 50


def test_every_flipped_bit_is_noticed(path):
    """Of the content and of the digest; what stands around the digest belongs to neither."""
    size = path.stat().st_size
    seal(path)
    content = path.read_bytes()
    digits = content.index(hashlib.sha256(content[:size]).hexdigest().encode())
    for place in (*range(size), *range(digits, digits + 64)):
        changed = bytearray(content)
        changed[place] ^= 1 << (place % 8)
        path.write_bytes(changed)
        refused(path)


def test_other_files_are_part_of_it(path, tmp_path):
    other = tmp_path / "weights.bin"
    other.write_bytes(b"0123")
    seal(path, other)
    check_seal(path, other, remedy="")
    for content in (b"0122", b"012", b"01233", b""):
        other.write_bytes(content)
        refused(path, other)
    other.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        check_seal(path, other, remedy="")


def test_a_file_without_a_seal_is_not_checked(path):
    check_seal(path, remedy="")
    for content in (b"", b"short", b"x" * 200):
        path.write_bytes(content)
        check_seal(path, remedy="")


def test_file_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
