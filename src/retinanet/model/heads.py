"""The class subnet and the box subnet (Lin et al., section 4), shared by all levels, untied from each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from retinanet.errors import UserError

HeadNorm = Literal["none", "group"]
HeadInit = Literal["normal", "he"]


class Tower(nn.Module):
    """``depth`` hidden convolutions with ReLU, then a 3x3 convolution to the output channels.

    Args:
        channels: of the features and of every hidden map.
        outputs: output channels; None ends with the last hidden map.
        depth: hidden convolutions; 4 in the paper.
        norm: ``"group"`` puts group norm of 32 groups, or the most that divide the channels, after each hidden
            convolution, which then has no bias.
        init: ``"normal"`` is the paper's N(0, 0.01). ``"he"`` (He et al. 2015) keeps the size of the signal from hidden
            layer to layer, which N(0, 0.01) divides by three to four; the last layer is then N(0, 0.001).
        depthwise: a hidden convolution is a 5x5 one of each channel, then a 1x1 one over all, instead of a 3x3 one: at
            128 channels a seventh of the arithmetic.
    """

    def __init__(
        self,
        *,
        channels: int,
        outputs: int | None,
        depth: int = 4,
        norm: HeadNorm = "none",
        init: HeadInit = "normal",
        depthwise: bool = False,
    ) -> None:
        super().__init__()
        bare = norm == "none"
        hidden = _depthwise_conv if depthwise else _conv
        self.conv = nn.ModuleList(hidden(channels, bias=bare) for _ in range(depth))
        self.norm = nn.ModuleList(
            nn.Identity() if bare else nn.GroupNorm(_groups(channels), channels) for _ in range(depth)
        )
        self.output = nn.Identity() if outputs is None else nn.Conv2d(channels, outputs, 3, padding=1)
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                if init == "he" and name != "output":
                    nn.init.kaiming_normal_(module.weight, nonlinearity="linear" if module.groups > 1 else "relu")
                else:  # He's keeps values near the pyramid's, about 10, and the first scores have to be the prior
                    nn.init.normal_(module.weight, std=0.001 if init == "he" else 0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, feature: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, outputs, H, W)."""
        for conv, norm in zip(self.conv, self.norm, strict=True):
            feature = functional.relu(norm(conv(feature)), inplace=True)
        output: Tensor = self.output(feature)
        return output


def _conv(channels: int, *, bias: bool) -> nn.Module:
    return nn.Conv2d(channels, channels, 3, padding=1, bias=bias)


def _depthwise_conv(channels: int, *, bias: bool) -> nn.Module:
    spatial = nn.Conv2d(channels, channels, 5, padding=2, groups=channels, bias=False)
    return nn.Sequential(spatial, nn.Conv2d(channels, channels, 1, bias=bias))


class Heads(nn.Module):
    """Both towers.

    Args:
        num_classes: K.
        num_anchors: A.
        channels: of the pyramid.
        depth: hidden convolutions of each tower.
        norm: see :class:`Tower`.
        init: see :class:`Tower`.
        depthwise: see :class:`Tower`.
        shared: both towers have the hidden convolutions in common, and part only at their last.
        prior: the probability that an untrained model gives every class at every anchor (section 4.1). With it, the
            100,000 negatives of an image start with a loss near zero instead of swamping the first steps.

    Raises:
        UserError: no class, no channel, another norm or initialisation, a prior that is no probability.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        num_anchors: int = 9,
        channels: int = 256,
        depth: int = 4,
        norm: HeadNorm = "none",
        init: HeadInit = "normal",
        depthwise: bool = False,
        shared: bool = False,
        prior: float = 0.01,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise UserError(f"a detector needs at least one class, got {num_classes}")
        if not 0 < prior < 1:
            raise UserError(f"prior is a probability between 0 and 1, got {prior}")
        if norm not in ("none", "group"):
            raise UserError(f"head norm is none or group, got {norm!r}")
        if init not in ("normal", "he"):
            raise UserError(f"head init is normal or he, got {init!r}")
        if channels < 1 or depth < 0:
            raise UserError(f"towers have 1 channel and 0 hidden convolutions or more, got {channels} and {depth}")
        self.prior = prior
        hidden = partial(Tower, channels=channels, norm=norm, init=init, depthwise=depthwise)
        own = 0 if shared else depth
        if shared:
            self.shared = hidden(outputs=None, depth=depth)
        self.cls = hidden(outputs=num_anchors * num_classes, depth=own)
        self.box = hidden(outputs=num_anchors * 4, depth=own)
        assert isinstance(self.cls.output, nn.Conv2d) and self.cls.output.bias is not None
        nn.init.constant_(self.cls.output.bias, -math.log((1 - prior) / prior))

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """L maps -> L logits (N, A*K, H_l, W_l) and L deltas (N, A*4, H_l, W_l)."""
        maps = [self.shared(level) for level in pyramid] if hasattr(self, "shared") else pyramid
        return [self.cls(level) for level in maps], [self.box(level) for level in maps]


def _groups(channels: int) -> int:
    # Two channels in a group at least: the 1x1 map of a single image has no more values to normalise.
    return max((groups for groups in (2, 4, 8, 16, 32) if channels % groups == 0 and groups < channels), default=1)
