"""The network: backbone, pyramid, heads. Images in, raw outputs out, in training as in evaluation."""

from __future__ import annotations

from torch import Tensor, nn

from retinanet.anchors.coding import BoxCoder
from retinanet.anchors.lattice import AnchorLattice
from retinanet.errors import UserError
from retinanet.model.backbone import Backbone
from retinanet.model.heads import Heads
from retinanet.model.pyramid import FeaturePyramid
from retinanet.types import RawOutput


class RetinaNet(nn.Module):
    """RetinaNet (Lin et al. 2017, figure 3).

    Args:
        backbone: images -> C3, C4, C5.
        fpn: C3, C4, C5 -> P3 .. P7.
        heads: P3 .. P7 -> logits and deltas.
        lattice: the anchors the heads predict over.
        coder: what the deltas mean.

    Raises:
        UserError: a lattice over other levels than the pyramid's, or with other templates than the heads'.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        fpn: FeaturePyramid,
        heads: Heads,
        lattice: AnchorLattice | None = None,
        coder: BoxCoder | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.fpn = fpn
        self.heads = heads
        self.lattice = lattice or AnchorLattice()
        self.coder = coder or BoxCoder()
        if self.lattice.strides != fpn.strides:
            raise UserError(f"the anchors lie at strides {self.lattice.strides}, the pyramid's are {fpn.strides}")
        outputs = heads.box.output.out_channels
        if outputs != 4 * self.lattice.num_anchors:
            raise UserError(
                f"{self.lattice.num_anchors} anchors per cell need 4 box outputs each, not {outputs} in all"
            )

    def forward(self, images: Tensor) -> RawOutput:
        """(N, 3, H, W) normalised float images of any size -> :class:`RawOutput`."""
        logits, deltas = self.heads(self.fpn(self.backbone(images)))
        return RawOutput(tuple(logits), tuple(deltas), self.lattice.over(*images.shape[-2:]), self.coder)
