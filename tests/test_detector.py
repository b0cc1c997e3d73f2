"""The detector: a network with its description, from a folder or a name, to detections in original pixels."""

from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch

from retinanet.detector import Detector
from retinanet.errors import UserError
from retinanet.types import Batch, Sample, Target


def batch_of(rule, sizes):
    """Noise, of images of these (height, width)."""
    samples = tuple(Sample(Path(), i, size, Target.empty(), torch.zeros(0)) for i, size in enumerate(sizes))
    images, resized = rule.pad([torch.randint(0, 256, (3, *rule.size(*size)), dtype=torch.uint8) for size in sizes])
    return Batch(images, resized, tuple(sample.target for sample in samples), samples)


@torch.no_grad()
def test_round_trip(full_detector, tmp_path):
    full_detector.save(tmp_path / "model")
    for name in (tmp_path / "model", str(tmp_path / "model")):
        loaded = Detector.load(name)
        assert loaded.spec == full_detector.spec
        mine, theirs = full_detector.net.state_dict(), loaded.net.state_dict()
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
        assert not any(module.training for module in loaded.net.modules())
        assert loaded.net.lattice == full_detector.spec.architecture.anchors
        assert loaded.net.coder == full_detector.spec.architecture.coder
    torch.manual_seed(1)
    batch = batch_of(full_detector.spec.preprocess, [(128, 128), (30, 48)])
    for one, other in zip(
        full_detector.detections(full_detector.raw(batch), batch),
        loaded.detections(loaded.raw(batch), batch),
        strict=True,
    ):
        assert len(one) and torch.equal(one.boxes, other.boxes) and torch.equal(one.scores, other.scores)
        assert torch.equal(one.labels, other.labels)
        assert one.class_names == other.class_names == full_detector.spec.class_names


@torch.no_grad()
def test_raw_is_the_network_on_normalised_pixels(full_detector):
    """Computed here from the pixels, with padding of 0 after normalisation."""
    torch.manual_seed(2)
    rule = full_detector.spec.preprocess
    batch = batch_of(rule, [(64, 96), (30, 48)])
    mean, std = (torch.tensor(value)[:, None, None] for value in (rule.mean, rule.std))
    pixels = (batch.images.flip(1) / rule.compat.divisor - mean) / std  # BGR
    for image, (height, width) in zip(pixels, batch.sizes.tolist(), strict=True):
        image[:, height:], image[:, :, width:] = 0, 0
    raw, expected = full_detector.raw(batch), full_detector.net(pixels)
    for ours, theirs in zip([*raw.logits, *raw.deltas], [*expected.logits, *expected.deltas], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_detections_are_in_original_pixels(full_detector):
    """The same pixels said to come from an image of twice and thrice the sides: boxes grow along."""
    torch.manual_seed(3)
    images, sizes = full_detector.spec.preprocess.pad([torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)])
    found = []
    for size in ((64, 96), (128, 288)):
        sample = Sample(Path(), 1, size, Target.empty(), torch.zeros(0))
        batch = Batch(images, sizes, (sample.target,), (sample,))
        found.append(full_detector.detections(full_detector.raw(batch), batch)[0])
    assert len(found[0])
    torch.testing.assert_close(found[1].boxes, found[0].boxes * torch.tensor([3.0, 2, 3, 2]))


def test_with_spec(full_detector):
    other = full_detector.with_spec(scale=0.25, metrics={})
    assert other.net is full_detector.net and other.spec == replace(full_detector.spec, scale=0.25, metrics={})
    assert full_detector.spec.scale == 0.8
    with pytest.raises(UserError, match="scale is -1, expected a number above 0"):
        full_detector.with_spec(scale=-1)


def test_other_weights_in_place_of_the_nets(full_detector, tmp_path):
    """As a moving average of the weights is saved; in any memory layout."""
    average = {key: value + 1 for key, value in full_detector.net.state_dict().items()}
    average["fpn.output.p3.weight"] = average["fpn.output.p3.weight"].contiguous(memory_format=torch.channels_last)
    full_detector.save(tmp_path, average)
    loaded = Detector.load(tmp_path).net.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in average.items())


def test_a_hub_repository(full_detector, tmp_path, monkeypatch):
    """What comes of the hub is a folder like any other (tests/interop/test_pretrained.py: torchvision's names)."""
    full_detector.save(tmp_path / "cached")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_args, **_options: str(tmp_path / "cached"))
    loaded = Detector.load("somebody/cells")
    assert loaded.spec == full_detector.spec
    key = "heads.cls.output.weight"
    assert torch.equal(loaded.net.state_dict()[key], full_detector.net.state_dict()[key])
    (tmp_path / "cached" / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"model\.safetensors is damaged or was replaced"):
        Detector.load("somebody/cells")


@pytest.mark.parametrize("name", ["lite", "resnet50", "nowhere", "no/where/at/all", ""])
def test_names_of_no_model(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no model in .*: expected a folder with config\.json and model\.safetensors"):
        Detector.load(name)
