import contextlib
import hashlib
import json
import math
import os
import random
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from retinanet import __version__
from retinanet import detector as checkpoint
from retinanet.anchors.coding import BoxCoder
from retinanet.anchors.lattice import AnchorLattice, LatticeCompat
from retinanet.detector import Detector, read_config, save_detector, save_thresholds
from retinanet.errors import UserError
from retinanet.images.preprocess import Preprocess, PreprocessCompat
from retinanet.model.postprocess import Postprocess, PostprocessCompat
from retinanet.model.presets import Architecture
from retinanet.types import Batch, Sample, Target

# Nothing here has its default, so that nothing can be lost without a difference.
ARCHITECTURE = Architecture(
    backbone="test_resnet",
    norm="batch",
    frozen_stages=1,
    stride_in_1x1=True,
    norm_eps=1e-3,
    channels=64,
    depth=1,
    head_norm="group",
    p6_from="P5",
    relu_before_p7=False,
    prior=0.3,
    anchors=AnchorLattice(
        sizes=(16, 32, 64, 128, 256.5),
        ratios=(0.5, 2.0),
        scales=(1.0,),
        offset=0.0,
        compat=LatticeCompat(rounding="corners", inclusive=True, floor_strides=True),
    ),
    coder=BoxCoder(std=(0.1, 0.1, 0.2, 0.2), clamp=3.0, clamp_below=True),
)
PREPROCESS = Preprocess(
    short=64,
    long=96,
    multiple=64,
    mean=(0.1, 0.2, 0.3),
    std=(0.4, 0.5, 0.6),
    compat=PreprocessCompat(margin=1, divisor=128.0, channels="BGR", rounding="floor", resampling="plain"),
)
POSTPROCESS = Postprocess(
    score=0.25,
    topk=50,
    nms=0.4,
    max_detections=20,
    class_agnostic=True,
    compat=PostprocessCompat(clip="half", keep_empty=True),
)
NAMES = ("Ameise", "пчела", "cow 3")
THRESHOLDS = {"пчела": 0.3125, "cow 3": 0.7}


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    net = ARCHITECTURE.build(3)
    for module in net.modules():  # statistics and affine that are not those of a new net
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight.data, 0.5, 1.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            module.num_batches_tracked.fill_(7)
    for tower in (net.heads.cls, net.heads.box):
        torch.nn.init.normal_(tower.output.weight, std=0.5)
    return Detector(net.eval(), ARCHITECTURE, PREPROCESS, POSTPROCESS, NAMES, {"AP": 0.58, "of": "val"}, THRESHOLDS)


@pytest.fixture
def folder(detector, tmp_path):
    save_detector(tmp_path / "model", detector)
    return tmp_path / "model"


def refused(folder, match):
    with pytest.raises(UserError, match=match):
        Detector.load(folder)


def change_config(folder, **changes):
    """Rewrite fields of config.json; ``architecture__depth`` is a field of its architecture."""
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


def test_nothing_has_its_default():
    def defaults(value, kind):
        for item in fields(value):
            here, usual = getattr(value, item.name), getattr(kind, item.name)
            if is_dataclass(here):
                yield from defaults(here, usual)
            elif here == usual:
                yield item.name

    pairs = ((ARCHITECTURE, Architecture()), (PREPROCESS, Preprocess()), (POSTPROCESS, Postprocess()))
    # the pyramid has these strides and no others; an input settles the spacing, and a model file has none
    assert [name for value, usual in pairs for name in defaults(value, usual)] == ["strides", "spacing"]


@torch.no_grad()
def test_round_trip(detector, folder):
    loaded = Detector.load(str(folder))
    assert replace(loaded, net=detector.net) == detector
    assert hash(loaded.spec.architecture) == hash(detector.spec.architecture)  # tuples have not become lists
    mine, theirs = detector.net.state_dict(), loaded.net.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert not any(module.training for module in loaded.net.modules())
    assert loaded.net.lattice == ARCHITECTURE.anchors and loaded.net.coder == ARCHITECTURE.coder
    samples = tuple(
        Sample(Path(), i, size, Target.empty(), torch.zeros(0)) for i, size in enumerate([(128, 128), (30, 48)])
    )
    images, sizes = PREPROCESS.pad(
        [torch.randint(0, 256, (3, *PREPROCESS.size(*sample.size)), dtype=torch.uint8) for sample in samples]
    )
    batch = Batch(images, sizes, tuple(sample.target for sample in samples), samples)
    for one, other in zip(
        detector.detections(detector.raw(batch), batch), loaded.detections(loaded.raw(batch), batch), strict=True
    ):
        assert len(one) and torch.equal(one.boxes, other.boxes) and torch.equal(one.scores, other.scores)
        assert torch.equal(one.labels, other.labels) and one.class_names == other.class_names == NAMES


