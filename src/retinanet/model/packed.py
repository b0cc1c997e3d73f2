"""Quick convolutions for inference on x86 CPUs: Winograd's, or oneDNN's with the weights laid out once.

Every value is that of the plain convolution and activation, but for the rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from retinanet.model.heads import Tower
from retinanet.model.retinanet import RetinaNet
from retinanet.model.winograd import TILES, WinogradConv, suits, tiles

_PROBE = 64  # pixels of the image that shows which activation follows which convolution
_ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {  # oneDNN's names, and limits
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.Hardswish: ("hardswish", []),
    nn.SiLU: ("swish", []),
}


class PackedConv(nn.Module):
    """A convolution and its activation; it has no parameters, and cannot be moved or saved.

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


def can_pack() -> bool:
    """Whether this CPU has what :func:`pack` needs."""
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")


@torch.no_grad()
def pack(net: RetinaNet) -> None:
    """Pack the convolutions of a network on the CPU, in place; it must not change after that.

    Args:
        net: in evaluation mode, its batch norms folded.
    """
    backbone: Any = net.backbone.body
    image = next(net.parameters()).new_ones(1, 3, _PROBE, _PROBE).contiguous(memory_format=torch.channels_last)
    before = backbone(image)
    followers = _followers(backbone, image)
    _replace_convs(backbone, {conv: type(act) for conv, (_, act) in followers.items()})
    for name, _ in followers.values():
        _put(backbone, name, nn.Identity())
    for one, other in zip(before, backbone(image), strict=True):
        near = torch.isclose(one, other, rtol=1e-2, atol=1e-2 * float(one.nan_to_num().abs().max()))
        assert bool((near | ~one.isfinite()).all()), "a packed convolution had a companion"
    for name, tower in list(net.heads.named_children()):
        if isinstance(tower, Tower) and all(isinstance(norm, nn.Identity) for norm in tower.norm):
            hidden = [_quick(conv, nn.ReLU) for conv in tower.conv if isinstance(conv, nn.Conv2d)]
            setattr(net.heads, name, nn.Sequential(*hidden, _quick(tower.output)))
    for part in (net.fpn, net.heads):
        _replace_convs(part, {}, quick=True)


def _replace_convs(root: nn.Module, activations: dict[nn.Conv2d, type[nn.Module]], *, quick: bool = False) -> None:
    make = _quick if quick else PackedConv
    for name, module in list(root.named_modules()):
        if type(module) is nn.Conv2d and _plain(module):
            _put(root, name, make(module, activations.get(module)))


class QuickConv(nn.Module):
    """A convolution of the pyramid or the towers, by whichever way is faster for the size of the map.

    Args:
        conv: a convolution for which Winograd's way exists.
        activation: its kind.
    """

    def __init__(self, conv: nn.Conv2d, activation: type[nn.Module] | None = None) -> None:
        super().__init__()
        self.few, self.many = PackedConv(conv, activation), WinogradConv(conv, activation)

    def forward(self, images: Tensor) -> Tensor:
        """As :class:`PackedConv`."""
        output: Tensor = self.many(images) if tiles(images) >= TILES else self.few(images)
        return output


def _quick(conv: nn.Conv2d, activation: type[nn.Module] | None = None) -> nn.Module:
    return QuickConv(conv, activation) if suits(conv) else PackedConv(conv, activation)


def _plain(conv: nn.Conv2d) -> bool:
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _put(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, module)


def _followers(backbone: nn.Module, image: Tensor) -> dict[nn.Conv2d, tuple[str, nn.Module]]:
    """The activation, and its name, of each convolution whose output goes to one activation, untouched."""
    made: list[tuple[Tensor, int, nn.Conv2d]] = []  # tensors are held, so that no two have the same identity
    found: list[tuple[nn.Conv2d, str, nn.Module]] = []
    calls: list[nn.Module] = []
    handles = []
    for name, module in backbone.named_modules():
        if type(module) is nn.Conv2d and _plain(module):
            # the version tells whether something was added in place before the activation
            handles.append(module.register_forward_hook(lambda conv, _, out: made.append((out, out._version, conv))))
        elif type(module) in _ACTIVATIONS:

            def seen(act: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                calls.append(act)
                for output, version, conv in made:
                    if output is inputs[0] and output._version == version:
                        found.append((conv, name, act))

            handles.append(module.register_forward_pre_hook(seen))
    try:
        backbone(image)
    finally:
        for handle in handles:
            handle.remove()
    convs = [conv for _, _, conv in made]
    return {conv: (name, act) for conv, name, act in found if convs.count(conv) == calls.count(act) == 1}
