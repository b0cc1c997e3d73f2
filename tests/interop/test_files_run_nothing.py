"""No pickle, however it is made and wherever it lies, runs anything."""

import copyreg
import importlib
import io
import os
import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from retinanet.errors import UserError
from retinanet.interop.files import read_weights
from retinanet.interop.pickles import read_pickle

MARKER = "it-ran"
WRITE = f"open({MARKER!r}, 'w').close()"


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) + (() if state is None else (state,))

    def __call__(self):
        """Pickle asks that a function can be called, and ours may itself be the result of a call."""

    def __reduce__(self):
        return self.parts


def written(path):
    with open(path, "w"):
        pass


def object_array(value):
    array = np.empty(1, object)
    array[0] = value
    return array


def evil():
    """Name -> value that, unpickled by pickle itself, leaves the marker or calls what no weights need."""
    return {
        "system": Calls(os.system, f"touch {MARKER}"),
        "eval": Calls(eval, WRITE),
        "exec": Calls(exec, WRITE),
        "open": Calls(open, MARKER, "w"),
        "own function": Calls(written, MARKER),
        "getattr": Calls(Calls(getattr, dict, "fromkeys"), [MARKER]),
        "import": Calls(__import__, "antigravity_of_the_test"),
        "numpy.testing": Calls(importlib.import_module("numpy.testing").measure, WRITE),
        "numpy.load": Calls(np.load, MARKER),
        "numpy.memmap": Calls(np.memmap, MARKER, "u1", "w+", 0, (4,)),
        "numpy.save": Calls(np.save, MARKER, 1),
        "numpy.f2py": Calls(importlib.import_module("numpy.f2py").get_include),
        "object array": object_array(Calls(eval, WRITE)),
        "ordered dict": OrderedDict(x=[Calls(eval, WRITE)]),
        "ordered dict attribute": Calls(OrderedDict, state={"_metadata": Calls(eval, WRITE)}),
        "key": {Calls(eval, f"({WRITE}, 1)[1]"): 1},
        "reduced twice": Calls(Calls(eval, "eval"), WRITE),
        "dtype state": Calls(np.dtype, "f4", state=Calls(eval, WRITE)),
        "partial": Calls(importlib.import_module("functools").partial(eval, WRITE)),
    }


def raw():
    """Name -> hand-made pickle code that leaves one value on the stack; no picklers write it."""
    text = f"V{WRITE}\n".encode()
    short = b"\x8c" + bytes([len(WRITE)]) + WRITE.encode()
    return {
        "GLOBAL": b"c__builtin__\neval\n(" + text + b"tR",
        "GLOBAL with a mapped name": b"ccopy_reg\n_reconstructor\n(" + text + b"tR",
        "INST": b"(" + text + b"ibuiltins\neval\n",
        "OBJ": b"(cbuiltins\neval\n" + text + b"o",
        "STACK_GLOBAL": b"\x8c\x08builtins\x8c\x04eval" + short + b"\x85R",
        "STACK_GLOBAL of a dotted name": b"\x8c\x05numpy\x8c\x0d" + b"f2py.os.system" + short + b"\x85R",
        "NEWOBJ": b"cbuiltins\neval\n" + text + b"\x85\x81",
        "NEWOBJ_EX": b"cbuiltins\neval\n" + text + b"\x85}\x92",
        "EXT1": b"\x82\xf0(" + text + b"tR",
        "EXT4": b"\x84" + struct.pack("<i", 240) + b"(" + text + b"tR",
        "PERSID": b"Pbuiltins.eval\n",
        "BINPERSID": b"U\x04evalQ",
        "BUILD of a function": b"cnumpy\ndtype\nN}U\x0c__defaults__" + text + b"\x85s\x86b",
        "NEXT_BUFFER": b"\x97",
    }


def code_of(value):
    """The code of a pickle of protocol 2 that leaves the value on the stack."""
    return pickle.dumps(value, 2)[2:-1]


CODES = {name: code_of(value) for name, value in evil().items()} | raw()


def places(code):
    """Place -> code of what is saved: the trap as the root, as a value of the state dict, and beside it."""
    array = code_of(np.ones(2, np.float32))
    return {
        "root": code,
        "value": b"}(U\x01w" + array + b"U\x01x" + code + b"u",
        "meta": b"}(U\x05model}U\x01w" + array + b"sU\x04meta}U\x01x" + code + b"su",
    }


