"""Against torchvision's own networks, transforms, losses and loader, on random weights with random statistics."""

import math
import re

import pytest
import torch
from torch import nn
from torchvision.models.detection import RetinaNet, retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from retinanet.detector import Detector
from retinanet.errors import UserError
from retinanet.interop import convert as conversion
from retinanet.interop import parity
from retinanet.interop.convert import convert, convert_weights
from retinanet.interop.files import WeightsFile, read_weights
from retinanet.interop.torchvision import coco_slots, modernise_key, to_torchvision, write_instructions
from retinanet.losses.box import L1, GIoU
from retinanet.losses.detection import DetectionLoss
from retinanet.plain import with_changes
from retinanet.types import Target

FREE = {0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # ids without a class (torchvision's labels are COCO's ids)


def randomised(net, seed=0):
    """Every parameter and statistic random, so that none can be lost without a difference."""
    noise = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d | nn.GroupNorm):
            module.weight.data.uniform_(0.4, 0.9, generator=noise)
            module.bias.data.normal_(0, 0.1, generator=noise)
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=noise)
            module.running_var.uniform_(0.5, 1.5, generator=noise)
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            fan = module.in_channels * 9
            module.weight.data.normal_(0, math.sqrt(2 / fan), generator=noise)
    head = net.head
    head.classification_head.cls_logits.weight.data.normal_(0, 0.03, generator=noise)
    head.classification_head.cls_logits.bias.data.normal_(-4, 1, generator=noise)
    head.regression_head.bbox_reg.weight.data.normal_(0, 0.01, generator=noise)
    return net.eval()


def small(slots, seed=0):
    """torchvision's RetinaNet over a ResNet-18: quick where the backbone does not matter."""
    torch.manual_seed(seed)  # of what is not drawn anew below
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        norm_layer=nn.BatchNorm2d,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    return randomised(RetinaNet(backbone, slots), seed)


def file_of(net, tmp_path, name="weights.pth"):
    torch.save(net.state_dict(), tmp_path / name)
    return read_weights(tmp_path / name)


@pytest.fixture(scope="module")
def v1():
    torch.manual_seed(1)
    return randomised(retinanet_resnet50_fpn(weights=None, weights_backbone=None), 1)


@pytest.fixture(scope="module")
def v2():
    torch.manual_seed(2)
    return randomised(retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None), 2)


@pytest.fixture
def unmeasured(monkeypatch):
    """Without the forward passes of the parity report, where it is not the subject."""
    monkeypatch.setattr(conversion, "compare", lambda *_: None)


@pytest.fixture
def small_images(monkeypatch):
    """The parity report on images of a quarter of the pixels, whose sides fit the strides as little."""
    monkeypatch.setattr(parity, "SIDES", ((90, 125), (115, 80)))
    monkeypatch.setattr(parity, "SHORT", 96)
    monkeypatch.setattr(parity, "LONG", 160)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_parity(version, request, tmp_path, small_images):
    """Input, features, logits, deltas and anchors bit for bit; detections of two sizes with the stride quirk."""
    net = request.getfixturevalue(version)
    file = file_of(net, tmp_path)
    done = convert_weights(file)
    found = done.parity
    assert (found.pixels, found.features, found.logits, found.deltas, found.anchors) == (0, 0, 0, 0, 0)
    assert found.matched and found.found[0] == found.found[1] > 100 and found.boxes <= 1e-3 and found.scores <= 1e-6
    assert done.spec.class_names == tuple(coco_slots().values()) and len(done.spec.class_names) == 80
    assert done.spec.architecture.p6_from == {"v1": "P5", "v2": "C5"}[version]
    assert len(done.used) == {"v1": 354, "v2": 362}[version] and not done.left_out and not done.filled
    assert "largest difference: input 0, features 0, logits 0, deltas 0, anchors 0 px" in done.report()


def test_parity_would_see_a_difference(tmp_path, small_images):
    """One weight of the classes, one of the boxes, one statistic: each shows where it should."""
    file = file_of(small(4), tmp_path)
    detector = convert_weights(file, class_names=["a", "b", "c"])
    state = detector.net.state_dict()
    for key, seen, unseen in (
        ("heads.cls.output.bias", "logits", "deltas"),
        ("heads.box.conv.2.bias", "deltas", "logits"),
    ):
        kept = state[key].clone()
        state[key] += 0.5  # all of it: one channel may be dead
        found = parity.compare(detector.spec, detector.net, file.tensors, (1, 2, 3))
        state[key].copy_(kept)
        assert getattr(found, seen) > 0 and getattr(found, unseen) == found.features == 0, key
    state["backbone.body.bn1.running_mean"][0] += 0.5
    found = parity.compare(detector.spec, detector.net, file.tensors, (1, 2, 3))
    assert found.features > 0 and found.pixels == 0 and found.anchors == 0
    assert parity.Parity("x", 0, 0, 0, 0, 0, (3, 4), False, 0, 0).summary().endswith("DIFFER: 3 here, 4 there")


