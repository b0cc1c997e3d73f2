"""How the focal loss of many windows is spread over them, from a histogram of their logits.

Whatever gamma is, the loss of a negative rises with its logit and that of a positive falls. Sorted by logit the windows
are sorted by loss, so one histogram per sign holds the paper's Figure 4 for every gamma at once, in a fixed memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from retinanet.losses.focal import sigmoid_focal_loss

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

PER_UNIT = 1024  # bins per unit of the logit
REACH = 64  # logits beyond -64 and 64 lie in the outermost bins: probabilities beyond 1e-27 and 1 - 1e-27
BINS = 2 * REACH * PER_UNIT

# Shares of windows, easiest first, at which a curve is given: every percent to 0.9, then ever closer to 1, where
# gamma = 2 leaves all the loss of the negatives.
SHARES: Floats = np.concatenate([np.linspace(0, 0.9, 91), 1 - np.logspace(-1, -8, 106)[1:], [1.0]])

# Edges of the reported histogram, 2 per unit of the logit, from probability 3e-7 to 0.9999; the ends take the rest.
LOGIT_EDGES: Floats = np.linspace(-15, 9, 49)


def count_logits(logits: torch.Tensor) -> Counts:
    """The histogram (BINS,) of logits of any shape, which are overwritten. Scaled by a power of 2, none is rounded."""
    lowest = REACH * PER_UNIT
    bins = logits.mul_(PER_UNIT).floor_().clamp_(-lowest, lowest - 1).add_(lowest)
    return torch.bincount(bins.flatten().int(), minlength=BINS).cpu().numpy()


@dataclass(frozen=True, eq=False)
class Spread:
    """How the loss of the windows of one sign is spread over them, for one gamma; NaN where there are no windows."""

    gamma: float  # the focusing power that the losses are computed with; the model is the same for all
    loss: float  # the sum of the losses without the weight alpha, within a factor exp(+-(gamma + 1) / 2048)
    curve: Floats  # (len(SHARES),) share of ``loss`` that the easiest ``SHARES`` of the windows carry (Figure 4)
    hardest_fifth: float  # share of ``loss`` that the hardest 20 % of the windows carry
    hardest_hundredth: float  # the same of the hardest 1 %
    half: float  # the smallest share of the windows that carries half of ``loss``
    ninety: float  # the smallest share of the windows that carries 90 % of ``loss``

    @property
    def tolerance(self) -> float:
        """How far a point of the curve can lie from that of the sorted losses: (gamma + 1) / 4096.

        The loss of a window is taken at the middle of its bin of width h = 1/1024. The logarithm of a loss changes by
        at most gamma + 1 per unit of the logit, so each loss is off by a factor within exp(+-(gamma + 1) h / 2), and a
        share of their sum by at most a quarter of (gamma + 1) h. Logits beyond -64 and 64 are taken as -64 and 64.
        """
        return (self.gamma + 1) / (4 * PER_UNIT)


def spread_losses(bins: Counts, gamma: float, *, positive: bool) -> Spread:
    """The spread of the losses of windows whose logits have the histogram (BINS,), all positive or all negative."""
    filled = np.flatnonzero(bins)
    if not len(filled):
        return Spread(gamma, 0.0, np.full(len(SHARES), math.nan), *(math.nan,) * 4)
    hardest_first = filled if positive else filled[::-1].copy()  # so shares near 0 lose no digits
    counts = bins[hardest_first]
    logits = torch.from_numpy((hardest_first + 0.5) / PER_UNIT - REACH)
    losses = counts * sigmoid_focal_loss(logits, torch.tensor(positive), alpha=None, gamma=gamma).numpy()

    taken = np.concatenate([[0.0], counts.cumsum() / counts.sum()])  # share of the windows
    carried = np.concatenate([[0.0], losses.cumsum() / losses.sum()])  # share of their loss
    curve = 1 - np.interp(1 - SHARES, taken, carried)
    fifth, hundredth = np.interp([0.2, 0.01], taken, carried).tolist()
    half, ninety = np.interp([0.5, 0.9], carried, taken).tolist()
    return Spread(gamma, float(losses.sum()), curve, fifth, hundredth, half, ninety)


@dataclass(frozen=True, eq=False)
class Windows:
    """All windows of one sign.

    Attributes:
        losses: (L, K) sums of their losses by level and class, with the alpha and gamma of the model, summed exactly,
            not from the histogram. The class of a negative is that of its logit.
        histogram: (len(LOGIT_EDGES) - 1,) windows by logit, that is by probability; exact. What lies beyond an end is
            counted in the bin there.
        spreads: one for each gamma, by gamma, ascending.
    """

    losses: Floats
    histogram: Counts
    spreads: Mapping[float, Spread]

    @staticmethod
    def summarise(bins: Counts, losses: Floats, gammas: tuple[float, ...], *, positive: bool) -> Windows:
        """From the histogram (BINS,) of the logits of one sign and their exact losses (L, K); ``gammas`` ascend."""
        edges = ((LOGIT_EDGES + REACH) * PER_UNIT).astype(np.int64)
        edges[0] = 0
        spreads = {gamma: spread_losses(bins, gamma, positive=positive) for gamma in gammas}
        return Windows(losses, np.add.reduceat(bins, edges[:-1]), spreads)

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self.histogram.sum())

    @property
    def loss(self) -> float:
        """The sum of their losses."""
        return float(self.losses.sum())

    def to_dict(self) -> dict[str, Any]:
        """For JSON, by :func:`~retinanet.files.make_json_safe`."""
        spreads = [vars(spread) | {"curve_tolerance": spread.tolerance} for spread in self.spreads.values()]
        return {"count": self.count, "loss": self.loss, "histogram": self.histogram, "spreads": spreads}
