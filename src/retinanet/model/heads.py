"""The class subnet and the box subnet (Lin et al., section 4), shared by all levels, untied from each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from retinanet.errors import UserError

HeadNorm = Literal["none", "group"]


class Tower(nn.Module):
    """``depth`` 3x3 convolutions with ReLU, then a 3x3 convolution to the output channels.

    Args:
        channels: of the features and of every hidden map.
        outputs: output channels.
        depth: hidden convolutions; 4 in the paper.
        norm: ``"group"`` puts group norm of 32 groups, or the most that divide the channels, after each hidden
            convolution, which then has no bias.
    """

    def __init__(self, *, channels: int, outputs: int, depth: int = 4, norm: HeadNorm = "none") -> None:
        super().__init__()
        bare = norm == "none"
        self.conv = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, bias=bare) for _ in range(depth))
        self.norm = nn.ModuleList(
            nn.Identity() if bare else nn.GroupNorm(_groups(channels), channels) for _ in range(depth)
        )
        self.output = nn.Conv2d(channels, outputs, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, feature: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, outputs, H, W)."""
        for conv, norm in zip(self.conv, self.norm, strict=True):
            feature = functional.relu(norm(conv(feature)), inplace=True)
        output: Tensor = self.output(feature)
        return output


class Heads(nn.Module):
    """Both towers.

    Args:
        num_classes: K.
        num_anchors: A.
        channels: of the pyramid.
        depth: hidden convolutions of each tower.
        norm: see :class:`Tower`.
        prior: the probability that an untrained model gives every class at every anchor (section 4.1). With it, the
            100,000 negatives of an image start with a loss near zero instead of swamping the first steps.

    Raises:
        UserError: no class, no channel, another norm, a prior that is no probability.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        num_anchors: int = 9,
        channels: int = 256,
        depth: int = 4,
        norm: HeadNorm = "none",
        prior: float = 0.01,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise UserError(f"a detector needs at least one class, got {num_classes}")
        if not 0 < prior < 1:
            raise UserError(f"prior is a probability between 0 and 1, got {prior}")
        if norm not in ("none", "group"):
            raise UserError(f"head norm is none or group, got {norm!r}")
        if channels < 1 or depth < 0:
            raise UserError(f"towers have 1 channel and 0 hidden convolutions or more, got {channels} and {depth}")
        self.prior = prior
        self.cls = Tower(channels=channels, outputs=num_anchors * num_classes, depth=depth, norm=norm)
        self.box = Tower(channels=channels, outputs=num_anchors * 4, depth=depth, norm=norm)
        assert self.cls.output.bias is not None
        nn.init.constant_(self.cls.output.bias, -math.log((1 - prior) / prior))

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """L maps -> L logits (N, A*K, H_l, W_l) and L deltas (N, A*4, H_l, W_l)."""
        return [self.cls(level) for level in pyramid], [self.box(level) for level in pyramid]


def _groups(channels: int) -> int:
    # Two channels in a group at least: the 1x1 map of a single image has no more values to normalise.
    return max((groups for groups in (2, 4, 8, 16, 32) if channels % groups == 0 and groups < channels), default=1)