@pytest.mark.parametrize("side", [(640, 640), (800, 1344), (800, 1088)])
def test_anchors(v1, side, tmp_path, unmeasured):
    lattice = convert_weights(file_of(v1, tmp_path)).net.lattice.over(*side)
    grids = lattice.grids(*side)
    maps = [torch.zeros(1, 1, *grid) for grid in grids]
    (theirs,) = v1.anchor_generator(ImageList(torch.zeros(1, 3, *side), [side]), maps)
    assert torch.equal(lattice.boxes(torch.arange(lattice.count(grids)), grids), theirs)


@pytest.mark.parametrize(("version", "box"), [("v1", L1()), ("v2", GIoU())])
def test_losses(version, box, request, tmp_path, unmeasured):
    """Through the whole network in training mode, the batch norms held: three sizes, one image without boxes."""
    net = request.getfixturevalue(version)
    detector = convert_weights(file_of(net, tmp_path), class_names=[f"slot {i}" for i in range(91)])
    images = [torch.rand(3, 150, 200), torch.rand(3, 190, 130), torch.rand(3, 120, 120)]
    boxes = torch.tensor([[10.0, 20, 90, 100], [50, 60, 70, 75], [5, 5, 180, 140]])
    targets = [
        {"boxes": boxes, "labels": torch.tensor([3, 90, 17])},
        {"boxes": boxes[:0], "labels": torch.zeros(0, dtype=torch.int64)},
        {"boxes": boxes[:1], "labels": torch.tensor([1])},
    ]
    net.transform.min_size, net.transform.max_size = (160,), 260
    with torch.no_grad():
        net.train()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        theirs = net(images, targets)
        batch, resized = net.transform(images, targets)
        net.eval()
        raw = detector.net(batch.tensors)
        mine = [Target(t["boxes"], t["labels"], torch.zeros(len(t["labels"]), dtype=torch.bool)) for t in resized]
        losses = DetectionLoss(box=box, normaliser="image")(raw, mine)
    net.transform.min_size, net.transform.max_size = (800,), 1333
    torch.testing.assert_close(losses.classification, theirs["classification"], rtol=1e-6, atol=0)
    torch.testing.assert_close(losses.box, theirs["bbox_regression"], rtol=1e-6, atol=0)


def test_frozen_norms_without_epsilon(tmp_path, small_images):
    """COCO_V1's network: frozen batch norms have no counters of batches, and no tensor tells their epsilon."""
    net = randomised(retinanet_resnet50_fpn(weights=None, weights_backbone=None), 3)
    state = {key: value for key, value in net.state_dict().items() if not key.endswith("num_batches_tracked")}
    for module in net.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
    torch.save(state, tmp_path / "weights.pth")
    done = convert_weights(read_weights(tmp_path / "weights.pth"), changes={"architecture": {"norm_eps": 0}})
    assert len(done.filled) == 53 and "53 counters of batches" in done.report()
    x = torch.rand(1, 3, 96, 128)
    with torch.no_grad():
        theirs = list(net.backbone(x).values())
        ours = done.net.fpn(done.net.backbone(x))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert done.parity.features == done.parity.logits == 0 and done.parity.matched


def test_the_published_file_has_no_epsilon(tmp_path, unmeasured):
    file = file_of(small(91), tmp_path)
    published = WeightsFile(file.path, file.tensors, file.meta, "eeacb38b" + file.sha256[8:], file.notes)
    assert convert_weights(published).spec.architecture.norm_eps == 0.0
    assert convert_weights(file).spec.architecture.norm_eps is None


