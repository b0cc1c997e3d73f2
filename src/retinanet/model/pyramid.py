"""The feature pyramid P3 to P7 (Lin et al., section 4, "Feature Pyramid Network Backbone")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from retinanet.errors import UserError


class FeaturePyramid(nn.Module):
    """C3, C4, C5 -> P3 .. P7.

    Args:
        in_channels: channels of C3, C4, C5.
        channels: channels of every level.
        p6_from: ``"C5"`` as the paper, or ``"P5"`` as torchvision's first RetinaNet.
        relu_before_p7: the paper's; mmdetection leaves it out.

    Raises:
        UserError: no channels, or another ``p6_from``.
    """

    strides = (8, 16, 32, 64, 128)

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        channels: int = 256,
        p6_from: Literal["C5", "P5"] = "C5",
        relu_before_p7: bool = True,
    ) -> None:
        super().__init__()
        if p6_from not in ("C5", "P5"):
            raise UserError(f"p6_from is C5 or P5, got {p6_from!r}")
        self.p6_from = p6_from
        self.relu_before_p7 = relu_before_p7
        levels = ("p3", "p4", "p5")
        self.lateral = nn.ModuleDict(
            {level: nn.Conv2d(width, channels, 1) for level, width in zip(levels, in_channels, strict=True)}
        )
        self.output = nn.ModuleDict({level: nn.Conv2d(channels, channels, 3, padding=1) for level in levels})
        p6_channels = in_channels[-1] if p6_from == "C5" else channels
        self.output["p6"] = nn.Conv2d(p6_channels, channels, 3, stride=2, padding=1)
        self.output["p7"] = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # "XavierFill" of Detectron: uniform in +-sqrt(3 / fan_in)
                nn.init.kaiming_uniform_(module.weight, a=1)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """C3, C4, C5 of any size -> five maps (N, channels, H_l, W_l)."""
        c3, c4, c5 = features
        top = self.lateral["p5"](c5)
        p5 = self.output["p5"](top)
        top = _upsample_add(top, self.lateral["p4"](c4))
        p4 = self.output["p4"](top)
        top = _upsample_add(top, self.lateral["p3"](c3))
        p3 = self.output["p3"](top)
        p6 = self.output["p6"](c5 if self.p6_from == "C5" else p5)
        p7 = self.output["p7"](functional.relu(p6) if self.relu_before_p7 else p6)
        return [p3, p4, p5, p6, p7]


def _upsample_add(coarse: Tensor, fine: Tensor) -> Tensor:
    # Nearest to the size of the finer map: equal to doubling where that fits, and right where it does not.
    return fine + functional.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
