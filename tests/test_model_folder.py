"""The model folder: what is in it, what an interrupted write leaves, and every way in which it can be damaged."""

import contextlib
import hashlib
import json
import math
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from retinanet import __version__, model_folder
from retinanet.anchors.lattice import LatticeCompat
from retinanet.errors import UserError
from retinanet.images.preprocess import PreprocessCompat
from retinanet.model.postprocess import PostprocessCompat
from retinanet.model_folder import read_config, read_model, read_spec, write_model, write_thresholds
from retinanet.plain import to_plain


@pytest.fixture
def folder(full_detector, tmp_path):
    full_detector.save(tmp_path / "model")
    return tmp_path / "model"


def refused(folder, match):
    with pytest.raises(UserError, match=match):
        read_model(folder)


def change_config(folder, **changes):
    """Rewrite entries of config.json, or remove them; ``architecture__depth`` is an entry of ``architecture``."""
    config = json.loads((folder / "config.json").read_text())
    for name, value in changes.items():
        *path, last = name.split("__")
        place = config
        for key in path:
            place = place[key]
        if value is None:
            del place[last]
        else:
            place[last] = value
    (folder / "config.json").write_text(json.dumps(config))


def test_files_are_plain(full_detector, folder):
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    tensors = load_file(folder / "model.safetensors")
    state = full_detector.net.state_dict()
    assert tensors.keys() == state.keys() and all(torch.equal(tensors[key], state[key]) for key in state)
    config = json.loads((folder / "config.json").read_bytes())
    assert config["format"] == 3 and config["library_version"] == __version__
    assert config["weights_sha256"] == [hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()]
    assert {**full_detector.spec.to_dict(), "weights_sha256": config["weights_sha256"]} == config
    assert read_config(folder) == config and read_spec(folder) == full_detector.spec


def test_thresholds_are_replaced_and_nothing_else(folder):
    change_config(folder, note="kept", library_version="0.0.1")
    config, tensors = read_config(folder), (folder / "model.safetensors").read_bytes()
    write_thresholds(folder, {"Ameise": 1, "cow 3": 0.1})
    assert read_config(folder) == {**config, "thresholds": {"Ameise": 1.0, "cow 3": 0.1}}
    assert read_spec(folder).thresholds == {"Ameise": 1.0, "cow 3": 0.1}
    write_thresholds(str(folder), {})
    assert read_config(folder) == {key: value for key, value in config.items() if key != "thresholds"}
    assert read_spec(folder).thresholds == {} and read_model(folder)[0].scale == 0.8
    assert (folder / "model.safetensors").read_bytes() == tensors
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"Biene": 0.5}, "threshold for 'Biene'; the classes of the model are Ameise, пчела, cow 3"),
        ({"Ameise": 1.5}, "threshold of 'Ameise' is 1.5, expected a number from 0 to 1"),
        ({"Ameise": float("nan")}, "threshold of 'Ameise' is nan"),
        ({"Ameise": True}, "threshold of 'Ameise' is True"),
        ({"Ameise": "0.5"}, "threshold of 'Ameise' is '0.5'"),
    ],
)
def test_thresholds_that_are_none(folder, values, match):
    before = (folder / "config.json").read_bytes()
    with pytest.raises(UserError, match=match):
        write_thresholds(folder, values)
    assert (folder / "config.json").read_bytes() == before
    change_config(folder, thresholds=values)
    refused(folder, rf"config\.json.*{match}")


