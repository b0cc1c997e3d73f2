"""Batch norms folded into the convolutions before them: the same network for inference, fewer passes over memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from retinanet.model.retinanet import RetinaNet

_PROBE = 64  # pixels of the side of the image that shows which module follows which convolution


@torch.inference_mode(False)  # inference tensors have no version, by which additions in place are seen
@torch.no_grad()
def fold_batch_norms(net: RetinaNet) -> RetinaNet:
    """A copy of a network, in evaluation mode, whose batch norms are part of the convolutions that they follow.

    Which norm follows which convolution is seen by running the backbone once, so any will do; a norm that follows
    something else stays; and all stay where the output of a convolution is used beside its norm too.

    Args:
        net: any network; it is not changed.
    """
    plain = copy.deepcopy(net).eval().requires_grad_(False)
    net = copy.deepcopy(plain)
    backbone: Any = net.backbone.body
    image = probe_image(net)
    before = backbone(image)
    for conv, name, norm in find_followers(backbone, image, lambda module: isinstance(module, _BatchNorm)):
        if not norm.track_running_stats:
            continue
        weight, bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        conv.weight, conv.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
        replace_module(backbone, name, getattr(norm, "act", nn.Identity()))  # timm's norms may activate
    return net if outputs_agree(before, backbone(image), tolerance=1e-3) else plain


def probe_image(net: nn.Module) -> Tensor:
    """A white image (1, 3, 64, 64) of the type, and on the device, of a network's weights."""
    return next(net.parameters()).new_ones(1, 3, _PROBE, _PROBE)


def find_followers(
    root: nn.Module, image: Tensor, is_follower: Callable[[nn.Module], bool]
) -> list[tuple[nn.Conv2d, str, Any]]:
    """The module that takes the output of a convolution, seen by running ``root`` once.

    Args:
        root: takes ``image``.
        image: (1, 3, H, W).
        is_follower: the modules of interest.

    Returns:
        For each convolution whose output goes, unchanged, to one such module: the convolution, and the name and the
        module that follows. Both are called once. Whether the output is used elsewhere too is not seen.
    """
    made: list[tuple[Tensor, int, nn.Conv2d]] = []  # tensors are held, so that no two have the same identity
    pairs: list[tuple[nn.Conv2d, str, Any]] = []
    calls: list[nn.Module] = []
    handles = []
    for name, module in root.named_modules():
        if isinstance(module, nn.Conv2d):
            # the version tells whether something was added in place before the follower
            handles.append(module.register_forward_hook(lambda conv, _, out: made.append((out, out._version, conv))))
        elif is_follower(module):

            def record(follower: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                calls.append(follower)
                for output, version, conv in made:
                    if output is inputs[0] and output._version == version:
                        pairs.append((conv, name, follower))

            handles.append(module.register_forward_pre_hook(record))
    try:
        root(image)
    finally:
        for handle in handles:
            handle.remove()
    convs, leaders = [conv for _, _, conv in made], [conv for conv, _, _ in pairs]
    return [pair for pair in pairs if convs.count(pair[0]) == leaders.count(pair[0]) == calls.count(pair[2]) == 1]


def replace_module(root: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` where ``root`` has one of the dotted ``name``."""
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, module)


def outputs_agree(before: Sequence[Tensor], after: Sequence[Tensor], *, tolerance: float) -> bool:
    """Whether tensors are equal within 1 % and ``tolerance`` of their largest value; what was not finite is passed."""
    for old, new in zip(before, after, strict=True):
        near = torch.isclose(old, new, rtol=1e-2, atol=tolerance * float(old.nan_to_num().abs().max()))
        if not bool((near | ~old.isfinite()).all()):
            return False
    return True


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
        replace_module(backbone, name, nn.Sequential(pad, plain))