def test_names_of_before_2022(tmp_path, unmeasured):
    """The towers' convolutions were 0, 2, 4, 6 of a sequence with ReLUs; number 2 is not today's number 2."""
    net = small(91)
    old = {}
    for key, value in net.state_dict().items():
        key = re.sub(r"(head\.\w+_head\.conv)\.(\d)\.0\.", lambda m: f"{m[1]}.{2 * int(m[2])}.", key)
        old[re.sub(r"(inner_blocks|layer_blocks)\.(\d)\.0\.", r"\1.\2.", key)] = value
    assert "head.regression_head.conv.6.bias" in old and "backbone.fpn.layer_blocks.2.weight" in old
    torch.save(old, tmp_path / "old.pth")
    new, again = convert_weights(file_of(net, tmp_path)), convert_weights(read_weights(tmp_path / "old.pth"))
    states = [one.net.state_dict() for one in (new, again)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert modernise_key("head.classification_head.conv.2.weight") == "head.classification_head.conv.1.0.weight"
    assert modernise_key("head.classification_head.conv.2.0.weight") == "head.classification_head.conv.2.0.weight"


def test_slots_of_coco(tmp_path, unmeasured):
    """80 of 91 rows, in the order of the ids."""
    net = small(91)
    detector = convert_weights(file_of(net, tmp_path))
    kept = [slot for slot in range(91) if slot not in FREE]
    theirs = net.head.classification_head.cls_logits.bias.view(9, 91)[:, kept].flatten()
    assert torch.equal(detector.net.heads.cls.output.bias, theirs)
    names = dict(zip(kept, detector.spec.class_names, strict=True))
    assert (names[1], names[13], names[90]) == ("person", "stop sign", "toothbrush")


@pytest.mark.parametrize(
    ("slots", "names", "kept"),
    [
        (1, "Tree", [0]),  # DeepForest: a single slot is a class
        (4, "a,b,c", [1, 2, 3]),
        (3, "a,b,c", [0, 1, 2]),
        (91, ",".join(f"n{i}" for i in range(91)), list(range(91))),
        (91, ",".join(f"n{i}" for i in range(80)), [slot for slot in range(91) if slot not in FREE]),
    ],
)
def test_slots_of_others(slots, names, kept, tmp_path, unmeasured):
    net = small(slots)
    detector = convert_weights(file_of(net, tmp_path), class_names=names.split(","))
    assert detector.spec.class_names == tuple(names.split(","))
    theirs = net.head.classification_head.cls_logits.weight.unflatten(0, (9, slots))[:, kept].flatten(0, 1)
    assert torch.equal(detector.net.heads.cls.output.weight, theirs)


@pytest.mark.parametrize(
    ("slots", "names", "message"),
    [
        (4, [], r"has 4 slots .* no names were given\. Pass --class_names with 3 names if .* with 4 if"),
        (4, ["a", "b"], r"has 4 slots .* 2 names were given"),
        (4, ["a", "b", "b"], r"the weights have 3 classes, 2 different names given"),
    ],
)
def test_slots_that_nobody_named(slots, names, message, tmp_path, unmeasured):
    with pytest.raises(UserError, match=message):
        convert_weights(file_of(small(slots), tmp_path), class_names=names)


@pytest.mark.parametrize(("slots", "names"), [(91, None), (4, "a,b,c")])
def test_there_and_back(slots, names, tmp_path, unmeasured, monkeypatch):
    """Theirs -> ours -> theirs -> ours, through files; ours is the same, and their loader takes the file."""
    net = randomised(retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=slots), 4)
    file_of(net, tmp_path, "first.pth")
    changes = {
        "preprocess": {"short": 192, "long": 320, "std": [0.3, 0.2, 0.1]},
        "postprocess": {"score": 0.1, "nms": 0.3, "max_detections": 50, "topk": 200},
    }
    convert(str(tmp_path / "first.pth"), str(tmp_path / "model"), class_names=names, **changes)
    detector = Detector.load(tmp_path / "model")
    monkeypatch.setattr(conversion, "compare", lambda *_: parity.Parity("x", 0, 0, 0, 0, 0, (1, 1), True, 0, 0))
    text = convert(str(tmp_path / "model"), str(tmp_path / "model.pth"), to="torchvision")
    assert f"{'80, labels 1 to 90' if slots == 91 else '3, labels 1 to 3'}" in text
    lines = write_instructions(detector.spec, str(tmp_path / "model.pth"))
    assert all(line.split("(")[0] in text for line in lines.splitlines())
    scope = {}
    exec(lines, scope)  # as its user would type it
    theirs = scope["model"]
    assert (theirs.transform.min_size, theirs.transform.max_size) == ((192,), 320)
    assert (theirs.transform.image_mean, theirs.transform.image_std) == ([0.485, 0.456, 0.406], [0.3, 0.2, 0.1])
    assert (theirs.score_thresh, theirs.nms_thresh) == (0.1, 0.3)
    assert (theirs.detections_per_img, theirs.topk_candidates) == (50, 200)
    state = theirs.state_dict()
    kept = [slot for slot in range(slots) if slot not in (FREE if slots == 91 else {0})]
    for key, value in net.state_dict().items():
        other = state[key]
        if "cls_logits" in key:
            value, other = (tensor.unflatten(0, (9, slots))[:, kept] for tensor in (value, other))
        assert torch.equal(value, other), key
    convert(str(tmp_path / "model.pth"), str(tmp_path / "again"), class_names=names, **changes)
    again = Detector.load(tmp_path / "again")
    mine, theirs = detector.net.state_dict(), again.net.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert again.spec == detector.spec
    empty = state["head.classification_head.cls_logits.weight"].unflatten(0, (9, slots))[:, 0]
    assert not empty.any()


def test_what_torchvision_cannot_be(tmp_path, unmeasured):
    done = convert_weights(file_of(small(91), tmp_path))
    detector = Detector(done.spec, done.net)
    with pytest.raises(UserError, match="no such RetinaNet: backbone 'resnet18', not 'resnet50'"):
        to_torchvision(detector.spec, detector.net)
    detector.save(tmp_path / "model")
    with pytest.raises(UserError, match="no such RetinaNet"):
        convert(str(tmp_path / "model"), str(tmp_path / "model.pth"), to="torchvision")
    for part, change in (("postprocess", {"class_agnostic": True}), ("preprocess", {"compat": {"channels": "BGR"}})):
        spoilt = detector.with_spec(**{part: with_changes(getattr(detector.spec, part), change, part)})
        with pytest.raises(UserError, match=next(iter(change))):
            to_torchvision(spoilt.spec, spoilt.net)
    assert not (tmp_path / "model.pth").exists() and not list(tmp_path.glob("*.part"))