def test_a_failed_save_leaves_the_old_model(full_detector, folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(model_folder, "save_file", full)
    message = r"model\.safetensors cannot be written \(No space left on device\)\. It takes about .* MB\. The disk has"
    with pytest.raises(UserError, match=message):
        full_detector.with_spec(metrics={}).save(folder)
    assert all((folder / name).read_bytes() == content for name, content in before.items())
    monkeypatch.undo()
    full_detector.with_spec(metrics={"AP": 0.6}).save(folder)
    assert read_spec(folder).metrics == {"AP": 0.6} and len(list(folder.iterdir())) == 3


def test_no_model(tmp_path):
    refused(tmp_path / "nowhere", r"no model in .*nowhere: expected a folder with config\.json and model\.safetensors")
    refused(tmp_path, "no model in")


def test_an_exported_model(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"")
    for place in (tmp_path, tmp_path / "model.onnx"):
        refused(
            place, r"is an exported model; it can predict and be evaluated\. For this command give the model folder"
        )


def test_a_pickle(tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "model.pt")
    refused(tmp_path / "model.pt", r"model\.pt is a file; a model is a folder.*: retinanet convert .*model\.pt FOLDER")


def test_a_pickle_in_the_folder(folder):
    torch.save({"weight": torch.zeros(1)}, folder / "model.safetensors")
    refused(folder, r"model\.safetensors is damaged or was replaced")
    change_config(folder, weights_sha256=None)
    refused(folder, r"model\.safetensors is damaged or not a safetensors file")


@pytest.mark.parametrize("kept", [0, 5, 0.3, 0.999])
def test_truncated_weights(folder, kept):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(kept if kept >= 1 else len(content) * kept)])
    refused(folder, r"model\.safetensors is damaged or was replaced: .*Copy both files again")
    change_config(folder, weights_sha256=None)
    refused(folder, r"model\.safetensors is damaged or not a safetensors file \(.*Copy it again")


def test_every_flipped_bit_is_noticed(folder):
    path, generator = folder / "model.safetensors", random.Random(0)
    content = path.read_bytes()
    for _ in range(30):
        changed = bytearray(content)
        changed[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(changed)
        refused(folder, r"model\.safetensors is damaged or was replaced: .*recorded.*delete the entry weights_sha256")
    path.write_bytes(content)
    read_model(folder)


def test_weights_replaced_on_purpose(folder):
    tensors = {key: value + 1 for key, value in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    refused(folder, "was replaced")
    change_config(folder, weights_sha256=None)  # as in a folder that was written before there were digests
    loaded = read_model(folder)[1].state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in tensors.items())


@pytest.mark.parametrize("value", ["x", 3, {}, {"a": 1}, True])
def test_digests_that_are_none(folder, value):
    change_config(folder, weights_sha256=value)
    refused(folder, r"config\.json is not a model's configuration: weights_sha256 is not a list of digests")


@pytest.mark.parametrize("value", [[], [None], [[1]], [{}], ["x"], [1e400]])
def test_digests_of_something_else(folder, value):
    change_config(folder, weights_sha256=value)
    refused(folder, r"model\.safetensors is damaged or was replaced")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite(full_detector, tmp_path, value):
    broken = {key: tensor.clone() for key, tensor in full_detector.net.state_dict().items()}
    broken["fpn.output.p3.weight"].view(-1)[5] = value
    full_detector.save(tmp_path, broken)
    refused(tmp_path, r"model\.safetensors: NaN or infinity in 1 tensors: fpn\.output\.p3\.weight\. Take an")


class Killed(BaseException):
    """As if the process had been killed: nothing of ours catches it."""


@pytest.mark.parametrize("digest", [True, False])
@pytest.mark.parametrize("first", range(4))
@pytest.mark.parametrize("second", range(4))
def test_a_save_killed_between_two_files(full_detector, folder, monkeypatch, digest, first, second):
    """Twice, before any of the replacements of a file or after them all: the folder has the old or the new weights."""
    if not digest:
        change_config(folder, weights_sha256=None)
    state, key = full_detector.net.state_dict(), "fpn.output.p3.bias"
    possible = [state[key]]
    for kill_at in (first, second):
        done = []

        def replace_or_die(source, target, kill_at=kill_at, done=done, original=os.replace):
            if len(done) == kill_at:
                raise Killed
            done.append(original(source, target))

        possible.append(possible[-1] + 1)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace_or_die)
            with contextlib.suppress(Killed):
                full_detector.save(folder, {**state, key: possible[-1]})
        loaded = read_model(folder)[1].state_dict()[key]
        assert any(torch.equal(loaded, one) for one in possible)
    full_detector.save(folder)
    assert len(read_config(folder)["weights_sha256"]) == 1 and len(list(folder.iterdir())) == 3
    assert torch.equal(read_model(folder)[1].state_dict()[key], possible[0])


