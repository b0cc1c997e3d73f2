"""Batch norms folded into the convolutions before them: the same network for inference, fewer passes over memory."""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from retinanet.model.retinanet import RetinaNet

_PROBE = 64  # pixels of the image that shows which norm follows which convolution


@torch.no_grad()
def folded(net: RetinaNet) -> RetinaNet:
    """A copy of a network, in evaluation mode, whose batch norms are part of the convolutions that they follow.

    Which norm follows which convolution is seen by running the backbone once, so any will do; a norm that follows
    something else stays; and all stay where the output of a convolution is used beside its norm too.

    Args:
        net: any network; it is not changed.
    """
    plain = copy.deepcopy(net).eval().requires_grad_(False)
    net = copy.deepcopy(plain)
    backbone: Any = net.backbone.body
    image = next(net.parameters()).new_ones(1, 3, _PROBE, _PROBE)
    before = backbone(image)
    for conv, name, norm in _pairs(backbone, image):
        weight, bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        conv.weight, conv.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
        parent, _, child = name.rpartition(".")
        setattr(backbone.get_submodule(parent), child, getattr(norm, "act", nn.Identity()))  # timm's norms may activate
    for one, other in zip(before, backbone(image), strict=True):
        near = torch.isclose(one, other, rtol=1e-2, atol=1e-3 * float(one.nan_to_num().abs().max()))
        if not bool((near | ~one.isfinite()).all()):
            return plain
    return net


def _pairs(backbone: nn.Module, image: Tensor) -> list[tuple[nn.Conv2d, str, Any]]:
    """Each convolution with the name of the one norm, and the norm, that takes its output."""
    made: list[tuple[Tensor, nn.Conv2d]] = []  # tensors are held, so that no two have the same identity
    pairs: list[tuple[nn.Conv2d, str, Any]] = []
    handles = []
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(lambda conv, _, output: made.append((output, conv))))
        elif isinstance(module, _BatchNorm):

            def seen(norm: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                pairs.extend((conv, name, norm) for output, conv in made if output is inputs[0])

            handles.append(module.register_forward_pre_hook(seen))
    try:
        backbone(image)
    finally:
        for handle in handles:
            handle.remove()
    calls, convs = [conv for _, conv in made], [conv for conv, _, _ in pairs]
    norms = [norm for _, _, norm in pairs]
    return [
        (conv, name, norm)
        for conv, name, norm in pairs
        if calls.count(conv) == convs.count(conv) == norms.count(norm) == 1 and norm.track_running_stats
    ]


def pad_statically(net: RetinaNet) -> None:
    """Settle the padding of timm's "same" convolutions, in place, for images whose sides are multiples of 32.

    Such a convolution pads by the size of its input. Where the stride divides the input, the amount is always the same.
    """
    backbone: Any = net.backbone.body
    same: list[tuple[str, Any]] = [pair for pair in backbone.named_modules() if isinstance(pair[1], Conv2dSame)]
    for name, conv in same:
        down, across = (
            max(0, dilation * (kernel - 1) + 1 - stride)
            for kernel, stride, dilation in zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)
        )
        pad = nn.ZeroPad2d((across // 2, across - across // 2, down // 2, down - down // 2))
        plain = nn.Conv2d(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, 0, conv.dilation, conv.groups
        )
        plain.weight, plain.bias = conv.weight, conv.bias
        parent, _, child = name.rpartition(".")
        setattr(backbone.get_submodule(parent), child, nn.Sequential(pad, plain))
