"""Batch norms folded into convolutions: the same network, with less to do."""

import copy

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from retinanet.model.fold import fold_batch_norms, pad_statically
from retinanet.model.presets import Architecture


def network(backbone, **options):
    """A network in training mode whose norms have seen something."""
    torch.manual_seed(0)
    net = Architecture(backbone=backbone, **{"channels": 16, "depth": 1, "norm": "batch", **options}).build(2)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for norm in norms(net):
            norm.running_mean.uniform_(-0.3, 0.3, generator=generator)
            norm.running_var.uniform_(0.5, 1.5, generator=generator)
            norm.weight.uniform_(0.7, 1.3, generator=generator)
            norm.bias.uniform_(-0.3, 0.3, generator=generator)
    return net


def norms(net):
    return [module for module in net.modules() if isinstance(module, _BatchNorm)]


def outputs(net, size=(96, 160)):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        raw = net(torch.randn(2, 3, *size, generator=generator))
    return (*raw.logits, *raw.deltas)


def assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max()))


@pytest.mark.parametrize("norm", ["frozen", "batch"])
@pytest.mark.parametrize("backbone", ["resnet10t", "resnet18", "test_resnet", "tf_mobilenetv3_small_minimal_100"])
def test_the_same_outputs_without_batch_norms(backbone, norm):
    net = network(backbone, norm=norm)
    before, mode = copy.deepcopy(net.state_dict()), net.training
    quick = fold_batch_norms(net)
    assert norms(net) and not norms(quick) and not quick.training
    assert not any(parameter.requires_grad for parameter in quick.parameters())
    assert net.training == mode and all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert_equal(outputs(net.eval()), outputs(quick))


def test_a_norm_that_no_convolution_feeds_stays():
    """In a DenseNet most norms come before their convolution, and after a concatenation."""
    net = network("densenet121")
    quick = fold_batch_norms(net)
    assert 0 < len(norms(quick)) < len(norms(net))
    assert_equal(outputs(net.eval(), (64, 64)), outputs(quick, (64, 64)))


class Shared(nn.Module):
    """Takes the output of a convolution twice."""

    def __init__(self, channels, other):
        super().__init__()
        self.one, self.other = nn.BatchNorm2d(channels), other
        nn.init.uniform_(self.one.running_mean, -2, -1)  # what is negative a ReLU would hide

    def forward(self, value):
        return self.one(value) + self.other(value)


@pytest.mark.parametrize("other", [nn.BatchNorm2d, lambda channels: nn.Identity()], ids=["two norms", "a bypass"])
def test_a_convolution_whose_output_is_used_twice(other):
    net = network("test_resnet")
    backbone = net.backbone.body
    name, conv = next((name, module) for name, module in backbone.named_modules() if isinstance(module, nn.Conv2d))
    parent, _, child = name.rpartition(".")
    shared = Shared(conv.out_channels, other(conv.out_channels))
    setattr(backbone.get_submodule(parent), child, nn.Sequential(conv, shared))
    quick = fold_batch_norms(net)
    assert any(isinstance(module, Shared) and norms(module) for module in quick.modules())
    assert_equal(outputs(net.eval()), outputs(quick))


def test_group_norms_stay():
    net = network("resnet10t", norm="group", head_norm="group")
    quick = fold_batch_norms(net)
    groups = [module for module in net.modules() if isinstance(module, nn.GroupNorm)]
    assert groups and len(groups) == sum(isinstance(module, nn.GroupNorm) for module in quick.modules())
    assert_equal(outputs(net.eval()), outputs(quick))


@pytest.mark.parametrize("backbone", ["tf_mobilenetv3_small_minimal_100", "tf_efficientnet_lite0"])
def test_padding_that_is_settled(backbone):
    net = fold_batch_norms(network(backbone))
    fixed = copy.deepcopy(net)
    pad_statically(fixed)
    assert any(isinstance(module, Conv2dSame) for module in net.modules())
    assert not any(isinstance(module, Conv2dSame) for module in fixed.modules())
    for size in ((32, 32), (64, 96), (160, 128)):
        for one, other in zip(outputs(net, size), outputs(fixed, size), strict=True):
            assert torch.equal(one, other)


def test_other_padding_is_left_alone():
    net = fold_batch_norms(network("resnet10t"))
    before = [type(module) for module in net.modules()]
    pad_statically(net)
    assert [type(module) for module in net.modules()] == before