def in_zip(code):
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as file:
        for name, content in (("data.pkl", b"\x80\x02" + code + b"."), ("version", b"3\n"), ("byteorder", b"little")):
            file.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def in_legacy(code):
    torch.save({}, buffer := io.BytesIO(), _use_new_zipfile_serialization=False)
    start, end = buffer.getvalue().rsplit(b"\x80\x02}q\x00.", 1)
    return start + b"\x80\x02" + code + b"." + end


def in_pickle(code):
    return b"\x80\x04" + code + b"."


WRAPS = {"zip": in_zip, "legacy": in_legacy, "pickle": in_pickle}


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A folder for the marker, and an extension code that pickle has met before, so that find_class is passed by."""
    monkeypatch.chdir(tmp_path)
    copyreg.add_extension("builtins", "eval", 240)
    assert pickle.loads(b"\x82\xf0.") is eval
    yield tmp_path / MARKER
    copyreg.remove_extension("builtins", "eval", 240)
    copyreg.clear_extension_cache()


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("name", CODES)
def test_nothing_runs(trap, tmp_path, monkeypatch, name, wrap):
    for place, code in places(CODES[name]).items():
        (tmp_path / "a.pth").write_bytes(WRAPS[wrap](code))
        with pytest.raises(UserError, match=r"a\.pth"):
            read_weights(tmp_path / "a.pth")
        assert [each.name for each in tmp_path.iterdir()] == ["a.pth"], place
    if name == "BUILD of a function":
        assert read_pickle(io.BytesIO(pickle.dumps(np.float32(2), 4))) == 2


@pytest.mark.parametrize("name", ["system", "eval", "open", "own function", "object array", "GLOBAL", "INST", "EXT1"])
def test_the_traps_are_live(trap, name):
    """Read by pickle itself they run, so that the test above can fail."""
    with warnings.catch_warnings(action="ignore"):
        pickle.loads(b"\x80\x02" + CODES[name] + b".")
    assert trap.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_own_files_with_a_trap(trap, tmp_path, zipped):
    for name, value in evil().items():
        saved = {"state_dict": {"w": torch.ones(1)}, "meta": {"x": value}}
        torch.save(saved, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(UserError, match=r"a\.pth"):
            read_weights(tmp_path / "a.pth")
        assert not trap.exists(), name


def test_the_message_names_what_was_asked_for(tmp_path):
    for place in places(CODES["system"]).values():
        for wrap in WRAPS.values():
            (tmp_path / "a.pth").write_bytes(wrap(place))
            with pytest.raises(UserError, match=r"asks for (posix|nt)\.system.*(?s:.)*state_dict"):
                read_weights(tmp_path / "a.pth")


def test_objects_arrays_are_refused_by_name(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"w": object_array(1)}, 4))
    with pytest.raises(UserError, match=r"dtype 'O8'.*Python objects is refused"):
        read_weights(tmp_path / "a.pkl")


def test_no_codec_but_latin1(tmp_path):
    code = b"c_codecs\nencode\n(Vx\nVrot13\ntR"
    (tmp_path / "a.pkl").write_bytes(in_pickle(places(code)["meta"]))
    with pytest.raises(UserError, match="encodes with 'rot13'"):
        read_weights(tmp_path / "a.pkl")


@pytest.mark.parametrize("name", ["mmengine.x run", "argparse Namespace", "__builtin__ getattr", "yacs.config CfgNode"])
@pytest.mark.parametrize("wrap", ["zip", "legacy"])
def test_a_placeholder_cannot_be_used(tmp_path, name, wrap):
    """It is constructed and given a state; calling, extending, filling or indexing it ends the reading."""
    get = b"c" + name.replace(" ", "\n").encode() + b"\n"
    weights = b"}(U\x05model}U\x01wctorch\ndevice\nU\x03cpu\x85RsU\x01x"
    for misuse in (b")R)R", b")\x81)R", b")RK\x01a", b")R(K\x01e", b"}b", b"K\x01a"):
        (tmp_path / "a.pth").write_bytes(WRAPS[wrap](weights + get + misuse + b"u"))
        with pytest.raises(UserError):
            read_weights(tmp_path / "a.pth")


def test_tensors_lose_what_a_file_hangs_on_them(tmp_path):
    weight = torch.ones(2)
    weight.detach = OrderedDict
    torch.save({"w": torch.nn.Parameter(weight), "v": weight}, tmp_path / "a.pth")
    for value in read_weights(tmp_path / "a.pth").tensors.values():
        assert value.__dict__ == {} and type(value) is torch.Tensor