@torch.no_grad()
def test_detections_are_in_original_pixels(detector):
    """The same pixels said to come from an image of twice and thrice the sides: boxes grow along."""
    images, sizes = PREPROCESS.pad([torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)])
    found = []
    for size in ((64, 96), (128, 288)):
        sample = Sample(Path(), 1, size, Target.empty(), torch.zeros(0))
        batch = Batch(images, sizes, (sample.target,), (sample,))
        found.append(detector.detections(detector.raw(batch), batch)[0])
    assert len(found[0])
    torch.testing.assert_close(found[1].boxes, found[0].boxes * torch.tensor([3.0, 2, 3, 2]))


def test_files_are_plain(detector, folder):
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    tensors = load_file(folder / "model.safetensors")
    state = detector.net.state_dict()
    assert tensors.keys() == state.keys() and all(torch.equal(tensors[key], state[key]) for key in state)
    config = json.loads((folder / "config.json").read_bytes())
    assert config["format"] == 2 and config["library_version"] == __version__
    assert config["class_names"] == list(NAMES) and config["metrics"] == {"AP": 0.58, "of": "val"}
    assert config["architecture"]["anchors"]["sizes"] == [16, 32, 64, 128, 256.5]
    assert config["thresholds"] == THRESHOLDS
    assert config["weights_sha256"] == [hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()]
    assert read_config(folder) == config


def test_thresholds_are_optional(detector, folder, tmp_path):
    change_config(folder, thresholds=None)  # as written before there were any
    assert Detector.load(folder).thresholds == {}
    save_detector(tmp_path / "none", replace(detector, thresholds={}))
    assert "thresholds" not in read_config(tmp_path / "none")


def test_thresholds_are_replaced_and_nothing_else(folder):
    config, tensors = read_config(folder), (folder / "model.safetensors").read_bytes()
    save_thresholds(folder, {"Ameise": 1, "cow 3": 0.1})
    assert read_config(folder) == {**config, "thresholds": {"Ameise": 1.0, "cow 3": 0.1}}
    assert Detector.load(folder).thresholds == {"Ameise": 1.0, "cow 3": 0.1}
    save_thresholds(str(folder), {})
    assert read_config(folder) == {key: value for key, value in config.items() if key != "thresholds"}
    assert (folder / "model.safetensors").read_bytes() == tensors
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


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
        save_thresholds(folder, values)
    assert (folder / "config.json").read_bytes() == before
    change_config(folder, thresholds=values)
    refused(folder, rf"config\.json.*{match}")


def test_other_weights_in_place_of_the_nets(detector, tmp_path):
    """As a moving average of the weights is saved; in any memory layout."""
    average = {key: value + 1 for key, value in detector.net.state_dict().items()}
    average["fpn.output.p3.weight"] = average["fpn.output.p3.weight"].contiguous(memory_format=torch.channels_last)
    save_detector(tmp_path, detector, average)
    loaded = Detector.load(tmp_path).net.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in average.items())


