"""Fast convolutions for inference on x86 CPUs: Winograd's, or oneDNN's with the weights laid out once.

Every value is that of the plain convolution and activation, but for the rounding. oneDNN is reached by private
operators of torch (``torch.ops.mkldnn``), because nothing public keeps its layout of the weights in eager mode. Where
they are missing, raise or compute something else, :func:`use_fast_convolutions` leaves the network as it is.

Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray 2016) takes 36 products per pair of channels for a tile of 4x4
outputs instead of 144. Most of a RetinaNet's time goes into such convolutions of 256 channels, and runtimes for x86
CPUs do not offer this in fp32. The rounding error is about five times that of the direct sum: some 1e-5 of the largest
value.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from retinanet.model.fold import find_followers, outputs_agree, probe_image, replace_module
from retinanet.model.heads import Tower
from retinanet.model.retinanet import RetinaNet

CHANNELS, TILES = 128, 90  # from which on Winograd's way is faster; both were measured
CHUNK = 400  # tiles at a time, so that what is between the steps stays in the cache
_ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {  # oneDNN's names, and limits
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.Hardswish: ("hardswish", []),
    nn.SiLU: ("swish", []),
}
# Inputs d, filters g: outputs are A' [(G g G') * (B' d B)] A, in the names of the paper's equation 8.
_INPUT = [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
_FILTER = [
    [1 / 4, 0, 0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
]
_OUTPUT = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
_log = logging.getLogger(__name__)


@torch.inference_mode(False)  # inference tensors have no version, by which additions in place are seen
@torch.no_grad()
def use_fast_convolutions(net: RetinaNet) -> RetinaNet:
    """A network with fast convolutions; the given one where this CPU or this torch does not have what they need.

    Args:
        net: on the CPU, in evaluation mode, its batch norms folded, channels last. It is not changed, and the result,
            which shares no weights with it, must not be moved, saved or changed.
    """
    if not (torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")):
        return net
    image = probe_image(net).contiguous(memory_format=torch.channels_last)
    before = _outputs(net, image)
    try:
        fast = _replace_convolutions(copy.deepcopy(net), image)
        after = _outputs(fast, image)
    except (AttributeError, RuntimeError, TypeError) as error:  # no such operator, or one of other arguments
        _log.warning("the fast convolutions cannot be used with torch %s: %s", torch.__version__, error)
        return net
    if not outputs_agree(before, after, tolerance=1e-2 if image.dtype == torch.float32 else 1e-1):
        _log.warning("the fast convolutions compute something else than the plain ones, which are used instead")
        return net
    return fast


class PackedConv(nn.Module):
    """A convolution and its activation by oneDNN; it has no parameters, and cannot be moved or saved.

    Args:
        conv: a plain convolution on the CPU; its weights are laid out for the size of the maps, anew when that changes.
        activation: its kind, one of those that oneDNN knows; by default there is none.
    """

    def __init__(self, conv: nn.Conv2d, activation: type[nn.Module] | None = None) -> None:
        super().__init__()
        self.geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self.activation = ("none", []) if activation is None else _ACTIVATIONS[activation]
        self.bias = None if conv.bias is None else conv.bias.detach()
        self.packed: tuple[torch.Size | None, Tensor] = (None, conv.weight.detach())  # for which size of maps

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W), channels last -> as the convolution and the activation."""
        size, weight = self.packed  # read once: another thread may set it
        if images.shape != size:  # a layout for another size, or for none, can be ten times slower
            plain = weight.to_dense() if weight.is_mkldnn else weight
            weight = torch.ops.mkldnn._reorder_convolution_weight(plain, *self.geometry, list(images.shape))
            self.packed = (images.shape, weight)
        arguments = (*self.geometry, *self.activation, "")
        output: Tensor = torch.ops.mkldnn._convolution_pointwise(images, weight, self.bias, *arguments)
        return output


