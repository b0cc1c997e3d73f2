"""Where the classification loss goes: the paper's Figure 4 and more, for a model on its own data.

A window is a pair of an anchor and a class, one logit. Positive is the logit of the annotated class at a positive
anchor; every other logit is negative, the other classes of positive anchors included. All logits of ignored anchors are
left out. The paper leaves open what it counts as a window; this is what its loss sums over.

Where positives have to give the quality of their box (quality focal loss), sums are of that loss; the curves of Figure
4 are the paper's, of positives that should say 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retinanet.analysis.loss.curves import BINS, LOGIT_EDGES, SHARES, Floats, Windows, count_logits
from retinanet.errors import UserError
from retinanet.files import make_json_safe
from retinanet.losses.detection import check_labels
from retinanet.losses.focal import FocalLoss, quality_focal_loss, sigmoid_focal_loss
from retinanet.plotting.html import format_percent
from retinanet.types import Assignment, RawOutput

PROBABILITIES = (0.05, 0.5)  # negatives above these are counted
# Windows that an operation takes at a time: on a CPU they should stay in the cache, elsewhere few launches matter more.
CPU_CHUNK, DEVICE_CHUNK = 2**20, 2**25
GAMMAS = (0.0, 0.5, 1.0, 2.0)  # for which curves are drawn, beside the gamma of the loss
NO_LOSS = -1000.0  # a logit whose loss as a negative is 0 in float64 too


class FocalStatistics:
    """Where the classification loss of a model goes on a data set; gathered batch by batch in a fixed memory.

    Losses are sums over windows (see the module), not divided by the number of positives, with the alpha and gamma of
    the model unless it says otherwise; summed in float64, each computed in float32 (float64 for float64 logits).

    Args:
        num_classes: K.
        num_levels: L.
        alpha: weight of the positives in the model's loss, the negatives having 1 - alpha; None weighs both with 1.
        gamma: its focusing power.

    Attributes:
        images: how many.
        anchors: over all images.
        ignored_anchors: of them, those whose windows are left out.
        counts: (L, K) positive windows by level and class.
        above: negatives whose probability exceeds each of ``PROBABILITIES``.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        num_levels: int,
        alpha: float | None = 0.25,
        gamma: float = 2.0,
    ) -> None:
        loss = FocalLoss(alpha, gamma)
        self.alpha, self.gamma = loss.alpha, loss.gamma
        self.gammas = tuple(sorted({*GAMMAS, float(gamma)}))
        self.images = self.anchors = self.ignored_anchors = 0
        self.counts = np.zeros((num_levels, num_classes), dtype=np.int64)
        self.above = [0] * len(PROBABILITIES)
        # by sign, the negatives first; losses without alpha
        self._losses = np.zeros((2, num_levels, num_classes))
        self._bins = np.zeros((2, BINS), dtype=np.int64)
        self._probabilities = np.zeros(num_classes)  # sums over the positives of each class

    @cached_property
    def positive(self) -> Windows:
        """The positive windows so far; as many as positive anchors."""
        weight = 1.0 if self.alpha is None else self.alpha
        return Windows.summarise(self._bins[1], weight * self._losses[1], self.gammas, positive=True)

    @cached_property
    def negative(self) -> Windows:
        """The negative windows so far."""
        weight = 1.0 if self.alpha is None else 1 - self.alpha
        return Windows.summarise(self._bins[0], weight * self._losses[0], self.gammas, positive=False)

    @property
    def loss(self) -> float:
        """Of all windows."""
        return self.positive.loss + self.negative.loss

    @property
    def probabilities(self) -> Floats:
        """(K,) mean probability of the annotated class at the positives of each class, NaN for none."""
        with np.errstate(invalid="ignore"):
            return self._probabilities / self.counts.sum(axis=0)

    @property
    def mean_probability(self) -> float:
        """Of the annotated class over all positives; NaN without any."""
        return float(self._probabilities.sum() / self.counts.sum()) if self.counts.any() else math.nan

    def share(self, losses: Any) -> Any:
        """What part of the whole loss a loss is, or each of an array of losses; 0 where there is none."""
        return losses / (self.loss or 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; None for what there is nothing to compute from."""
        facts = ("alpha", "gamma", "images", "anchors", "ignored_anchors")
        values = {name: getattr(self, name) for name in facts} | {
            "share_of_positives": self.share(self.positive.loss),
            "positive": self.positive.to_dict(),
            "negative": self.negative.to_dict(),
            "curve_shares": SHARES,
            "histogram_logit_edges": LOGIT_EDGES,
            "positives_by_level_and_class": self.counts,
            "positive_loss_by_level_and_class": self.positive.losses,
            "negative_loss_by_level_and_class": self.negative.losses,
            "probability_at_positives": {"mean": self.mean_probability, "by_class": self.probabilities},
            "negatives_above": {f"{p:g}": count for p, count in zip(PROBABILITIES, self.above, strict=True)},
        }
        return make_json_safe(values)

    def summary(self) -> str:
        """A few lines for a console."""
        p, n = self.positive, self.negative
        p_share, n_share = (format_percent(self.share(sign.loss)) for sign in (p, n))
        lines = [
            f"{self.images:,} images, {self.anchors:,} anchors ({self.ignored_anchors:,} ignored)",
            f"{p.count:,} positive and {n.count:,} negative windows (pairs of anchor and class)",
            f"classification loss: {p_share} from positives, {n_share} from negatives",
        ]
        if p.count:
            fifth = format_percent(p.spreads[self.gamma].hardest_fifth)
            probability = f"mean probability {self.mean_probability:.2f}"
            lines.append(f"positives: the hardest 20 % carry {fifth} of their loss; {probability}")
        if n.count:
            half = n.spreads[self.gamma].half
            above = ", ".join(f"{count:,} above {p:g}" for p, count in zip(PROBABILITIES, self.above, strict=True))
            few = f"{half * n.count:,.0f} of them ({format_percent(half)})"
            lines.append(f"negatives: {few} carry half of their loss; {above}")
        return "\n".join(lines)

    @torch.no_grad()
    def update(self, raw: RawOutput, assignment: Assignment) -> None:
        """Add a batch. The results do not depend on how the logits lie in memory, bit for bit.

        Args:
            raw: on any device, in any float type; only the logits are read.
            assignment: what the anchors of the batch have to answer, from ``DetectionLoss.assign``, with the quality of
                its positives where that counts, on any device.

        Raises:
            UserError: the output has other levels or classes, a label is not below K, or the loss is not finite.
        """
        levels, classes = self.counts.shape
        if (len(raw.logits), raw.num_classes) != (levels, classes):
            given = f"{len(raw.logits)} levels and {raw.num_classes} classes"
            raise UserError(f"the network gave {given}, expected {levels} and {classes}")
        check_labels(assignment.labels, classes)
        assignment = assignment.to(raw.logits[0].device)
        scores: Sequence[Tensor | None] = [None] * levels
        if assignment.quality is not None:
            scores = assignment.quality.split(list(assignment.positives_per_level))
        parts = zip(raw.logits, assignment.positives_by_level(), scores, assignment.ignored_by_level(), strict=True)
        for level, (logits, (index, labels), score, ignored) in enumerate(parts):
            wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
            x = torch.empty_like(logits, dtype=wide, memory_format=torch.contiguous_format).copy_(logits.detach())
            x = x.unflatten(1, (-1, classes))  # (N, A, K, H, W)
            image, anchor, row, column = index.unbind(1)
            places = (image, anchor, labels, row, column)
            self._add_positives(level, x[places], labels, score)

            # Those that are no negatives have no loss and lie in the lowest bin, from which they are taken back.
            x[places] = NO_LOSS
            image, anchor, row, column = ignored.unbind(1)
            x[image, anchor, :, row, column] = NO_LOSS
            self._bins[0, 0] -= len(index) + len(ignored) * classes

            x = x.flatten(0, 1).flatten(2)  # (N*A, K, H*W)
            limit = CPU_CHUNK if x.device.type == "cpu" else DEVICE_CHUNK
            for part in x.split(max(1, limit // max(1, classes * x.shape[2]))):
                self._add_negatives(level, part)
        self.images += len(raw.logits[0])
        self.anchors += len(raw.logits[0]) * raw.lattice.count(raw.grids)
        self.ignored_anchors += len(assignment.ignored)
        for summary in ("positive", "negative"):  # they are out of date
            self.__dict__.pop(summary, None)

    def _add_positives(self, level: int, x: Tensor, labels: Tensor, score: Tensor | None) -> None:
        """Logits (P_l,) of the annotated classes (P_l,), and the scores (P_l,) that they should have, None for 1."""
        x, rows, classes = x.cpu().double(), labels.cpu().numpy(), self.counts.shape[1]
        if score is None:
            loss = sigmoid_focal_loss(x, x.new_ones(()), alpha=None, gamma=self.gamma)
        else:
            loss = quality_focal_loss(x, score.cpu().double(), gamma=self.gamma)
        _check_finite(loss, level)
        self._losses[1, level] += np.bincount(rows, loss.numpy(), classes)
        self._probabilities += np.bincount(rows, x.sigmoid().numpy(), classes)
        self.counts[level] += np.bincount(rows, minlength=classes)
        self._bins[1] += count_logits(x)

    def _add_negatives(self, level: int, x: Tensor) -> None:
        """Logits (n, K, cells), all taken as negatives."""
        loss = sigmoid_focal_loss(x, x.new_zeros(()), alpha=None, gamma=self.gamma)
        sums = loss.sum(dim=(0, 2)).cpu().double()
        _check_finite(sums, level)
        self._losses[0, level] += sums.numpy()
        for i, probability in enumerate(PROBABILITIES):
            self.above[i] += int(torch.count_nonzero(x > math.log(probability / (1 - probability))))
        self._bins[0] += count_logits(x)


def _check_finite(loss: Tensor, level: int) -> None:
    if not loss.isfinite().all():
        raise UserError(
            f"the classification loss on level P{level + 3} is not finite: the network's logits are NaN or infinite. "
            "Its weights are damaged or the training diverged; in float16 they may overflow: try float32"
        )
