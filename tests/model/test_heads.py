import math
from functools import partial

import pytest
import torch
from torch import nn
from torchvision.models.detection.retinanet import RetinaNetHead

from retinanet.errors import UserError
from retinanet.model.heads import Heads

K, A, CHANNELS = 5, 9, 64


def pyramid(channels=CHANNELS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, channels, *size, generator=generator) for size in ((7, 9), (4, 5), (2, 3), (1, 2), (1, 1))]


def rows(level, values):
    """(N, A*V, H, W) -> (N, H*W*A, V), torchvision's order."""
    n, channels, height, width = level.shape
    return level.reshape(n, channels // values, values, height, width).permute(0, 3, 4, 1, 2).reshape(n, -1, values)


@pytest.mark.parametrize("norm", ["none", "group"])
@torch.no_grad()
def test_equals_torchvision(norm):
    """Version 1 of torchvision's head has no norm, version 2 group norm."""
    theirs = RetinaNetHead(CHANNELS, A, K, norm_layer=partial(nn.GroupNorm, 32) if norm == "group" else None)
    mine = Heads(num_classes=K, channels=CHANNELS, norm=norm)
    for tower, head, output in (
        (mine.cls, theirs.classification_head, theirs.classification_head.cls_logits),
        (mine.box, theirs.regression_head, theirs.regression_head.bbox_reg),
    ):
        for parameter in tower.parameters():
            nn.init.normal_(parameter, std=0.2)
        output.load_state_dict(tower.output.state_dict())
        for i, block in enumerate(head.conv):
            block[0].load_state_dict(tower.conv[i].state_dict())
            if norm == "group":
                block[1].load_state_dict(tower.norm[i].state_dict())
    levels = pyramid()
    expected = theirs(levels)
    logits, deltas = mine(levels)
    assert (torch.cat([rows(x, K) for x in logits], 1) - expected["cls_logits"]).abs().max() == 0
    assert (torch.cat([rows(x, 4) for x in deltas], 1) - expected["bbox_regression"]).abs().max() == 0


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (96, 32), (64, 32), (32, 16), (100, 4), (7, 1), (2, 1)])
@torch.no_grad()
def test_groups(channels, groups):
    heads = Heads(num_classes=K, channels=channels, norm="group", depth=1).train()
    assert heads.cls.norm[0].num_groups == groups
    logits, _ = heads([torch.randn(1, channels, 1, 1)])  # one image, one cell: what P7 of a small image is
    assert logits[0].isfinite().all()


@torch.no_grad()
def test_features_are_left_as_they_were():
    """The ReLU works in place, on its own maps only: both towers must read the same feature."""
    heads, levels = Heads(num_classes=K, channels=CHANNELS), pyramid()
    before = [level.clone() for level in levels]
    heads(levels)
    assert all(torch.equal(a, b) for a, b in zip(before, levels, strict=True))


def test_towers_are_untied():
    heads = Heads(num_classes=K, channels=CHANNELS, depth=2)
    logits, deltas = heads(pyramid())
    sum(level.square().sum() for level in logits).backward()
    assert all(p.grad is not None for p in heads.cls.parameters())
    assert all(p.grad is None for p in heads.box.parameters())
    assert len(deltas) == len(logits) == 5


def test_initialisation_and_prior():
    torch.manual_seed(0)
    heads = Heads(num_classes=80)
    assert heads.cls.output.bias.unique().item() == pytest.approx(-4.59511985, abs=1e-6)
    for tower in (heads.cls, heads.box):
        assert len(tower.conv) == 4
        for module in (*tower.conv, tower.output):
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.02)
            assert abs(module.weight.mean().item()) < 2e-4
        assert not any(module.bias.any() for module in tower.conv)
    assert not heads.box.output.bias.any()
    assert sum(p.numel() for p in heads.cls.parameters()) == 4_019_920
    assert sum(p.numel() for p in heads.box.parameters()) == 2_443_300


@pytest.mark.parametrize("prior", [0.01, 0.3])
@torch.no_grad()
def test_prior_is_the_first_answer(prior):
    heads = Heads(num_classes=K, channels=CHANNELS, prior=prior)
    assert heads.prior == prior
    for logits in heads([torch.zeros(1, CHANNELS, 2, 2)])[0]:
        assert logits.sigmoid().allclose(torch.tensor(prior), atol=1e-6)
        assert logits.flatten()[0].item() == pytest.approx(math.log(prior / (1 - prior)), abs=1e-6)


def test_group_norm_takes_the_place_of_the_bias():
    """The counts of section 7's TV2 row: 91 classes, 9 anchors, 256 channels."""
    with torch.device("meta"):
        heads = Heads(num_classes=91, norm="group")
    assert sum(p.numel() for p in heads.cls.parameters()) == 4_249_139
    assert sum(p.numel() for p in heads.box.parameters()) == 2_444_324


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_classes": 0}, "at least one class, got 0"),
        ({"num_classes": 2, "prior": 0.0}, "prior is a probability between 0 and 1, got 0.0"),
        ({"num_classes": 2, "prior": 1.0}, "prior is a probability"),
        ({"num_classes": 2, "norm": "batch"}, "head norm is none or group, got 'batch'"),
        ({"num_classes": 2, "channels": 0}, "1 channel and 0 hidden convolutions or more, got 0 and 4"),
        ({"num_classes": 2, "depth": -1}, "1 channel and 0 hidden convolutions or more, got 256 and -1"),
    ],
)
def test_mistakes(options, match):
    with pytest.raises(UserError, match=match):
        Heads(**options)


@torch.no_grad()
def test_shared_towers_are_one_tower_with_two_outputs():
    shared = Heads(num_classes=K, channels=16, depth=2, shared=True)
    apart = Heads(num_classes=K, channels=16, depth=2)
    for tower, last in ((apart.cls, shared.cls), (apart.box, shared.box)):
        tower.conv.load_state_dict(shared.shared.conv.state_dict())
        tower.output.load_state_dict(last.output.state_dict())
    levels = pyramid(16)
    for one, other in zip(shared(levels), apart(levels), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_depthwise_towers_have_a_fraction_of_the_weights():
    plain, depthwise = (Heads(num_classes=K, channels=128, depthwise=d).cls.conv for d in (False, True))
    count = [sum(weight.numel() for weight in conv.parameters() if weight.ndim > 1) for conv in (plain, depthwise)]
    assert count == [4 * 9 * 128 * 128, 4 * (25 + 128) * 128]


@pytest.mark.parametrize("depthwise", [False, True])
@torch.no_grad()
def test_he_keeps_the_size_of_the_signal(depthwise):
    """Through four convolutions N(0, 0.01) leaves less than a hundredth of it."""
    torch.manual_seed(0)
    level = torch.randn(2, 128, 24, 24).relu()
    sizes = []
    for init in ("he", "normal"):
        heads = Heads(num_classes=K, channels=128, init=init, depthwise=depthwise)
        feature = level
        for conv in heads.cls.conv:
            feature = conv(feature).relu()
        sizes.append(float(feature[..., 6:-6, 6:-6].square().mean() / level.square().mean()) ** 0.5)
        assert heads.cls.output.weight.std().item() == pytest.approx(0.001 if init == "he" else 0.01, rel=0.05)
    assert 0.5 < sizes[0] < 2 and sizes[1] < 0.01
