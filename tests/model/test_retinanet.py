import pytest
import torch

from retinanet.anchors.coding import BoxCoder
from retinanet.anchors.lattice import AnchorLattice
from retinanet.errors import UserError
from retinanet.model.heads import Heads
from retinanet.model.postprocess import Postprocess
from retinanet.model.presets import PRESETS, Architecture
from retinanet.model.pyramid import FeaturePyramid
from retinanet.model.retinanet import RetinaNet

TINY = Architecture(backbone="test_resnet", channels=16, depth=1)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "body", "fpn", "total"),
    [
        ("resnet18", 11_176_512, 3_770_368, 21_410_100),
        ("resnet50", 23_508_032, 7_997_440, 37_968_692),
        ("resnet101", 42_500_160, 7_997_440, 56_960_820),
    ],
)
def test_parameters_and_anchors(name, body, fpn, total):
    """The counts known of the paper's networks for 80 classes; shapes follow on torch's meta device."""
    with torch.device("meta"):
        net = PRESETS[name].build(80)
        grids = {size: net(torch.zeros(1, 3, *size)).grids for size in ((640, 640), (800, 1344)) if name != "resnet101"}
    assert (count(net.backbone), count(net.fpn), count(net)) == (body, fpn, total)
    assert (count(net.heads.cls), count(net.heads.box)) == (4_019_920, 2_443_300)
    for size, anchors in (((640, 640), 76_725), ((800, 1344), 201_600)):
        if size in grids:
            assert grids[size] == net.lattice.grids(*size) and net.lattice.count(grids[size]) == anchors


SIZES = [(1, 1), (1, 777), (777, 1), (97, 131), (31, 2049), (33, 32), (127, 129)]


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "lite"])
def test_any_input_size_has_the_grids_of_the_lattice(name):
    with torch.device("meta"):
        net = PRESETS[name].build(3)
        for size in SIZES:
            raw = net(torch.zeros(2, 3, *size))
            assert raw.grids == net.lattice.grids(*size)
            assert [tuple(x.shape) for x in raw.logits] == [(2, 27, *grid) for grid in raw.grids]
            assert [tuple(x.shape) for x in raw.deltas] == [(2, 36, *grid) for grid in raw.grids]
            assert raw.num_classes == 3


@torch.no_grad()
def test_any_input_size_gives_numbers():
    net = TINY.build(2).eval()
    for size in [(1, 1), (1, 77), (97, 31)]:
        raw = net(torch.randn(1, 3, *size))
        assert raw.grids == net.lattice.grids(*size)
        assert all(level.isfinite().all() for level in (*raw.logits, *raw.deltas))


@torch.no_grad()
def test_the_answer_does_not_depend_on_the_mode():
    net, images = TINY.build(2), torch.randn(2, 3, 64, 96)
    training, evaluating = net.train()(images), net.eval()(images)
    assert type(training) is type(evaluating)
    assert all(torch.equal(a, b) for a, b in zip(training.logits, evaluating.logits, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(training.deltas, evaluating.deltas, strict=True))


@torch.no_grad()
def test_images_of_a_batch_do_not_see_each_other():
    net, images = TINY.build(2).eval(), torch.randn(2, 3, 64, 64)
    together, alone = net(images), net(images[1:])
    for a, b in zip(together.logits, alone.logits, strict=True):
        torch.testing.assert_close(a[1:], b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("a", [0, 4, 8])
@torch.no_grad()
def test_channels_are_anchor_major(a):
    """One channel switched on gives the anchors of one template under one label."""
    net, label = TINY.build(3).eval(), 1
    for output in (net.heads.cls.output, net.heads.box.output):
        torch.nn.init.zeros_(output.weight)
    net.heads.cls.output.bias.fill_(-20)
    net.heads.cls.output.bias[a * 3 + label] = 5
    raw = net(torch.randn(1, 3, 64, 64))
    everything = Postprocess(nms=1.0, max_detections=1000)(raw, torch.tensor([[64, 64]]), "abc")[0]
    flat = torch.arange(net.lattice.count(raw.grids))
    anchors = net.lattice.boxes(flat[flat % 9 == a], raw.grids).clamp(0, 64)
    assert everything.labels.unique().tolist() == [label]
    torch.testing.assert_close(everything.boxes, anchors, rtol=0, atol=1e-4)  # equal scores keep the lattice's order


def test_carries_its_lattice_and_coder():
    lattice, coder = AnchorLattice(ratios=(1.0,), offset=0.0), BoxCoder(std=(0.1, 0.1, 0.2, 0.2))
    tiny = TINY.build(2)
    heads = Heads(num_classes=2, num_anchors=3, channels=16, depth=0)
    net = RetinaNet(backbone=tiny.backbone, fpn=tiny.fpn, heads=heads, lattice=lattice, coder=coder)
    raw = net(torch.zeros(1, 3, 32, 32))
    assert raw.lattice is lattice and raw.coder is coder and raw.num_classes == 2


def test_parts_that_do_not_fit():
    tiny = TINY.build(2)
    parts = {"backbone": tiny.backbone, "fpn": FeaturePyramid(in_channels=(1, 2, 3), channels=16)}
    with pytest.raises(UserError, match=r"anchors lie at strides \(8, 16\), the pyramid's are \(8, 16, 32, 64, 128\)"):
        RetinaNet(**parts, heads=tiny.heads, lattice=AnchorLattice(strides=(8, 16), sizes=(32, 64)))
    with pytest.raises(UserError, match="6 anchors per cell need 4 box outputs each, not 36 in all"):
        RetinaNet(**parts, heads=tiny.heads, lattice=AnchorLattice(ratios=(1.0, 2.0)))
