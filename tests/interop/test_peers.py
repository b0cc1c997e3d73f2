"""Converted networks against numbers that the real code of the other projects gave (see peers/README.md).

The weights are drawn from the names of the keys, so a converted network can be compared with what the source's own
network, transforms and post-processing made of the same weights and the same picture.
"""

import copy
import importlib.util
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from retinanet.detector import Detector
from retinanet.inference.predictor import Predictor
from retinanet.inference.torch_backend import TorchBackend
from retinanet.interop.convert import convert_weights
from retinanet.interop.files import WeightsFile
from retinanet.model.postprocess import PostprocessCompat

HERE = Path(__file__).parent / "peers"
# These weights have statistics, so they do not look like MSRA's.
CHANGES = {
    "detectron2": {"architecture": {"stride_in_1x1": True}},
    "mmdetection_caffe": {},
}
META = {
    "mmdetection": {"meta": {"cfg": "model = dict(backbone=dict(depth=50, style='pytorch'))"}},
    "mmdetection_caffe": {"meta": {"cfg": "model = dict(backbone=dict(depth=50, style='caffe'))"}},
    "odtk": {"classes": 80, "ratios": [1.0, 2.0, 0.5], "scales": [4 * 2 ** (i / 3) for i in range(3)]},
}
SOURCES = ("yhenon", "detectron2", "mmdetection", "mmdetection_caffe", "odtk")


def load_module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


made = load_module(HERE / "deterministic.py")


class Peer:
    """A source's fixture, and the conversion of the weights that it was made with."""

    def __init__(self, name):
        self.name = name
        self.numbers = dict(np.load(HERE / f"{name}.npz"))
        state = made.fill(made.empty_state(name.removesuffix("_caffe")), float(self.numbers["stem_gain"]))
        self.file = WeightsFile(Path(f"{name}.pth"), state, META.get(name, {}), "", ())
        self.conversion = convert_weights(self.file, changes=CHANGES.get(name))
        self.detector = Detector(self.conversion.spec, self.conversion.net)
        self.batch = made.network_input(tuple(self.numbers["input_size"]), float(self.numbers["stem_gain"]))
        with torch.no_grad():
            self.raw = self.detector.net(self.batch)
            features = self.detector.net.fpn(self.detector.net.backbone(self.batch))
        self.edge = np.array([0, 0, 1, 1]) if name == "odtk" else 0  # its right and bottom edges are inclusive
        self.tensors = dict(zip(self.names(), [*features, *self.raw.logits, *self.raw.deltas], strict=True))

    @staticmethod
    def names():
        return [f"{kind}.p{level}" for kind in ("features", "logits", "deltas") for level in range(3, 8)]

    def expected(self, name):
        return self.numbers["tensor_values"][list(self.numbers["tensor_names"]).index(name)]

    def order(self):
        """For each template of ours the source's."""
        if self.name == "detectron2":
            return [0, 3, 6, 1, 4, 7, 2, 5, 8]
        return [2, 5, 8, 0, 3, 6, 1, 4, 7] if self.name == "odtk" else list(range(9))


@pytest.fixture(scope="module")
def peers():
    """The peers by name, each made once."""
    return cache(Peer)


@pytest.fixture(params=SOURCES)
def peer(request, peers):
    return peers(request.param)


def test_every_tensor_has_its_place(peer):
    conversion = peer.conversion
    assert set(conversion.used.values()) | set(conversion.left_out) == set(peer.file.tensors)
    assert set(conversion.used) | set(conversion.filled) == set(conversion.net.state_dict())
    assert conversion.source == peer.name.removesuffix("_caffe")


def test_features_logits_and_deltas(peer):
    """Sampled values of every level; the source's anchors are put in our order by the test's own table."""
    for name, tensor in peer.tensors.items():
        if not name.startswith("features"):
            per_anchor = 4 if name.startswith("deltas") else 80
            back = np.argsort(peer.order())  # for each of the source's templates ours
            tensor = tensor.unflatten(1, (9, per_anchor))[:, back].flatten(1, 2)
        values = tensor.double().numpy().ravel()
        row = list(peer.numbers["tensor_names"]).index(name)
        assert tuple(tensor.shape) == tuple(peer.numbers["tensor_shapes"][row])
        scale = peer.numbers["tensor_stds"][row]
        assert abs(values.mean() - peer.numbers["tensor_means"][row]) < 1e-5 * scale, name
        assert abs(values.std() - scale) < 1e-5 * scale, name
        found = values[made.positions(name, values.size)]
        assert np.abs(found - peer.expected(name)).max() < 1e-4 * scale, name


def test_anchors(peer):
    lattice, grids = peer.detector.net.lattice, peer.raw.grids
    for level, (rows, columns) in enumerate(grids):
        for key, y, x in (("anchors_first_cell", 0, 0), ("anchors_last_cell", rows - 1, columns - 1)):
            template = torch.arange(9)
            points = (torch.full_like(template, value) for value in (level, y, x))
            ours = lattice.boxes_at(*points, template).numpy()
            theirs = peer.numbers[key][level][peer.order()] + peer.edge
            assert np.abs(ours - theirs).max() <= 1e-4, (level, key)


