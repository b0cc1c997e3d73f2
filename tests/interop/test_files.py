"""Every kind of weights file is read back as it was written; every other file ends in one clear message."""

import hashlib
import io
import pickle
import tarfile
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from retinanet.errors import UserError
from retinanet.interop.files import read_weights

STATE = OrderedDict(
    [("conv.weight", torch.arange(24.0).reshape(2, 3, 2, 2) / 7), ("conv.bias", torch.tensor([-0.0, 1e-30]))]
)
STATE["bn.num_batches_tracked"] = torch.tensor(5)


def save(folder, value, **options):
    torch.save(value, folder / "a.bin", **options)
    return folder / "a.bin"


def numpy_state():
    return {key: value.numpy() for key, value in STATE.items()}


def dump(folder, value, protocol=2):
    (folder / "a.bin").write_bytes(pickle.dumps(value, protocol))
    return folder / "a.bin"


def same(found, expected=STATE):
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value)


def message(path):
    with pytest.raises(UserError) as caught:
        read_weights(path)
    assert caught.value.__cause__ is None
    return str(caught.value)


def test_files_of_one_and_two_bytes(tmp_path):
    for first in range(256):
        for content in (bytes([first]), bytes([first, 2])):
            (tmp_path / "a.bin").write_bytes(content)
            assert "a.bin is " in message(tmp_path / "a.bin")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files(tmp_path, zipped, protocol):
    path = save(tmp_path, STATE, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    found = read_weights(str(path))
    same(found.tensors)
    assert found.path == path and found.meta == {} and found.notes == ()
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_safetensors(tmp_path):
    save_file(dict(STATE), tmp_path / "a.pth", metadata={"source": "hub"})
    found = read_weights(tmp_path / "a.pth")
    same({key: found.tensors[key] for key in STATE})
    assert found.meta == {"source": "hub"}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_of_arrays(tmp_path, protocol):
    scalar = {"scale": np.float32(0.1), "names": {"a", "b"}, "empty": np.zeros(0, np.float32)}
    zoo = {"model": numpy_state(), "__author__": "Zoo", "matching_heuristics": True} | scalar
    found = read_weights(dump(tmp_path, zoo, protocol))
    same(found.tensors)
    assert found.meta == {"__author__": "Zoo", "matching_heuristics": True, "scale": np.float32(0.1).item()}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("dtype", [">f4", "<f8", ">i2", "u1", "?", "f2", "i8", "u2", ">u4"])
def test_arrays_of_any_number_and_order(tmp_path, dtype, protocol):
    value = np.asfortranarray(np.arange(12).reshape(3, 4) % 5).astype(dtype)
    found = read_weights(dump(tmp_path, OrderedDict(a=value, b=value[::2]), protocol)).tensors
    assert np.array_equal(found["a"].numpy(), value)
    assert np.array_equal(found["b"].numpy(), value[::2])


def test_noise_ends_in_a_message(tmp_path):
    """Bytes of good files overwritten at random: a state dict or a UserError, never another error."""
    random, refused = np.random.default_rng(0), 0
    plain = pickle.dumps({"model": numpy_state(), "epoch": [1, (2.0, None)], "s": np.float32(1)}, 4)
    for good in (plain, pickle.dumps(numpy_state(), 2), written(), written(_use_new_zipfile_serialization=False)):
        for _ in range(60):
            bad = np.frombuffer(good, np.uint8).copy()
            bad[random.integers(2, len(bad), 4)] = random.integers(0, 256, 4)
            (tmp_path / "a.bin").write_bytes(bad.tobytes())
            try:
                assert all(
                    isinstance(value, torch.Tensor) for value in read_weights(tmp_path / "a.bin").tensors.values()
                )
            except UserError:
                refused += 1
    assert 60 < refused < 240


def test_a_pickle_of_python_2(tmp_path):
    """Bytes were text then: the content of an array is a STRING, names lie in numpy.core and __builtin__."""
    body = (
        b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85"
        b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08"
        + np.array([1.5, -2.0], "<f4").tobytes()
        + b"tbs."
    )
    (tmp_path / "a.pkl").write_bytes(body)
    assert read_weights(tmp_path / "a.pkl").tensors["a"].tolist() == [1.5, -2.0]


@pytest.mark.parametrize("wrap", ["state_dict", "model_state_dict", "model", "module", "net", "ema"])
def test_the_state_dict_is_found(tmp_path, wrap):
    found = read_weights(save(tmp_path, {wrap: STATE, "epoch": 3, "loss": torch.tensor(1.0)}))
    same(found.tensors)
    assert found.meta == {"epoch": 3}
    deeper = read_weights(save(tmp_path, {"model": {wrap: {"module": STATE}, "classes": 80}, "classes": 2}))
    same(deeper.tensors)
    assert deeper.meta == {"classes": 2}


def test_of_two_the_first_is_taken_and_it_is_said(tmp_path):
    found = read_weights(save(tmp_path, {"ema": {"x": torch.ones(1)}, "model": STATE}))
    same(found.tensors)
    assert found.notes == (
        "the weights were taken from 'model'; left out: 'ema'. To convert one of these, save it in a file of its own",
    )


def test_meta_holds_plain_values_only(tmp_path):
    plain = {"classes": 80, "ratios": [0.5, 1.0, 2.0], "scales": [1.0], "backbone": "ResNet50FPN", "none": None}
    meta = {"CLASSES": ("cat", "dog"), "config": "x = 1", "loss": torch.ones(1), "mixed": [1, torch.ones(1)]}
    loop: list = []
    loop.append(loop)
    shared = ["x"] * 2
    for _ in range(60):  # 2 ** 60 leaves, were it walked to its end
        shared = [shared, shared]
    found = read_weights(save(tmp_path, {"state_dict": STATE, "meta": meta, "loop": loop, "bomb": shared} | plain))
    assert found.meta == plain | {"meta": {"CLASSES": ("cat", "dog"), "config": "x = 1"}}


def test_prefixes(tmp_path):
    wrapped = {f"module._orig_mod.model.{key}": value for key, value in STATE.items()}
    found = read_weights(save(tmp_path, wrapped))
    same(found.tensors)
    assert found.notes == tuple(
        f"the prefix {p!r} was removed from every key" for p in ("module.", "_orig_mod.", "model.")
    )
    partly = wrapped | {"other": torch.ones(1)}
    same(read_weights(save(tmp_path, partly)).tensors, partly)


def test_metrics_beside_a_lightning_model(tmp_path):
    saved = {f"model.{key}": value for key, value in STATE.items()} | {"iou_metric.seen": torch.ones(1)}
    found = read_weights(save(tmp_path, {"state_dict": saved, "hyper_parameters": {"config": {"nms": 0.05}}}))
    same(found.tensors, STATE | {"iou_metric.seen": torch.ones(1)})
    assert found.meta == {"hyper_parameters": {"config": {"nms": 0.05}}}
    clash = {"model.metric": torch.ones(1), "metric": torch.zeros(1)}
    same(read_weights(save(tmp_path, clash)).tensors, clash)


def test_half_precision_is_widened(tmp_path):
    state = {
        "a": torch.tensor([1.5]).half(),
        "b": torch.tensor([2.5]).bfloat16(),
        "c": torch.ones(1).double(),
        "d": torch.ones(1),
    }
    found = read_weights(save(tmp_path, state))
    same(found.tensors, {"a": torch.tensor([1.5]), "b": torch.tensor([2.5]), "c": torch.ones(1), "d": torch.ones(1)})
    assert found.notes == ("3 tensors of half or double precision were converted to float32",)


def test_parameters_and_other_values(tmp_path):
    state = {"a": torch.nn.Parameter(torch.ones(2)), "none": None, "_extra_state": {"x": 1}}
    found = read_weights(save(tmp_path, state))
    assert type(found.tensors["a"]) is torch.Tensor and not found.tensors["a"].requires_grad
    assert found.notes == ("values of the state dict that are no tensors were left out: none, _extra_state",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_module(tmp_path, zipped):
    for value in (torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1)), {"model": torch.nn.Linear(1, 1)}):
        path = save(tmp_path, value, _use_new_zipfile_serialization=zipped)
        lines = message(path).split("\n")
        assert "whole module" in lines[0] and "run code" in lines[0]
        load, write = (line.strip() for line in lines[1:3])
        assert load == 'import torch; checkpoint = torch.load("a.bin", map_location="cpu", weights_only=False)'
        assert write == 'torch.save(checkpoint.state_dict(), "a_state_dict.pth")'


