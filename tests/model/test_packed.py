"""Packed convolutions: the same numbers as the plain ones."""

import pytest
import torch
from torch import nn

from retinanet.model.fold import folded
from retinanet.model.packed import PackedConv, can_pack, pack
from retinanet.model.presets import Architecture

pytestmark = pytest.mark.skipif(not can_pack(), reason="oneDNN packs on x86 only")
LAST = torch.channels_last


@pytest.mark.parametrize("activation", [None, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU])
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"groups": 4}, {"dilation": 2}, {"bias": False}])
def test_a_convolution_and_its_activation(activation, options):
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(8, 12, 3, **{"padding": 1, **options}).to(memory_format=LAST)
    with torch.no_grad():
        for tensor in conv.parameters():
            tensor.normal_(generator=generator)
    packed = PackedConv(conv, activation)
    for size in ((2, 8, 9, 13), (1, 8, 3, 3), (3, 8, 40, 40)):
        images = torch.randn(size, generator=generator).contiguous(memory_format=LAST)
        with torch.no_grad():
            plain = conv(images)
            plain = plain if activation is None else activation()(plain)
            torch.testing.assert_close(packed(images), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backbone", ["resnet10t", "resnet18", "tf_efficientnet_lite0", "mobilenetv3_small_050"])
@pytest.mark.parametrize("norm", ["none", "group"])
def test_a_whole_network(backbone, norm):
    """With the sum of a residual block between a convolution and its activation, which must not be fused."""
    torch.manual_seed(0)
    net = Architecture(backbone=backbone, channels=32, depth=2, head_norm=norm).build(3).eval()
    with torch.no_grad():
        for module in net.backbone.body.modules():
            if hasattr(module, "running_var"):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    plain = folded(net).to(memory_format=LAST)
    packed = folded(net).to(memory_format=LAST)
    pack(packed)
    count = sum(isinstance(module, PackedConv) for module in packed.modules())
    assert count > 10 and count > sum(type(module) is nn.Conv2d for module in packed.modules())
    images = torch.randn(2, 3, 96, 128).contiguous(memory_format=LAST)
    with torch.no_grad():
        one, other = plain(images), packed(images)
    for a, b in zip((*one.logits, *one.deltas), (*other.logits, *other.deltas), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(a.abs().max()) + 1e-6)
