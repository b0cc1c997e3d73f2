"""Small files that ask for much: each is refused, or read in a moment, before anything is allocated for it.

Nothing here asserts a time; one that is followed to its end would not end.
"""

import io
import json
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch

from retinanet.errors import UserError
from retinanet.interop.files import read_weights

CONTENT = struct.pack("<2f", 1, 2)
ARRAY = pickle.dumps(np.ones(2, np.float32), 2)[2:-1]


def chain(start, link, then=b""):
    """Code of a list: start, sixty items that each hold the one before as often as link says, and whatever follows."""
    items = b"".join(link.replace(b"PREV", b"h%c" % number) + b"q%c" % (number + 1) for number in range(60))
    return b"](" + start + b"q\x00" + items + then + b"e"


def pairs(then=b""):
    """Code of t = (t, t), sixty times: a value with 2**60 leaves."""
    return chain(b"K\x01", b"PREVPREV\x86", then)


def shared_dicts(keys):
    """Code of dicts whose every key leads to the dict before: keys ** 60 paths in few bytes."""
    return chain(b"}", b"}(" + b"".join(b"M" + struct.pack("<H", key) + b"PREV" for key in range(keys)) + b"u")


def in_pickle(value, tensor=ARRAY):
    """A pickle of weights of numpy, and the value beside them."""
    return b"\x80\x04}(U\x05model}U\x01w" + tensor + b"sU\x01x" + value + b"u."


def in_zip(value, tensor=None, data=CONTENT, method=zipfile.ZIP_STORED, count=2):
    """The same of torch.save."""
    body = (tensor or view(count)) + b"sU\x01x"
    code = b"\x80\x02}(U\x05model}U\x01w" + body + value + b"u."
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", method) as file:
        for name, content in (("data.pkl", code), ("byteorder", b"little"), ("data/0", data)):
            file.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def number(value):
    """Code of a whole number."""
    return b"\x8a\x09" + value.to_bytes(9, "little")


def view(count, offset=0, shape=(2,), stride=(1,)):
    """Code of a tensor of torch.save over a storage that is said to have so many elements."""
    code = b"ctorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\nFloatStorage\nU\x010U\x03cpu" + number(count)
    code += b"tQ" + number(offset)
    for numbers in (shape, stride):
        code += b"(" + b"".join(map(number, numbers)) + b"t"
    return code + b"\x89ccollections\nOrderedDict\n)RtR"


def in_legacy(count):
    """As torch saved before 1.6, over a storage that is said to have so many elements."""
    torch.save({}, buffer := io.BytesIO(), _use_new_zipfile_serialization=False)
    start, _ = buffer.getvalue().rsplit(b"\x80\x02}q\x00.", 1)
    return start + b"\x80\x02}U\x01w" + view(count) + b"s." + b"\x80\x02]U\x010a." + struct.pack("<q2f", count, 1, 2)


def safetensors(shape, end):
    """A file of one tensor of that shape, said to end at that byte; there are 8 bytes."""
    header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
    return struct.pack("<Q", len(header)) + header + CONTENT


