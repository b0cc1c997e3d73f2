import pytest
import torch
from torch.nn import functional
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

from retinanet.errors import UserError
from retinanet.model.pyramid import FeaturePyramid

WIDTHS = (6, 10, 14)


def features(height, width, seed=0):
    """C3, C4, C5 of an input whose C3 is height x width."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(-(-height // step), -(-width // step)) for step in (1, 2, 4)]
    return [torch.randn(2, channels, *size, generator=generator) for channels, size in zip(WIDTHS, sizes, strict=True)]


def with_random_bias(net):
    for parameter in net.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter)
    return net


def torchvisions(mine, p6_from):
    """torchvision's pyramid with the same weights. It takes P5 where the channels of both maps are the same."""
    channels = mine.output["p3"].out_channels
    extra = LastLevelP6P7(WIDTHS[-1] if p6_from == "C5" else channels, channels)
    theirs = FeaturePyramidNetwork(list(WIDTHS), channels, extra_blocks=extra)
    for i, level in enumerate(("p3", "p4", "p5")):
        theirs.inner_blocks[i][0].load_state_dict(mine.lateral[level].state_dict())
        theirs.layer_blocks[i][0].load_state_dict(mine.output[level].state_dict())
    for level in ("p6", "p7"):
        getattr(theirs.extra_blocks, level).load_state_dict(mine.output[level].state_dict())
    return theirs


@pytest.mark.parametrize("size", [(16, 12), (13, 9), (1, 1), (1, 25)])
@pytest.mark.parametrize("p6_from", ["C5", "P5"])
@torch.no_grad()
def test_equals_torchvision(p6_from, size):
    mine = with_random_bias(FeaturePyramid(in_channels=WIDTHS, channels=8, p6_from=p6_from))
    theirs = torchvisions(mine, p6_from)
    maps = features(*size)
    expected = list(theirs({str(i): level for i, level in enumerate(maps)}).values())
    got = mine(maps)
    assert len(got) == len(expected) == 5
    assert max((a - b).abs().max().item() for a, b in zip(got, expected, strict=True)) == 0


@torch.no_grad()
def test_upsampling_doubles_and_crops():
    net = with_random_bias(FeaturePyramid(in_channels=WIDTHS, channels=8))
    c3, c4, c5 = features(13, 9)

    def doubled(coarse, fine):
        return coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, : fine.shape[2], : fine.shape[3]]

    m5 = net.lateral["p5"](c5)
    m4 = net.lateral["p4"](c4) + doubled(m5, c4)
    m3 = net.lateral["p3"](c3) + doubled(m4, c3)
    got = net([c3, c4, c5])
    for level, inner in zip(("p3", "p4", "p5"), (m3, m4, m5), strict=True):
        expected = functional.conv2d(inner, net.output[level].weight, net.output[level].bias, padding=1)
        assert torch.equal(got[int(level[1]) - 3], expected)


@pytest.mark.parametrize("relu", [True, False])
@torch.no_grad()
def test_relu_before_p7(relu):
    net = with_random_bias(FeaturePyramid(in_channels=WIDTHS, channels=8, relu_before_p7=relu))
    *_, p6, p7 = net(features(13, 9))
    assert (p6 < 0).any()
    inside = p6.clamp(min=0) if relu else p6
    assert torch.equal(p7, functional.conv2d(inside, net.output["p7"].weight, net.output["p7"].bias, 2, 1))


def test_initialisation_is_xavier_fill():
    torch.manual_seed(0)
    net = FeaturePyramid(in_channels=(128, 256, 512), channels=64)
    for module in (*net.lateral.values(), *net.output.values()):
        bound = (3 / module.weight[0].numel()) ** 0.5
        assert bound * 0.99 < module.weight.abs().max() <= bound * 1.000001
        assert module.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
        assert not module.bias.any()


def test_mistakes():
    with pytest.raises(UserError, match="p6_from is C5 or P5, got 'c5'"):
        FeaturePyramid(in_channels=WIDTHS, channels=8, p6_from="c5")