class WinogradConv(nn.Module):
    """A 3x3 convolution of stride 1 by Winograd's method, or on small maps by oneDNN; it cannot be moved or saved.

    Args:
        conv: one that :func:`suits_winograd`; its weights are copied.
        activation: its kind, applied to the output; it takes ``inplace``.
    """

    def __init__(self, conv: nn.Conv2d, activation: type[nn.Module] | None = None) -> None:
        super().__init__()
        self.direct = PackedConv(conv, activation)
        self.activation = nn.Identity() if activation is None else activation(inplace=True)
        self.bias = None if conv.bias is None else conv.bias.detach().clone()
        transform = torch.tensor(_FILTER, dtype=torch.float64)
        weight = torch.einsum("ia,ocab,jb->ijco", transform, conv.weight.detach().double(), transform)
        self.weight = weight.flatten(0, 1).float().contiguous()  # (36, C, C')
        # both sides of a transform at once: (6 x 6) d (6 x 6)' is a matrix of (36, 36) on the entries of d
        self.into, self.out = (torch.kron(m, m) for m in (torch.tensor(_INPUT).float(), torch.tensor(_OUTPUT).float()))

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W), channels last -> (N, C', H, W), channels last."""
        n, channels, height, width = images.shape
        down, across, outputs = -(-height // 4), -(-width // 4), self.weight.shape[2]  # tiles
        if n * down * across < TILES:
            direct: Tensor = self.direct(images)
            return direct
        right, bottom = 4 * across + 1 - width, 4 * down + 1 - height
        pixels = functional.pad(images.permute(0, 2, 3, 1), (0, 0, 1, right, 1, bottom))  # (N, 4 down + 2, ..., C)
        tiled = pixels.new_empty(n, 4 * down, 4 * across, outputs)
        parts = tiled.view(n, down, 4, across, 4, outputs).permute(2, 4, 0, 1, 3, 5)  # (4, 4, N, down, across, C')
        image, row, column, channel = pixels.stride()
        rows = max(1, CHUNK // (n * across))
        for top in range(0, down, rows):
            count = min(rows, down - top)
            patches = pixels.as_strided(  # (6, 6, N, count, across, C), neighbours overlap by two
                (6, 6, n, count, across, channels),
                (row, column, image, 4 * row, 4 * column, channel),
                pixels.storage_offset() + 4 * top * row,
            )
            entries = torch.mm(self.into, patches.reshape(36, -1)).view(36, -1, channels)
            products = torch.bmm(entries, self.weight)  # (36, tiles, C')
            results = torch.mm(self.out, products.flatten(1))
            parts[:, :, :, top : top + count] = results.view(4, 4, n, count, across, outputs)
        result = tiled[:, :height, :width].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        if self.bias is not None:
            result = result.add_(self.bias[:, None, None])
        output: Tensor = self.activation(result)
        return output


def suits_winograd(conv: nn.Conv2d) -> bool:
    """Whether Winograd's way is right and fast for a convolution."""
    plain = conv.kernel_size == (3, 3) and conv.padding == (1, 1) and conv.padding_mode == "zeros"
    single = conv.stride == conv.dilation == (1, 1) and conv.groups == 1
    wide = min(conv.in_channels, conv.out_channels) >= CHANNELS
    return plain and single and wide and conv.weight.dtype == torch.float32


def _replace_convolutions(net: RetinaNet, image: Tensor) -> RetinaNet:
    """Replace the convolutions of a network, in place; in the backbone, where most are small, by oneDNN's only."""
    backbone: Any = net.backbone.body
    activations: dict[nn.Module, type[nn.Module]] = {}
    for conv, name, activation in find_followers(backbone, image, lambda module: type(module) in _ACTIVATIONS):
        if _can_pack(conv):
            activations[conv] = type(activation)
            replace_module(backbone, name, nn.Identity())
    for name, module in list(backbone.named_modules()):
        if _can_pack(module):
            replace_module(backbone, name, PackedConv(module, activations.get(module)))

    for name, tower in list(net.heads.named_children()):
        if not isinstance(tower, Tower) or not all(isinstance(norm, nn.Identity) for norm in tower.norm):
            continue
        hidden = [conv for conv in tower.conv if isinstance(conv, nn.Conv2d)]
        if len(hidden) == len(tower.conv):  # others are depthwise, whose parts are replaced below
            convolutions = (_fast_convolution(conv, nn.ReLU) for conv in hidden)
            setattr(net.heads, name, nn.Sequential(*convolutions, tower.output))
    for part in (net.fpn, net.heads):
        for name, module in list(part.named_modules()):
            if _can_pack(module):
                replace_module(part, name, _fast_convolution(module))
    return net


def _fast_convolution(conv: nn.Conv2d, activation: type[nn.Module] | None = None) -> nn.Module:
    return WinogradConv(conv, activation) if suits_winograd(conv) else PackedConv(conv, activation)


def _can_pack(module: Any) -> bool:
    return type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def _outputs(net: RetinaNet, image: Tensor) -> list[Tensor]:
    """What the backbone and the heads make of an image."""
    raw = net(image)
    return [*net.backbone.body(image), *raw.logits, *raw.deltas]