def test_a_failed_save_leaves_the_old_model(detector, folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    message = r"model\.safetensors cannot be written \(No space left on device\)\. It takes about .* MB\. The disk has"
    with pytest.raises(UserError, match=message):
        save_detector(folder, replace(detector, metrics={}))
    assert all((folder / name).read_bytes() == content for name, content in before.items())
    monkeypatch.undo()
    save_detector(folder, replace(detector, metrics={"AP": 0.6}))
    assert Detector.load(folder).metrics == {"AP": 0.6} and len(list(folder.iterdir())) == 2


def test_no_model(tmp_path):
    refused(tmp_path / "nowhere", r"no model in .*nowhere: expected a folder with config\.json and model\.safetensors")
    refused(tmp_path, "no model in")


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
    Detector.load(folder)


def test_weights_replaced_on_purpose(detector, folder):
    tensors = {key: value + 1 for key, value in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    refused(folder, "was replaced")
    change_config(folder, weights_sha256=None)  # as in a folder that was written before there were digests
    loaded = Detector.load(folder).net.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in tensors.items())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite(detector, tmp_path, value):
    broken = {key: tensor.clone() for key, tensor in detector.net.state_dict().items()}
    broken["fpn.output.p3.weight"].view(-1)[5] = value
    save_detector(tmp_path, detector, broken)
    refused(tmp_path, r"model\.safetensors: NaN or infinity in 1 tensors: fpn\.output\.p3\.weight\. Take an")


class Killed(BaseException):
    """As if the process had been killed: nothing of ours catches it."""


@pytest.mark.parametrize("digest", [True, False])
@pytest.mark.parametrize("first", range(4))
@pytest.mark.parametrize("second", range(4))
def test_a_save_killed_between_two_files(detector, folder, monkeypatch, digest, first, second):
    """Twice, before any of the replacements of a file or after them all: the folder has the old or the new weights."""
    if not digest:
        change_config(folder, weights_sha256=None)
    state, key = detector.net.state_dict(), "fpn.output.p3.bias"
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
                save_detector(folder, detector, {**state, key: possible[-1]})
        loaded = Detector.load(folder).net.state_dict()[key]
        assert any(torch.equal(loaded, one) for one in possible)
    save_detector(folder, detector)
    assert len(read_config(folder)["weights_sha256"]) == 1 and len(list(folder.iterdir())) == 2
    assert torch.equal(Detector.load(folder).net.state_dict()[key], possible[0])


def test_a_model_replaced_while_it_is_read(detector, folder, monkeypatch):
    """The configuration is of before, the weights of after."""

    def hash_later(path, original=checkpoint.file_sha256):
        monkeypatch.undo()
        save_detector(folder, detector, {key: value + 1 for key, value in detector.net.state_dict().items()})
        return original(path)

    monkeypatch.setattr(checkpoint, "file_sha256", hash_later)
    before = read_config(folder)["weights_sha256"]
    Detector.load(folder)
    assert read_config(folder)["weights_sha256"] != before


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, r"the model has no weights: .*model\.safetensors is missing")


def test_other_tensors(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change_config(folder, weights_sha256=None)

    def with_tensors(changed, match):
        save_file(changed, path)
        refused(folder, r"model\.safetensors does not fit its config\.json, " + match)

    key = "fpn.output.p3.bias"
    with_tensors({k: v for k, v in tensors.items() if k != key}, rf"1 tensors are wrong: {key}: missing")
    with_tensors(tensors | {"spare": torch.zeros(2)}, "1 tensors are wrong: spare: not part of the model")
    with_tensors(tensors | {key: torch.zeros(5)}, rf"1 tensors are wrong: {key}: shape \(5,\), expected \(64,\)")
    with_tensors({"spare": torch.zeros(2)}, rf"{len(tensors) + 1} tensors are wrong: ")


@pytest.mark.parametrize("content", [b"", b"{", b'{"format": 1,', b"\xff\xfe{}", b"not json"])
def test_broken_json(folder, content):
    (folder / "config.json").write_bytes(content)
    refused(folder, r"config\.json is not valid JSON")


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"format": "1"}', '{"format": null}', '{"model_type": "detr"}'])
def test_json_of_something_else(folder, content):
    (folder / "config.json").write_text(content)
    refused(folder, r"config\.json is not a model's configuration: it has no format version")


@pytest.mark.parametrize(("rounded", "rounding"), [(True, "corners"), (False, "none")])
def test_format_1(detector, folder, rounded, rounding):
    """The fields that a folder of version 0.1.0 has, and no others."""
    config = json.loads((folder / "config.json").read_text())
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
    loaded = Detector.load(folder)
    anchors = replace(ARCHITECTURE.anchors, compat=LatticeCompat(rounding=rounding))
    coder = replace(ARCHITECTURE.coder, clamp_below=False)
    old = replace(ARCHITECTURE, anchors=anchors, coder=coder, stride_in_1x1=False, norm_eps=None)
    assert loaded.spec.architecture == old and loaded.net.lattice == anchors
    assert loaded.spec.preprocess == replace(PREPROCESS, compat=PreprocessCompat())
    assert loaded.spec.postprocess == replace(POSTPROCESS, compat=PostprocessCompat())
    state = detector.net.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.net.state_dict().items())
    save_detector(folder, loaded)
    saved = read_config(folder)
    assert saved["format"] == 2 and saved["architecture"] == json.loads(json.dumps(asdict(old)))


def test_a_folder_from_before_compat(folder):
    """Where the switches of the anchors lie beside sizes and ratios, settled spacing included."""
    config = json.loads((folder / "config.json").read_text())
    anchors = config["architecture"]["anchors"]
    anchors |= anchors.pop("compat")
    assert {"rounding", "inclusive", "floor_strides", "spacing"} < anchors.keys()
    (folder / "config.json").write_text(json.dumps(config))
    assert Detector.load(folder).architecture == ARCHITECTURE


