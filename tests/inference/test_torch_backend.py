"""The torch backend: what it speeds up must not change what it finds."""

import logging
from dataclasses import replace

import pytest
import torch

from retinanet.detector import Detector
from retinanet.images.io import read_pixels
from retinanet.inference import torch_backend
from retinanet.inference.predictor import Predictor
from retinanet.inference.torch_backend import TorchBackend


@pytest.fixture(scope="module")
def detector(trained):
    return Detector.load(trained)


def reference(detector, pixels):
    """The detector's own parts, one after the other, with nothing folded or packed."""
    rule = detector.spec.preprocess
    batch, sizes = rule.pad([rule.resize(torch.from_numpy(pixels).permute(2, 0, 1))])
    with torch.no_grad():
        raw = detector.net(rule.normalise(batch, sizes))
    (found,) = detector.spec.postprocess(raw, sizes, detector.spec.class_names)
    return rule.boxes_back(found.boxes, tuple(sizes[0].tolist()), pixels.shape[:2]), found.scores, found.labels


def test_detections_are_those_of_the_parts(detector, data):
    state = {key: value.clone() for key, value in detector.net.state_dict().items()}
    backend = TorchBackend(detector, device="cpu")
    assert backend.name == "torch fp32 on cpu" and backend.streams == 1
    for path in sorted((data / "test").glob("*.png")):
        pixels = read_pixels(path)
        (found,) = backend.run([backend.prepare(pixels)])
        boxes, scores, labels = reference(detector, pixels)
        # by the nearest box of the class: of two that score the same, either may come first
        apart = (found.boxes[:, None] - boxes).abs().amax(dim=2)
        apart[found.labels[:, None] != labels] = torch.inf
        assert len(found) == len(boxes) and float(apart.min(dim=0).values.max()) < 1e-3
        near = apart.argmin(dim=1)
        assert float(apart.min(dim=1).values.max()) < 1e-3 and near.unique().numel() == len(boxes)
        torch.testing.assert_close(found.scores, scores[near], rtol=0, atol=1e-5)
    assert all(torch.equal(state[key], value) for key, value in detector.net.state_dict().items())


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="the kernels need AVX-512")
def test_bf16_is_near(detector, data, monkeypatch):
    monkeypatch.setattr(torch_backend, "cpu_computes_bf16", lambda: True)  # where it does not, it is emulated
    backend = TorchBackend(detector, device="cpu", precision="bf16")
    assert backend.name == "torch bf16 on cpu"
    pixels = read_pixels(data / "test" / "test_0.png")
    (found,) = backend.run([backend.prepare(pixels)])
    _, scores, _ = reference(detector, pixels)
    assert found.scores.dtype == found.boxes.dtype == torch.float32
    torch.testing.assert_close(found.scores[0], scores[0], rtol=0.02, atol=0)  # 8 bits


def test_a_cpu_without_bf16(detector, monkeypatch, caplog):
    monkeypatch.setattr(torch_backend, "cpu_computes_bf16", lambda: False)
    with caplog.at_level(logging.WARNING):
        backend = TorchBackend(detector, device="cpu", precision="bf16")
    assert backend.name == "torch fp32 on cpu" and "cpu does not compute in bf16: fp32 is used instead" in caplog.text


def test_a_rule_of_its_own_per_image(detector, data):
    """Twice as large for the network: boxes are in pixels of the image all the same."""
    pixels = read_pixels(data / "test" / "test_0.png")
    rule = replace(detector.spec.preprocess, short=128, long=200)
    backend = TorchBackend(detector, device="cpu")
    prepared = backend.prepare(pixels, rule)
    assert tuple(prepared.pixels.shape[1:]) == rule.size(64, 80) and prepared.size == (64, 80)
    (found,) = backend.run([prepared])
    wanted = Predictor(TorchBackend(detector.with_spec(preprocess=rule), device="cpu"))(pixels)
    assert torch.equal(found.boxes, wanted.boxes) and torch.equal(found.scores, wanted.scores)
