"""Where the classification loss goes: the paper's Figure 4 and more, for a model on its own data.

A window is a pair of an anchor and a class, one logit. Positive is the logit of the annotated class at a positive
anchor; every other logit is negative, the other classes of positive anchors included. All logits of ignored anchors are
left out. The paper leaves open what it counts as a window; this is what its loss sums over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from retinanet.analysis.loss.curves import (
    BINS,
    LOGIT_EDGES,
    PER_UNIT,
    REACH,
    SHARES,
    Counts,
    Floats,
    Windows,
    percent,
    windows,
)
from retinanet.analysis.loss.hint import Hint, hint
from retinanet.errors import UserError
from retinanet.losses.focal import FocalLoss, sigmoid_focal_loss
from retinanet.types import Assignment, RawOutput

PROBABILITIES = (0.05, 0.5)  # negatives above these are counted
# Windows that an operation takes at a time: on a CPU they should stay in the cache, elsewhere few launches matter more.
CPU_CHUNK, DEVICE_CHUNK = 2**20, 2**25


@dataclass(frozen=True, eq=False)
class FocalDiagnosis:
    """Where the classification loss of a model goes on a data set.

    Losses are sums over windows (see the module), not divided by the number of positives, with the alpha and gamma of
    the model unless it says otherwise; summed in float64, each computed in float32 (float64 for float64 logits).

    Attributes:
        alpha: weight of the positives in the model's loss, the negatives having 1 - alpha; None weighs both with 1.
        gamma: its focusing power.
        images: how many.
        anchors: over all images.
        ignored_anchors: of them, those whose windows are left out.
        positive: the positive windows; as many as positive anchors.
        negative: the negative windows.
        counts: (L, K) positive windows by level and class.
        positive_losses: (L, K) loss of the positive windows by level and class.
        negative_losses: (L, K) loss of the negative windows by level and class: "class" is the one of the logit.
        probabilities: (K,) mean probability of the annotated class at the positives of each class, NaN for none.
        above: negatives whose probability exceeds each of ``PROBABILITIES``.
        hint: which alpha and gamma to try.
    """

    alpha: float | None
    gamma: float
    images: int
    anchors: int
    ignored_anchors: int
    positive: Windows
    negative: Windows
    counts: Counts
    positive_losses: Floats
    negative_losses: Floats
    probabilities: Floats
    above: tuple[int, ...]
    hint: Hint

    @property
    def loss(self) -> float:
        """Of all windows."""
        return self.positive.loss + self.negative.loss

    @property
    def mean_probability(self) -> float:
        """Of the annotated class over all positives; NaN without any."""
        per_class = self.counts.sum(axis=0)
        there = per_class > 0
        return float((self.probabilities[there] @ per_class[there]) / per_class.sum()) if there.any() else math.nan

    def share(self, loss: float) -> float:
        """What part of the whole loss that is; 0 where there is none."""
        return float(loss / self.loss) if self.loss else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; None for what there is nothing to compute from."""
        above = {f"{p:g}": count for p, count in zip(PROBABILITIES, self.above, strict=True)}
        known = {"mean": self.mean_probability, "by_class": self.probabilities.tolist()}
        return {
            "alpha": self.alpha,
            "gamma": self.gamma,
            "images": self.images,
            "anchors": self.anchors,
            "ignored_anchors": self.ignored_anchors,
            "share_of_positives": self.share(self.positive.loss),
            "positive": self.positive.to_dict(),
            "negative": self.negative.to_dict(),
            "curve_shares": SHARES.tolist(),
            "histogram_logit_edges": LOGIT_EDGES.tolist(),
            "positives_by_level_and_class": self.counts.tolist(),
            "positive_loss_by_level_and_class": self.positive_losses.tolist(),
            "negative_loss_by_level_and_class": self.negative_losses.tolist(),
            "probability_at_positives": _without_nan(known),
            "negatives_above": above,
            "hint": self.hint.to_dict(),
        }

    def summary(self) -> str:
        """A few lines for a console."""
        p, n = self.positive, self.negative
        signs = (("positives", p), ("negatives", n))
        shares = ", ".join(f"{percent(self.share(one.loss))} from {name}" for name, one in signs)
        lines = [
            f"{self.images:,} images, {self.anchors:,} anchors ({self.ignored_anchors:,} ignored)",
            f"{p.count:,} positive and {n.count:,} negative windows (pairs of anchor and class)",
            f"classification loss: {shares}",
        ]
        if p.count:
            fifth, mean = p.spread(self.gamma).hardest_fifth, self.mean_probability
            lines.append(
                f"positives: the hardest 20 % carry {percent(fifth)} of their loss; mean probability {mean:.2f}"
            )
        if n.count:
            half = n.spread(self.gamma).half
            beyond = ", ".join(
                f"{count:,} above {limit:g}" for limit, count in zip(PROBABILITIES, self.above, strict=True)
            )
            lines.append(
                f"negatives: {half * n.count:,.0f} of them ({percent(half)}) carry half of their loss; {beyond}"
            )
        return "\n".join([*lines, self.hint.reason])


