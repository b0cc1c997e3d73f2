"""Winograd's convolution against the direct sum in float64."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from retinanet.model.winograd import CHUNK, WinogradConv, suits, tiles


@pytest.mark.parametrize("size", [(1, 4, 4), (2, 1, 1), (1, 5, 7), (3, 16, 18), (1, 3, 50), (1, 100, 83)])
@pytest.mark.parametrize("activation", [None, nn.ReLU])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_direct_sum(size, activation, bias):
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(128, 130, 3, padding=1, bias=bias)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.normal_(generator=generator)
    images = torch.randn(size[0], 128, *size[1:], generator=generator).contiguous(memory_format=torch.channels_last)
    before = images.clone()
    with torch.no_grad():
        found = WinogradConv(conv, activation)(images)
        exact = functional.conv2d(
            images.double(), conv.weight.double(), None if conv.bias is None else conv.bias.double(), padding=1
        )
    exact = exact if activation is None else exact.relu()
    assert found.dtype == torch.float32 and found.shape == exact.shape
    assert found.is_contiguous(memory_format=torch.channels_last) and torch.equal(images, before)
    # the direct sum in float32 is off by some 1e-6 of the largest value
    assert float((found - exact).abs().max()) <= 2e-5 * float(exact.abs().max())


def test_the_largest_size_takes_several_chunks():
    assert tiles(torch.empty(1, 1, 100, 83)) == 25 * 21 > CHUNK


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
    assert suits(nn.Conv2d(**usual))
    assert not suits(nn.Conv2d(**{**usual, **options}))