def test_decoding_of_extreme_deltas(peer):
    """Boxes and clipping; detectron2 clips after suppression, so its boxes are not clipped here."""
    height, width = peer.batch.shape[-2:]
    anchors = torch.from_numpy(peer.numbers["extreme_anchors"] + peer.edge).float()
    boxes = peer.detector.net.coder.decode(torch.from_numpy(peer.numbers["extreme_deltas"]), anchors).numpy()
    low, high = boxes[:, :2], boxes[:, 2:]
    if peer.detector.spec.postprocess.compat.clip != "after":
        low, high = np.maximum(low, 0), np.minimum(high, [width, height])
    edge = 1 if peer.name == "odtk" else 0  # whose CPU path clips every edge, to pixels
    if peer.detector.spec.postprocess.compat.clip == "before" or edge:
        low, high = np.minimum(low, [width - edge, height - edge]), np.maximum(high, edge)
    theirs = peer.numbers["extreme_boxes"] + peer.edge
    np.testing.assert_allclose(np.concatenate([low, high], axis=1), theirs, rtol=1e-5, atol=1e-3)


def in_image(boxes, scores, labels, size, sliver=0):
    """As this library shows them: clipped to the image, without those of which nothing (or a sliver) is left."""
    boxes = np.clip(boxes, 0, [size[1], size[0], size[1], size[0]])
    shown = (boxes[:, 2:] - boxes[:, :2] > sliver).all(1)
    return boxes[shown], scores[shown], labels[shown]


def gaps(ours, theirs):
    """For each detection of ours its difference in box and in score from the nearest of theirs that is left.

    Of the same class; infinite where none is left.
    """
    distance = np.abs(ours[0][:, None] - theirs[0]).max(-1) + 1e3 * np.abs(ours[1][:, None] - theirs[1])
    distance[ours[2][:, None] != theirs[2]] = np.inf
    found = []
    for row in range(len(distance)):
        best = distance[row].argmin()
        pair = np.abs(ours[0][row] - theirs[0][best]).max(), np.abs(ours[1][row] - theirs[1][best])
        found.append(pair if np.isfinite(distance[row, best]) else (np.inf, np.inf))
        distance[:, best] = np.inf
    return np.array(found).T


def arrays(found):
    return found.boxes.numpy(), found.scores.numpy(), found.labels.numpy()


@pytest.mark.parametrize(
    ("dtype", "box_limit", "score_limit"),
    [
        (torch.float64, 2e-3, 1e-6),  # what is left is the rounding of the source's own float32, the same everywhere
        (torch.float32, 1e-2, 5e-6),  # kernels of other CPUs and numbers of threads sum in other orders
    ],
    ids=["float64", "float32"],
)
def test_detections_of_the_network_input(peer, dtype, box_limit, score_limit):
    """Against scores up to 1 and boxes up to some hundred pixels."""
    raw = peer.raw
    if dtype == torch.float64:
        with torch.no_grad():
            raw = copy.deepcopy(peer.detector.net).double()(peer.batch.double())
    size = tuple(peer.batch.shape[-2:])
    theirs = [peer.numbers[key] for key in ("boxes", "scores", "labels")]
    theirs[0] = theirs[0] + peer.edge
    rule, sliver = peer.detector.spec.postprocess, 0
    if peer.name == "odtk":  # on the CPU it clips every edge, and leaves slivers of a pixel of what lies outside
        rule, sliver = replace(rule, compat=PostprocessCompat()), 1
    (found,) = rule(raw, torch.tensor([size]), peer.detector.spec.class_names)
    ours, theirs = (
        in_image(*result, size, sliver) for result in (arrays(found.above(float(peer.numbers["floor"]))), theirs)
    )
    assert len(ours[0]) == len(theirs[0]) > 20
    boxes, scores = gaps(ours, theirs)
    assert boxes.max() <= box_limit and scores.max() <= score_limit


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("yhenon", 0.3),  # scikit-image reflects at the border where torch repeats the edge
        ("detectron2", 0.01),
        ("mmdetection", 0.2),  # OpenCV rounds a sixth of the pixels to the next grey level
        ("mmdetection_caffe", 0.2),
        ("odtk", 0.3),  # it scales boxes back by one factor, though rounding made two of it
    ],
)
def test_detections_of_a_photo(peers, name, limit):
    """From bytes to boxes in original pixels, through the source's own resizing, normalising and padding.

    Pixels that differ by one grey level move boxes of random weights, so the median counts, and a few may be missing.
    """
    peer, size = peers(name), (97, 130)
    rule = replace(peer.detector.spec.preprocess, short=128, long=213)
    predictor = Predictor(TorchBackend(peer.detector.with_spec(preprocess=rule), device="cpu"))
    found = predictor(made.photo()).above(float(peer.numbers["photo_floor"]))
    theirs = [peer.numbers[f"photo_{key}"] for key in ("boxes", "scores", "labels")]
    theirs[0] = theirs[0] + peer.edge * size[0] / 128
    ours, theirs = in_image(*arrays(found), size), in_image(*theirs, size, 1 if name == "odtk" else 0)
    assert abs(len(ours[0]) - len(theirs[0])) <= 0.05 * len(theirs[0])
    boxes, scores = gaps(ours, theirs)
    print(name, np.median(boxes), np.median(scores), np.isinf(boxes).sum(), len(ours[0]), len(theirs[0]))
    assert np.isinf(boxes).mean() <= 0.05
    assert np.median(boxes) <= limit and np.median(scores) <= 1e-3