def test_a_model_replaced_while_it_is_read(full_detector, folder, monkeypatch):
    """The configuration is of before, the weights of after."""

    def hash_later(path, original=model_folder.file_sha256):
        monkeypatch.undo()
        full_detector.save(folder, {key: value + 1 for key, value in full_detector.net.state_dict().items()})
        return original(path)

    monkeypatch.setattr(model_folder, "file_sha256", hash_later)
    before = read_config(folder)["weights_sha256"]
    read_model(folder)
    assert read_config(folder)["weights_sha256"] != before


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, r"the model has no weights: .*model\.safetensors is missing")


@pytest.mark.parametrize(
    ("denied", "match"),
    [
        ("config.json", r"config\.json cannot be read \(Permission denied\)\. chmod \+r it, or copy it"),
        ("model.safetensors", r"model\.safetensors cannot be read.* chmod \+r .*model\.safetensors"),
    ],
)
@pytest.mark.parametrize("digest", [True, False])
def test_files_that_may_not_be_read(folder, monkeypatch, denied, match, digest):
    """As for another user's file; simulated, because a superuser may read everything."""
    if not digest:
        change_config(folder, weights_sha256=None)

    def deny(original):
        def call(path, *args, **options):
            if Path(path).name == denied:
                raise PermissionError(13, "Permission denied", str(path))
            return original(path, *args, **options)

        return call

    monkeypatch.setattr(Path, "read_text", deny(Path.read_text))
    monkeypatch.setattr(model_folder, "file_sha256", deny(model_folder.file_sha256))
    monkeypatch.setattr(model_folder, "load_file", deny(model_folder.load_file))
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != denied)
    refused(folder, match)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="a superuser may read everything")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "."])
def test_permissions(folder, name):
    (folder / name).chmod(0)
    try:
        refused(folder, r"cannot be read|permission")
    finally:
        (folder / name).chmod(0o700)


def test_other_tensors(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change_config(folder, weights_sha256=None)

    def with_tensors(changed, match):
        save_file(changed, path)
        refused(folder, r"model\.safetensors does not fit its config\.json, " + match)

    key = "fpn.output.p3.bias"
    with_tensors({k: v for k, v in tensors.items() if k != key}, rf"1 tensors are wrong: {key}: missing")
    with_tensors(tensors | {"spare": torch.zeros(2)}, "1 tensors are wrong: spare: no place in the network")
    with_tensors(tensors | {key: torch.zeros(5)}, rf"1 tensors are wrong: {key}: shape \(5,\), expected \(64,\)")
    with_tensors({"spare": torch.zeros(2)}, rf"{len(tensors) + 1} tensors are wrong: ")


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"format": 1,', b"\xff\xfe{}", b"not json", b"[" * 100_000, b'{"format": 1' + b"0" * 9999]
)
def test_broken_json(folder, content):
    (folder / "config.json").write_bytes(content)
    refused(folder, r"config\.json is not valid JSON")


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"format": "1"}', '{"format": null}', '{"model_type": "detr"}'])
def test_json_of_something_else(folder, content):
    (folder / "config.json").write_text(content)
    refused(folder, r"config\.json is not a model's configuration: it has no format version")


@pytest.mark.parametrize(("rounded", "rounding"), [(True, "corners"), (False, "none")])
def test_format_1(full_detector, folder, rounded, rounding):
    """The fields that a folder of version 0.1.0 has, and no others."""
    config, spec = json.loads((folder / "config.json").read_text()), full_detector.spec
    later = {
        "architecture": ("stride_in_1x1", "norm_eps"),
        "preprocess": ("compat",),
        "postprocess": ("compat",),
    }
    for part, names in later.items():
        for name in names:
            del config[part][name]
    del config["architecture"]["anchors"]["compat"]
    del config["architecture"]["coder"]["clamp_below"]
    config["architecture"]["anchors"]["rounded"] = rounded
    (folder / "config.json").write_text(json.dumps(config | {"format": 1}))
    loaded, net = read_model(folder)
    anchors = replace(spec.architecture.anchors, compat=LatticeCompat(rounding=rounding))
    coder = replace(spec.architecture.coder, clamp_below=False)
    old = replace(spec.architecture, anchors=anchors, coder=coder, stride_in_1x1=False, norm_eps=None)
    assert loaded.architecture == old and net.lattice == anchors
    assert loaded.preprocess == replace(spec.preprocess, compat=PreprocessCompat())
    assert loaded.postprocess == replace(spec.postprocess, compat=PostprocessCompat())
    state = full_detector.net.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    write_model(folder, loaded, net.state_dict())
    saved = read_config(folder)
    assert saved["format"] == 3 and saved["architecture"] == json.loads(json.dumps(to_plain(old)))


