"""The moving average against its formula, and copies that compute with their own weights."""

import copy

import pytest
import torch
from torch import nn

from retinanet.training.optim import average_weights
from retinanet.training.precision import prepare_for_cpu


def net_of(*values):
    net = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([values]))
    return net


def test_the_average_follows_its_formula():
    net = net_of(1.0, -2.0)
    average = average_weights(net, 0.5)
    values = torch.tensor([[1.0, -2.0], [3.0, 4.0], [-1.0, 0.5], [10.0, 20.0], [0.0, 7.0]])
    expected = None
    for updates, value in enumerate(values):
        with torch.no_grad():
            net[0].weight.copy_(value[None])
            net[1].running_mean.fill_(float(value[0]))
            net[1].num_batches_tracked.fill_(updates + 1)
        average.update_parameters(net)
        decay = min(0.5, (updates + 1) / (updates + 10))
        expected = value if expected is None else decay * expected + (1 - decay) * value
        torch.testing.assert_close(average.module[0].weight[0], expected)
        torch.testing.assert_close(average.module[1].running_mean[0], expected[0])
        assert int(average.module[1].num_batches_tracked) == updates + 1
    assert decay == pytest.approx(5 / 14) and min(0.5, 9 / 18) == 0.5


def test_the_decay_reaches_its_limit():
    net = net_of(0.0, 0.0)
    average = average_weights(net, 0.2)
    for _ in range(3):
        average.update_parameters(net)
    with torch.no_grad():
        net[0].weight.fill_(1.0)
    average.update_parameters(net)
    torch.testing.assert_close(average.module[0].weight, torch.full((1, 2), 0.8))


def test_the_average_does_not_follow_the_net_by_itself():
    net = net_of(1.0, 1.0)
    average = average_weights(net, 0.9)
    average.update_parameters(net)
    with torch.no_grad():
        net[0].weight.fill_(5.0)
    assert average.module[0].weight.tolist() == [[1.0, 1.0]]


def test_copies_of_a_prepared_net_compute_with_their_own_weights():
    net = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4, bias=False))
    prepare_for_cpu(net)
    images = torch.randn(2, 4, 6, 6)
    for other in (copy.deepcopy(net), average_weights(net, 0.9).module):
        with torch.no_grad():
            other[0].weight.zero_()
            assert float(other(images).abs().max()) == 0
            assert float(net(images).abs().min()) > 0


@pytest.mark.parametrize("stride", [1, 2])
def test_prepared_depthwise_convolutions_compute_in_fp32_under_autocast(stride):
    depthwise = nn.Conv2d(8, 8, 3, stride=stride, padding=1, groups=8)
    images = torch.randn(2, 8, 9, 9)
    expected = depthwise(images)
    expected.square().sum().backward()
    gradient = depthwise.weight.grad.clone()
    net = nn.Sequential(depthwise)
    depthwise.weight.grad = None
    prepare_for_cpu(net)
    with torch.autocast("cpu", torch.bfloat16):
        computed = net(images)
    assert computed.dtype == torch.float32
    torch.testing.assert_close(computed, expected, rtol=0, atol=0)
    computed.square().sum().backward()
    torch.testing.assert_close(depthwise.weight.grad, gradient, rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert net(images.bfloat16()).dtype == torch.bfloat16  # what comes next keeps its format


def test_other_convolutions_stay_as_they_are():
    net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(1, 4, 3))
    prepare_for_cpu(net)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(
            layer(torch.randn(1, layer.in_channels, 5, 5)).dtype == torch.bfloat16 and "forward" not in vars(layer)
            for layer in net
        )
    assert list(net.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"]
