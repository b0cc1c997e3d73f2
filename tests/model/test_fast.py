"""Fast convolutions: the same numbers as the plain ones, and plain ones where there are none."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from retinanet.model import fast
from retinanet.model.fast import CHUNK, PackedConv, WinogradConv, suits_winograd, use_fast_convolutions
from retinanet.model.fold import fold_batch_norms
from retinanet.model.presets import Architecture

needs_onednn = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")),
    reason="oneDNN packs on x86 only",
)
LAST = torch.channels_last


@needs_onednn
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


@needs_onednn
def test_the_weights_are_laid_out_for_one_size_only():
    """However many sizes of maps there were, memory holds one layout of the weights."""
    conv = nn.Conv2d(8, 12, 3, padding=1).to(memory_format=LAST)
    packed = PackedConv(conv)
    with torch.no_grad():
        for side in range(3, 23):
            packed(torch.zeros(1, 8, 3, side).contiguous(memory_format=LAST))
    size, weight = packed.packed
    assert size == (1, 8, 3, 22) and weight.is_mkldnn and weight.shape == conv.weight.shape
    held = [*packed.packed, *vars(packed).values()]
    assert sum(isinstance(value, torch.Tensor) for value in held) == 2  # these weights, and the bias


@needs_onednn
@pytest.mark.parametrize("backbone", ["resnet10t", "resnet18", "tf_efficientnet_lite0", "mobilenetv3_small_050"])
@pytest.mark.parametrize("norm", ["none", "group"])
@pytest.mark.parametrize(("depthwise", "shared"), [(False, False), (True, False), (True, True)])
def test_a_whole_network(backbone, norm, depthwise, shared):
    """With the sum of a residual block between a convolution and its activation, which must not be fused."""
    torch.manual_seed(0)
    towers = {"depthwise": depthwise, "shared": shared}
    net = Architecture(backbone=backbone, channels=32, depth=2, head_norm=norm, **towers).build(3).eval()
    with torch.no_grad():
        for module in net.backbone.body.modules():
            if hasattr(module, "running_var"):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    plain = fold_batch_norms(net).to(memory_format=LAST)
    packed = use_fast_convolutions(plain)
    count = sum(isinstance(module, PackedConv) for module in packed.modules())
    assert count > 10 and count > sum(type(module) is nn.Conv2d for module in packed.modules())
    images = torch.randn(2, 3, 96, 128).contiguous(memory_format=LAST)
    with torch.no_grad():
        eager, fast, exact = plain(images), packed(images), copy.deepcopy(plain).double()(images.double())
    outputs = [(*raw.logits, *raw.deltas) for raw in (eager, fast, exact)]
    for a, b, true in zip(*outputs, strict=True):  # a group norm over the few cells of P7 makes rounding errors large
        assert float((b - true).abs().max()) <= 3 * float((a - true).abs().max()) + 1e-6


@needs_onednn
@pytest.mark.parametrize("fault", ["missing", "raises", "other values"])
def test_a_plain_network_where_an_operator_fails(fault, monkeypatch, caplog):
    plain = fold_batch_norms(Architecture(backbone="test_resnet", channels=16, depth=1).build(2)).to(memory_format=LAST)
    known = torch.ops.mkldnn

    def convolve(*arguments):
        if fault == "raises":
            raise RuntimeError("could not create a primitive")
        return known._convolution_pointwise(*arguments) + 1

    operators = SimpleNamespace(_reorder_convolution_weight=known._reorder_convolution_weight)
    if fault != "missing":
        operators._convolution_pointwise = convolve
    assert use_fast_convolutions(plain) is not plain
    monkeypatch.setattr(torch.ops, "mkldnn", operators)
    assert use_fast_convolutions(plain) is plain
    assert not any(isinstance(module, PackedConv) for module in plain.modules())
    assert "fast convolutions" in caplog.text


def test_a_plain_network_on_other_cpus(monkeypatch):
    plain = fold_batch_norms(Architecture(backbone="test_resnet", channels=16, depth=1).build(2))
    monkeypatch.setattr(fast.torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert use_fast_convolutions(plain) is plain


@pytest.mark.parametrize("size", [(1, 4, 4), (2, 1, 1), (1, 5, 7), (3, 16, 18), (1, 3, 50), (1, 100, 83)])
@pytest.mark.parametrize("activation", [None, nn.ReLU])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_direct_sum(size, activation, bias, monkeypatch):
    monkeypatch.setattr(fast, "TILES", 0)
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(128, 130, 3, padding=1, bias=bias)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.normal_(generator=generator)
    images = torch.randn(size[0], 128, *size[1:], generator=generator).contiguous(memory_format=torch.channels_last)
    before = images.clone()
    with torch.no_grad():
        result = WinogradConv(conv, activation)(images)
        exact = functional.conv2d(
            images.double(), conv.weight.double(), None if conv.bias is None else conv.bias.double(), padding=1
        )
    exact = exact if activation is None else exact.relu()
    assert result.dtype == torch.float32 and result.shape == exact.shape
    assert result.is_contiguous(memory_format=torch.channels_last) and torch.equal(images, before)
    # the direct sum in float32 is off by some 1e-6 of the largest value
    assert float((result - exact).abs().max()) <= 2e-5 * float(exact.abs().max())


def test_the_largest_size_takes_several_chunks():
    assert CHUNK < 25 * 21, "tiles of 4 x 4 on 100 x 83"


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 1, "padding": 0},
        {"kernel_size": 5, "padding": 2},
        {"padding": 0},
        {"stride": 2},
        {"dilation": 2, "padding": 2},
        {"groups": 2},
        {"padding_mode": "reflect"},
        {"out_channels": 36},
        {"in_channels": 64},
        {"dtype": torch.bfloat16},
    ],
)
def test_what_it_does_not_suit(options):
    usual = {"in_channels": 128, "out_channels": 128, "kernel_size": 3, "padding": 1}
    assert suits_winograd(nn.Conv2d(**usual))
    assert not suits_winograd(nn.Conv2d(**{**usual, **options}))
