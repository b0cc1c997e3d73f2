from dataclasses import replace

import pytest
import torch
from torch import nn

from retinanet.anchors.coding import BoxCoder
from retinanet.anchors.lattice import AnchorLattice, LatticeCompat
from retinanet.errors import UserError
from retinanet.model.presets import PRESETS, Architecture, preset

TINY = Architecture(backbone="test_resnet", channels=64, depth=1)


def built(architecture, num_classes=3):
    with torch.device("meta"):
        return architecture.build(num_classes)


def test_the_paper_is_the_default():
    plain = Architecture()
    assert (plain.backbone, plain.channels, plain.depth, plain.prior) == ("resnet50", 256, 4, 0.01)
    assert (plain.p6_from, plain.relu_before_p7, plain.head_norm) == ("C5", True, "none")
    assert (plain.stride_in_1x1, plain.norm_eps) == (False, None)
    assert plain.anchors == AnchorLattice() and plain.coder == BoxCoder()
    assert all(preset(name) == replace(plain, backbone=name) for name in PRESETS if name.startswith("resnet"))
    assert set(PRESETS) == {"resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "lite"}


def test_lite():
    net = built(preset("lite"))
    assert net.backbone.channels == (40, 112, 320)
    assert {level.out_channels for level in net.fpn.output.values()} == {128}
    assert net.heads.cls.output.in_channels == 128 and len(net.heads.box.conv) == 4


def test_every_field_reaches_the_network():
    lattice, coder = AnchorLattice(ratios=(0.5, 2.0), scales=(1.0, 1.5)), BoxCoder(clamp=2.0)
    net = built(
        replace(
            TINY,
            norm="group",
            frozen_stages=1,
            depth=2,
            head_norm="group",
            p6_from="P5",
            relu_before_p7=False,
            prior=0.2,
            anchors=lattice,
            coder=coder,
        )
    )
    assert any(isinstance(module, nn.GroupNorm) for module in net.backbone.modules())
    assert not net.backbone.body.conv1[0].weight.requires_grad
    assert all(parameter.requires_grad for parameter in net.backbone.body.layer1.parameters())
    assert len(net.heads.cls.conv) == 2 and isinstance(net.heads.box.norm[0], nn.GroupNorm)
    assert net.fpn.output["p6"].in_channels == 64 and built(TINY).fpn.output["p6"].in_channels == 96
    assert not net.fpn.relu_before_p7 and built(TINY).fpn.relu_before_p7
    assert net.heads.prior == 0.2 and net.lattice is lattice and net.coder is coder
    assert net.heads.cls.output.out_channels == 4 * 3 and net.heads.box.output.out_channels == 4 * 4


def test_the_switches_of_the_backbone_reach_it():
    usual, moved = (
        built(Architecture(stride_in_1x1=stride, norm_eps=eps)).backbone.body
        for stride, eps in ((False, None), (True, 0.0))
    )
    for body, first, second, eps in ((usual, 1, 2, 1e-5), (moved, 2, 1, 0.0)):
        for layer in (body.layer2, body.layer3, body.layer4):
            assert layer[0].conv1.stride == (first, first) and layer[0].conv2.stride == (second, second)
            assert layer[1].conv1.stride == layer[1].conv2.stride == (1, 1)
            assert layer[0].downsample[0].stride == (2, 2)
        assert {module.eps for module in body.modules() if isinstance(module, nn.BatchNorm2d)} == {eps}


@torch.no_grad()
def test_floored_strides_are_settled_by_the_input():
    lattice = AnchorLattice(sizes=(8, 16, 32, 64, 128), offset=0, compat=LatticeCompat(floor_strides=True))
    net = replace(TINY, anchors=lattice).build(2).eval()
    for height, width in ((64, 96), (96, 160)):
        raw = net(torch.zeros(1, 3, height, width))
        assert raw.lattice == lattice.over(height, width) and raw.lattice.grids(height, width) == raw.grids
        assert raw.lattice.steps[4] == (height // raw.grids[4][0], width // raw.grids[4][1]) != (128, 128)
    assert net.lattice is lattice


@pytest.mark.parametrize(
    ("name", "hint"), [("resnet5", "did you mean 'resnet50'"), ("light", "did you mean 'lite'"), ("zzz", "Expected")]
)
def test_unknown_preset(name, hint):
    with pytest.raises(UserError, match=f"unknown model '{name}'.*{hint}") as caught:
        preset(name)
    assert "resnet18, resnet34, resnet50, resnet101, resnet152, lite" in str(caught.value)