class FocalStatistics:
    """Gathers the numbers batch by batch, in a memory that does not grow with them.

    Args:
        num_classes: K.
        num_levels: L.
        alpha: of the model's loss.
        gamma: of the model's loss.
        gammas: for which the curves are drawn; ``gamma`` is added where it is missing.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        num_levels: int,
        alpha: float | None = 0.25,
        gamma: float = 2.0,
        gammas: Sequence[float] = (0.0, 0.5, 1.0, 2.0),
    ) -> None:
        for one in gammas:
            FocalLoss(gamma=one)  # refuses what is no focusing power
        self.loss = FocalLoss(alpha, gamma)
        self.gammas = tuple(sorted({*map(float, gammas), float(gamma)}))
        self._images = self._anchors = self._ignored = 0
        shape = (num_levels, num_classes)
        self._counts = np.zeros(shape, dtype=np.int64)
        self._losses = {sign: np.zeros(shape) for sign in (True, False)}  # without alpha; True: of the positives
        self._bins = {sign: np.zeros(BINS, dtype=np.int64) for sign in (True, False)}
        self._probabilities = np.zeros(num_classes)
        self._above = [0] * len(PROBABILITIES)

    @torch.no_grad()
    def update(self, raw: RawOutput, assignment: Assignment) -> None:
        """Adds a batch. The results do not depend on how the logits lie in memory, bit for bit.

        Args:
            raw: on any device, in any float type; only the logits are read.
            assignment: what the anchors of the batch have to answer, from ``DetectionLoss.assign``, on any device.

        Raises:
            UserError: the output has other levels or classes, a label is not below K, or the loss is not finite.
        """
        levels, classes = self._counts.shape
        if (len(raw.logits), raw.num_classes) != (levels, classes):
            found = f"{len(raw.logits)} levels and {raw.num_classes} classes"
            raise UserError(f"the network gave {found}, expected {levels} and {classes}")
        wrong = assignment.labels[(assignment.labels < 0) | (assignment.labels >= classes)]
        if len(wrong):
            raise UserError(f"a box has the label {int(wrong[0])}, but there are {classes} classes, 0 to {classes - 1}")
        assignment = assignment.to(raw.logits[0].device)
        parts = zip(raw.logits, assignment.positives_by_level(), assignment.ignored_by_level(), strict=True)
        for level, (logits, (index, labels), ignored) in enumerate(parts):
            self._add_level(level, logits.detach(), index, labels, ignored)
        anchors = raw.lattice.count(raw.grids)
        self._images += len(raw.logits[0])
        self._anchors += len(raw.logits[0]) * anchors
        self._ignored += len(assignment.ignored)

    def result(self) -> FocalDiagnosis:
        """What has been gathered so far."""
        alpha, gamma = self.loss.alpha, self.loss.gamma
        weights = {True: 1.0 if alpha is None else alpha, False: 1.0 if alpha is None else 1 - alpha}
        losses = {sign: weights[sign] * self._losses[sign] for sign in weights}
        found = {
            sign: windows(self._bins[sign], positive=sign, loss=float(losses[sign].sum()), gammas=self.gammas)
            for sign in weights
        }
        per_class = self._counts.sum(axis=0)
        mean = np.divide(self._probabilities, per_class, out=np.full(len(per_class), np.nan), where=per_class > 0)
        return FocalDiagnosis(
            alpha=alpha,
            gamma=gamma,
            images=self._images,
            anchors=self._anchors,
            ignored_anchors=self._ignored,
            positive=found[True],
            negative=found[False],
            counts=self._counts.copy(),
            positive_losses=losses[True],
            negative_losses=losses[False],
            probabilities=mean,
            above=tuple(self._above),
            hint=hint(alpha, gamma, found[True], found[False]),
        )

    def _add_level(self, level: int, logits: Tensor, index: Tensor, labels: Tensor, ignored: Tensor) -> None:
        """Adds logits (N, A*K, H, W) with the positives (P_l, 4), (P_l,) and ignored anchors (G_l, 4) among them."""
        classes = self._counts.shape[1]
        wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
        x = torch.empty_like(logits, dtype=wide, memory_format=torch.contiguous_format).copy_(logits)
        x = x.unflatten(1, (-1, classes))  # (N, A, K, H, W)
        image, anchor, row, column = index.unbind(1)
        places = (image, anchor, labels, row, column)
        self._add_positives(level, x[places], labels)
        # Probability 0: no loss, and the lowest bin, from which they are taken back.
        x[places] = -math.inf
        image, anchor, row, column = ignored.unbind(1)
        x[image, anchor, :, row, column] = -math.inf
        self._bins[False][0] -= len(index) + len(ignored) * classes
        x = x.flatten(0, 1).flatten(2)  # (N*A, K, H*W)
        limit = CPU_CHUNK if x.device.type == "cpu" else DEVICE_CHUNK
        rows = max(1, limit // max(1, classes * x.shape[2]))
        for part in x.split(rows):
            self._add_negatives(level, part)

    def _add_positives(self, level: int, x: Tensor, labels: Tensor) -> None:
        """Logits (P_l,) of the annotated classes."""
        x, labels = x.cpu().double(), labels.cpu()
        loss = sigmoid_focal_loss(x, torch.ones_like(x), alpha=None, gamma=self.loss.gamma)
        _check_finite(loss, level)
        rows, classes = labels.numpy(), self._counts.shape[1]
        self._losses[True][level] += np.bincount(rows, weights=loss.numpy(), minlength=classes)
        self._probabilities += np.bincount(rows, weights=x.sigmoid().numpy(), minlength=classes)
        self._counts[level] += np.bincount(rows, minlength=classes)
        self._bins[True] += _histogram(x)

    def _add_negatives(self, level: int, x: Tensor) -> None:
        """Logits (n, K, cells), all taken as negatives; they are used up."""
        loss = F.softplus(x, threshold=40)  # -log(1 - p)
        if self.loss.gamma:
            loss.mul_(torch.sigmoid(x).pow_(self.loss.gamma))
        sums = loss.sum(dim=(0, 2)).cpu().double()
        _check_finite(sums, level)
        self._losses[False][level] += sums.numpy()
        for i, probability in enumerate(PROBABILITIES):
            self._above[i] += int(torch.count_nonzero(x > math.log(probability / (1 - probability))))
        self._bins[False] += _histogram(x)


def _histogram(x: Tensor) -> Counts:
    """Logits of any shape, which are used up -> (BINS,) int64. Scaled by a power of 2, no logit is rounded."""
    lowest = REACH * PER_UNIT
    x = x.mul_(PER_UNIT).floor_().clamp_(-lowest, lowest - 1).add_(lowest)
    return torch.bincount(x.flatten().int(), minlength=BINS).cpu().numpy()


def _check_finite(loss: Tensor, level: int) -> None:
    if not loss.isfinite().all():
        raise UserError(
            f"the classification loss on level P{level + 3} is not finite: the network's logits are NaN or infinite. "
            "Its weights are damaged or the training diverged; in float16 they may overflow: try float32"
        )


def _without_nan(values: Any) -> Any:
    """The same with None for NaN, in plain dicts and lists."""
    if isinstance(values, dict):
        return {key: _without_nan(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_without_nan(value) for value in values]
    return None if isinstance(values, float) and math.isnan(values) else values