LARGE = 1 << 40
STORAGE = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x02tQ"
CHANGE = b"N}U\x04pathU\x0b/etc/passwds\x86b"  # pickle would set attributes, slots as well
WORK = "it would take a long time or much memory"
REFUSED = {
    "pairs": (in_pickle(pairs()), WORK),
    "pairs as a key": (in_pickle(pairs(b"}h<K\x01s")), WORK),
    "pairs in a set": (in_pickle(pairs(b"\x8f(h<\x90")), WORK),
    "a tuple in a tuple, 10,000 times": (in_pickle(b"})" + b"\x85" * 10_000 + b"K\x01s"), WORK),
    "frame of 2**60 bytes": (in_pickle(b"\x95" + struct.pack("<Q", 1 << 60)), WORK),
    "memo of 4 billion entries": (in_pickle(b"K\x01r\xff\xff\xff\xff"), "under the number 4294967295"),
    "bytes of 2**60": (in_pickle(b"\x8e" + struct.pack("<Q", 1 << 60)), "cannot be read"),
    "bytearray of 2**60": (in_pickle(b"\x96" + struct.pack("<Q", 1 << 60)), "cannot be read"),
    "array of 2**40": (in_pickle(b"K\x01", ARRAY.replace(b"K\x02\x85", number(LARGE) + b"\x85")), "8 bytes of content"),
    "torch: pairs": (in_zip(pairs()), WORK),
    "torch: pairs as a key": (in_zip(pairs(b"}h<K\x01s")), WORK),
    "torch: pairs counted": (in_zip(pairs(b"ccollections\nCounter\nh<\x85\x85R")), WORK),
    "torch: bytes multiplied": (in_zip(b"c_codecs\nencode\nU\x01xU\x03hex\x86R"), "encodes with 'hex'"),
    "torch: storage of 2**40": (in_zip(b"K\x01", count=LARGE), "said to have 4398046511104 bytes and has 8"),
    "torch: 8 bytes taken for 12": (in_zip(b"K\x01", count=3), "said to have 12 bytes and has 8"),
    "torch: tensor of 2**40": (in_zip(b"K\x01", view(2, shape=(LARGE,))), "larger than its storage"),
    "torch: tensor expanded to 2**40": (
        in_zip(b"K\x01", view(2, shape=(LARGE,), stride=(0,))),
        "expanded over its memory",
    ),
    "torch: behind its storage": (in_zip(b"K\x01", view(2, offset=1)), "larger than its storage"),
    "torch: stride of 2**40": (in_zip(b"K\x01", view(2, stride=(LARGE,))), "larger than its storage"),
    "torch: a storage that is changed": (in_zip(STORAGE + CHANGE), "sets the state"),
    "torch: a tensor that is changed": (in_zip(view(2) + CHANGE), "sets the state"),
    "torch: sizes whose product is endless": (
        in_zip(b"K\x01", view(2, shape=(LARGE,) * 1000, stride=(1,) * 1000)),
        "not made of whole numbers",
    ),
    "torch: key of a storage with 2**60 leaves": (
        in_zip(chain(b"]", b"](PREVPREVe", STORAGE.replace(b"U\x010", b"h<"))),
        "storage of another kind",
    ),
    "array whose dtype has 2**60 leaves": (
        in_pickle(chain(b"]", b"](PREVPREVe", b"cnumpy\ndtype\nh<\x85R")),
        "dtype 'list'",
    ),
    "torch: compressed": (in_zip(b"K\x01", data=bytes(1 << 20), method=zipfile.ZIP_DEFLATED), "is compressed"),
    "legacy: storage of 2**40": (in_legacy(LARGE), "another size than expected"),
    "legacy: storage of 3": (in_legacy(3), "another size than expected"),
    "safetensors: 2**40 elements": (safetensors([LARGE], 4 * LARGE), "damaged safetensors file"),
    "safetensors: more elements than bytes": (safetensors([LARGE, LARGE], 8), "damaged safetensors file"),
    "safetensors: 0 elements beside 2**40": (safetensors([LARGE, LARGE, LARGE, 0], 8), "damaged safetensors file"),
}
READ = {
    "a list in a list, twice each": in_pickle(chain(b"]", b"](PREVPREVe")),
    "dicts that share the one before": in_pickle(shared_dicts(1000)),
    "torch: dicts that share the one before": in_zip(shared_dicts(1000)),
    "torch: a list that holds itself": in_zip(b"]q\x00h\x00a"),
    "wrappers that share the one before": in_pickle(chain(b"}", b"}(U\x05modelPREVU\x03emaPREVU\x03netPREVu")),
    "a number of 100,000 digits": in_pickle(b"\x8b" + struct.pack("<i", 50_000) + b"\x01" * 50_000),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path, name):
    content, why = REFUSED[name]
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_weights(tmp_path / "a.bin")
    assert str(tmp_path / "a.bin") in str(caught.value) and why in str(caught.value)


@pytest.mark.parametrize("name", READ)
def test_read(tmp_path, name):
    """What is no use is left out, however often it is referred to."""
    (tmp_path / "a.bin").write_bytes(READ[name])
    found = read_weights(tmp_path / "a.bin")
    assert found.tensors["w"].shape == (2,)
    assert len(pickle.dumps(found.meta)) < 1_000_000


def test_the_files_are_good_without_their_trap(tmp_path):
    """So that the first test can fail."""
    for content in (in_pickle(b"K\x01"), in_zip(b"K\x01"), in_zip(b"K\x01", count=1, tensor=view(2)), in_legacy(2)):
        (tmp_path / "a.bin").write_bytes(content)
        assert read_weights(tmp_path / "a.bin").tensors["w"].tolist() in ([1, 1], [1, 2])


def test_many_tensors_over_one_memory(tmp_path):
    """Each could be read alone; all together take a hundred times what the file does."""
    weight = torch.ones(10_000)
    torch.save({f"w{number}": weight for number in range(16)}, tmp_path / "few.pth")
    assert len(read_weights(tmp_path / "few.pth").tensors) == 16
    torch.save({f"w{number}": weight for number in range(100)}, tmp_path / "many.pth")
    with pytest.raises(UserError, match="share memory, and reading them would take much more"):
        read_weights(tmp_path / "many.pth")