def test_before_compat_was_a_group(detector, folder):
    """Earlier folders of format 2 have its fields beside the others."""
    config = json.loads((folder / "config.json").read_text())
    for part in ("preprocess", "postprocess"):
        config[part] |= config[part].pop("compat")
    (folder / "config.json").write_text(json.dumps(config))
    assert replace(Detector.load(folder), net=detector.net) == detector
    change_config(folder, preprocess__channels="GBR")
    refused(folder, r"config\.json.*compat.channels of images is RGB or BGR, got 'GBR'")


@pytest.mark.parametrize(("eps", "expected"), [(None, 1e-5), (0.0, 0.0), (0.25, 0.25)])
def test_norm_eps_is_null_or_a_number(detector, tmp_path, eps, expected):
    save_detector(tmp_path, replace(detector, architecture=replace(ARCHITECTURE, norm_eps=eps)))
    assert json.loads((tmp_path / "config.json").read_text())["architecture"]["norm_eps"] == eps
    loaded = Detector.load(tmp_path)
    assert loaded.spec.architecture.norm_eps == eps
    norms = [module for module in loaded.net.backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert {norm.eps for norm in norms} == {expected}


def test_a_newer_format(folder):
    change_config(folder, format=3, library_version="7.8.9")
    refused(folder, r"written by retinanet 7\.8\.9 in format 3; this is .* reads up to format 2\. Upgrade the package")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"architecture__dilation": 2}, "Architecture has no dilation"),
        ({"architecture__anchors__angles": [0]}, "AnchorLattice has no angles"),
        ({"architecture__anchors__compat__angles": [0]}, "LatticeCompat has no angles"),
        ({"architecture__anchors__compat": 3}, "is not a model's configuration"),
        ({"preprocess__gamma": 2}, "Preprocess has no gamma"),
        ({"postprocess__soft": True}, "Postprocess has no soft"),
        ({"preprocess": None}, "KeyError.*preprocess"),
        ({"architecture": None}, "KeyError.*architecture"),
        ({"architecture__coder": [1, 2]}, "is not a model's configuration"),
        ({"architecture__channels": "many"}, "Architecture.channels is 'many', expected int"),
        ({"architecture__anchors__sizes": 32}, "AnchorLattice.sizes is 32, expected tuple"),
        ({"postprocess__score": "high"}, "Postprocess.score is 'high', expected float"),
        ({"architecture__norm_eps": "small"}, "Architecture.norm_eps is 'small', expected"),
        ({"architecture__anchors__compat__rounding": "up"}, "rounding of anchors is none, corners or cell, got 'up'"),
        ({"preprocess__compat__channels": "GBR"}, "compat.channels of images is RGB or BGR, got 'GBR'"),
        ({"postprocess__compat__clip": "never"}, "compat.clip is before, after or half, got 'never'"),
        ({"preprocess__short": 0}, "0 < short <= long, got short 0"),
        ({"architecture__backbone": "resnet5O"}, "unknown backbone 'resnet5O'"),
        ({"architecture__p6_from": "C6"}, "p6_from is C5 or P5, got 'C6'"),
        ({"architecture__norm": "frosty"}, "norm is frozen, batch or group, got 'frosty'"),
        ({"thresholds": [0.5, 0.5, 0.5]}, r"thresholds is \[0.5, 0.5, 0.5\], expected a score per class name"),
        ({"class_names": None}, "class_names is not a list of names"),
        ({"class_names": "cell"}, "class_names is not a list of names"),
        ({"class_names": []}, "class_names is not a list of names"),
    ],
)
def test_other_configurations(folder, changes, match):
    change_config(folder, **changes)
    refused(folder, rf"config\.json.*{match}")


def test_another_number_of_classes(folder):
    change_config(folder, class_names=["one", "two"], thresholds=None)
    refused(folder, r"2 tensors are wrong: heads\.cls\.output\.bias: shape \(6,\), expected \(4,\)")


def test_scale_is_optional(detector, folder, tmp_path):
    assert "scale" not in read_config(folder) and Detector.load(folder).scale is None
    save_detector(tmp_path / "scaled", replace(detector, scale=0.8))
    assert read_config(tmp_path / "scaled")["scale"] == 0.8 and Detector.load(tmp_path / "scaled").scale == 0.8
    save_thresholds(tmp_path / "scaled", {})
    assert Detector.load(tmp_path / "scaled").scale == 0.8


@pytest.mark.parametrize("value", [0, -1, True, "0.8", [0.8], math.inf, math.nan])
def test_scales_that_are_none(folder, value):
    change_config(folder, scale=value)
    refused(folder, r"config\.json: scale is .*expected a number above 0")
