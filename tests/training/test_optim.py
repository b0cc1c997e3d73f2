"""Parameter groups: what decays, what learns slower, and how the rate grows with the batch."""

import pytest
import torch

from retinanet.model.presets import Architecture
from retinanet.training.config import OptimConfig
from retinanet.training.optim import build_optimizer


@pytest.fixture(scope="module")
def net():
    return Architecture(backbone="resnet10t", norm="batch", channels=32, depth=1, head_norm="group").build(2)


def by_parameter(optimizer):
    return {id(p): group for group in optimizer.param_groups for p in group["params"]}


def test_every_trained_parameter_once_and_decay_on_matrices_only(net):
    optimizer = build_optimizer(net, OptimConfig(weight_decay=0.3), 8)
    listed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in net.parameters() if p.requires_grad)
    groups = by_parameter(optimizer)
    decayed = {name for name, p in net.named_parameters() if groups[id(p)]["weight_decay"] == 0.3}
    bare = {name for name, p in net.named_parameters() if groups[id(p)]["weight_decay"] == 0.0}
    assert decayed | bare == {name for name, _ in net.named_parameters()}
    kinds = dict(net.named_modules())
    for name in decayed:
        assert name.endswith(".weight") and isinstance(kinds[name.removesuffix(".weight")], torch.nn.Conv2d)
    assert "heads.cls.output.bias" in bare and "heads.cls.norm.0.weight" in bare and "backbone.body.bn1.weight" in bare


def test_frozen_parameters_are_left_out():
    net = Architecture(backbone="resnet10t", norm="frozen", frozen_stages=2, channels=32, depth=1).build(2)
    groups = by_parameter(build_optimizer(net, OptimConfig(), 8))
    frozen = [name for name, p in net.named_parameters() if id(p) not in groups]
    assert frozen and all(name.startswith("backbone.") for name in frozen)
    assert not any(p.requires_grad for name, p in net.named_parameters() if name in frozen)


def test_the_backbone_learns_at_its_own_rate(net):
    groups = by_parameter(build_optimizer(net, OptimConfig(lr=0.8, backbone_lr=0.25, lr_batch=8), 8))
    for name, parameter in net.named_parameters():
        wanted = 0.2 if name.startswith("backbone.") else 0.8
        assert groups[id(parameter)]["peak_lr"] == pytest.approx(wanted), name
        assert groups[id(parameter)]["lr"] == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("config", "batch", "rate"),
    [
        (OptimConfig(), 8, 5e-4),
        (OptimConfig(), 2, 1.25e-4),
        (OptimConfig(optimizer="sgd"), 16, 0.01),
        (OptimConfig(optimizer="sgd"), 32, 0.02),
        (OptimConfig(lr=1e-3), 16, 2e-3),
        (OptimConfig(lr=1e-3, lr_batch=16), 16, 1e-3),
    ],
)
def test_the_rate_grows_with_the_batch(net, config, batch, rate):
    groups = build_optimizer(net, config, batch).param_groups
    assert [group["peak_lr"] for group in groups] == pytest.approx([rate] * len(groups))


def test_defaults_of_the_two(net):
    adamw, sgd = (build_optimizer(net, OptimConfig(optimizer=name), 8) for name in ("adamw", "sgd"))
    assert isinstance(adamw, torch.optim.AdamW) and isinstance(sgd, torch.optim.SGD)
    assert {group["weight_decay"] for group in adamw.param_groups} == {0.05, 0.0}
    assert {group["weight_decay"] for group in sgd.param_groups} == {1e-4, 0.0}
    assert {group["momentum"] for group in sgd.param_groups} == {0.9}