@pytest.mark.parametrize(("eps", "expected"), [(None, 1e-5), (0.0, 0.0), (0.25, 0.25)])
def test_norm_eps_is_null_or_a_number(full_detector, tmp_path, eps, expected):
    full_detector.with_spec(architecture=replace(full_detector.spec.architecture, norm_eps=eps)).save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architecture"]["norm_eps"] == eps
    loaded, net = read_model(tmp_path)
    assert loaded.architecture.norm_eps == eps
    norms = [module for module in net.backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert {norm.eps for norm in norms} == {expected}


def test_a_newer_format(folder):
    change_config(folder, format=4, library_version="7.8.9")
    refused(folder, r"written by retinanet 7\.8\.9 in format 4; this is .* reads up to format 3\. Upgrade the package")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"postprocess__score": "high"}, "postprocess.score: expected a number, got 'high'"),
        ({"preprocess": None}, "it has no preprocess"),
        ({"class_names": []}, "class_names is not a list of names"),
        ({"architecture__backbone": "resnet5O"}, "unknown backbone 'resnet5O'"),
        ({"architecture__backbone": "vit_tiny_patch16_224"}, "does not yield features at strides 8, 16 and 32|built"),
        ({"architecture__frozen_stages": 10**30}, "frozen_stages is 0 to .* for test_resnet, got 1000"),
        ({"architecture__frozen_stages": -1}, "frozen_stages is 0 to .* for test_resnet, got -1"),
        ({"architecture__norm_eps": 7}, "norm_eps is a number of at least 0 and below 1, or null, got 7"),
        ({"architecture__prior": 1}, "prior is a probability between 0 and 1, got 1"),
        ({"architecture__anchors__strides": [8, 16, 32, 64, 10**30]}, "the anchors lie at strides .*, the pyramid's"),
        ({"architecture__channels": 4096, "architecture__depth": 32}, "would have more than 1,000,000,000 weights"),
    ],
)
def test_other_configurations(folder, changes, match):
    change_config(folder, **changes)
    refused(folder, rf"config\.json.*({match})")


HOSTILE = """
import json, resource, sys
from pathlib import Path
from retinanet.errors import UserError
from retinanet.model_folder import read_model

folder = Path(sys.argv[1])
read_model(folder)
text = (folder / "config.json").read_text()
limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + 3 * 2**30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
values = (10**9, 4096, 300, [1] * 10**5)
refused = 0
for name in json.loads(text)["architecture"]:
    for value in values:
        for nested in (None, *json.loads(text)["architecture"]["anchors"]) if name == "anchors" else (None,):
            config = json.loads(text)
            if nested is None:
                config["architecture"][name] = value
            else:
                config["architecture"][name][nested] = value
            (folder / "config.json").write_text(json.dumps(config))
            try:
                read_model(folder)
            except UserError:
                refused += 1
print(refused)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="the limit on memory is set from /proc")
def test_no_architecture_fills_the_memory(folder):
    """Each entry replaced by absurd values, in a process that may take 3 GB more than an imported torch."""
    code = [sys.executable, "-c", HOSTILE, str(folder)]
    done = subprocess.run(code, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50


def test_another_number_of_classes(folder):
    change_config(folder, class_names=["one", "two"], thresholds=None)
    refused(folder, r"2 tensors are wrong: heads\.cls\.output\.bias: shape \(6,\), expected \(4,\)")