def test_the_two_lines_work(tmp_path, monkeypatch):
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1))
    monkeypatch.chdir(save(tmp_path, module).parent)
    exec("\n".join(line.strip() for line in message("a.bin").split("\n")[1:3]), {})
    same(read_weights("a_state_dict.pth").tensors, module.state_dict())


BAD = {
    "nan": ({"x.w": torch.tensor([1.0, float("nan")])}, ["x.w", "NaN or infinity"]),
    "inf": ({"x.w": torch.tensor([float("-inf")])}, ["x.w", "NaN or infinity"]),
    "sparse": ({"x.w": torch.eye(2).to_sparse()}, ["x.w", "torch.sparse_coo", "dense"]),
    "expanded": ({"x.w": torch.ones(1).expand(1 << 45)}, ["x.w", "expanded over its memory", "clone"]),
    "complex": ({"x.w": torch.ones(2, dtype=torch.complex64)}, ["x.w", "complex64"]),
    "float8": ({"x.w": torch.ones(2).to(torch.float8_e4m3fn)}, ["x.w", "float8"]),
    "meta": ({"x.w": torch.ones(2, device="meta")}, ["x.w", "meta"]),
    "none": (
        {"epoch": 3, "weights": {"w": torch.ones(1)}},
        ["no state dict", "'epoch', 'weights'", "model_state_dict"],
    ),
    "empty dict": ({}, ["no state dict", "(none)"]),
    "list": ([torch.ones(1)], ["holds a list", "expected a state dict"]),
    "tensor": (torch.ones(1), ["holds a Tensor", "expected a state dict"]),
}


@pytest.mark.filterwarnings("ignore")  # torch will end quantised tensors
def test_a_quantised_tensor(tmp_path):
    path = save(tmp_path, {"x.w": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)})
    assert "x.w: a quantised tensor" in message(path)


@pytest.mark.parametrize("name", BAD)
def test_content_that_is_no_use(tmp_path, name):
    value, expected = BAD[name]
    found = message(save(tmp_path, value))
    assert all(part in found for part in [str(tmp_path / "a.bin"), *expected]), found


def archive(*members):
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as file:
        for member in members:
            file.writestr(member, "x")
    return buffer.getvalue()


def tar():
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w") as file:
        file.addfile(tarfile.TarInfo("storages"))
    return buffer.getvalue()


def written(**options):
    torch.save(STATE, buffer := io.BytesIO(), **options)
    return buffer.getvalue()


FILES = {
    "empty": (b"", ["is empty"]),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(100), ["keras-retinanet", "divided by 0.2", "'same' padding", "torchvision"]),
    "onnx": (b"\x08\x08\x12\x07pytorch\x1a\x052.0.0", ["ONNX", "exported from"]),
    "html": ("<!DOCTYPE html>\u00e9".encode() * 99, ["is text", "<!DOCTYPE html>", "download it again"]),
    "pickle of protocol 0": (b"cos\nsystem\n(S'x'\ntR.", ["is text"]),
    "binary": (b"\xff\xfe\xfd" * 200, ["no weights file that is known"]),
    "binary without zeros": (b"PNG\x89\xf5" * 200, ["no weights file that is known"]),
    "tar": (tar(), ["tar archive"]),
    "zip": (archive("readme.txt"), ["not one of torch.save", "readme.txt"]),
    "torchscript": (archive("a/data.pkl", "a/constants.pkl"), ["TorchScript", "torch.jit.load"]),
    "cut zip": (written()[:-300], ["damaged or cut short"]),
    "cut legacy": (written(_use_new_zipfile_serialization=False)[:-40], ["cut short"]),
    "cut legacy head": (written(_use_new_zipfile_serialization=False)[:90], ["cut short"]),
    "cut pickle": (pickle.dumps(numpy_state(), 2)[:-30], ["is a pickle that cannot be read"]),
    "cut safetensors": (b"\x40\0\0\0\0\0\0\0" + b'{"a":', ["damaged safetensors file"]),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_use(tmp_path, name):
    content, expected = FILES[name]
    (tmp_path / "a.bin").write_bytes(content)
    found = message(tmp_path / "a.bin")
    assert found.startswith(str(tmp_path / "a.bin"))
    assert all(part in found for part in expected), found


def test_no_file(tmp_path):
    assert message(tmp_path / "b.pth") == f"no such file: {tmp_path / 'b.pth'}"
    assert "is a folder" in message(tmp_path)
