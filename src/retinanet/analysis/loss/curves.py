"""How the focal loss of many windows is spread over them, from a histogram of their logits.

Whatever gamma is, the loss of a negative rises with its logit and that of a positive falls. Sorted by logit the windows
are sorted by loss, so one histogram per sign holds the paper's Figure 4 for every gamma at once, in a fixed memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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


def curve_tolerance(gamma: float) -> float:
    """How far a point of a cumulative curve can lie from that of the sorted losses: (gamma + 1) / 4096.

    The loss of a window is taken at the middle of its bin of width h = 1/1024. The logarithm of a loss changes by at
    most gamma + 1 per unit of the logit, so each loss is off by a factor within exp(+-(gamma + 1) h / 2), and a share
    of their sum by at most a quarter of (gamma + 1) h; less where the errors within a bin cancel. Logits beyond -64
    and 64 are taken as -64 and 64.
    """
    return (gamma + 1) / (4 * PER_UNIT)


def percent(share: float) -> str:
    """A share in words, two digits of it; a dash for NaN."""
    value = 100 * share
    if math.isnan(value):
        return "–"
    if 0 < value < 0.01:
        return "<0.01 %"
    return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.2g} %"


def loss_of_negatives(logits: Floats, gamma: float) -> Floats:
    """-p^gamma log(1 - p), the focal loss of negatives (Lin et al., equation 4); of positives it is that of -x."""
    return np.exp(-gamma * np.logaddexp(0, -logits)) * np.logaddexp(0, logits)


@dataclass(frozen=True, eq=False)
class Spread:
    """How the loss of the windows of one sign is spread over them, for one gamma. The weight alpha cancels.

    Attributes:
        gamma: the focusing power that the losses are computed with; the model is the same for all.
        loss: the sum of the losses without alpha, within a factor exp(+-(gamma + 1) / 2048).
        curve: (len(SHARES),) share of ``loss`` that the easiest ``SHARES`` of the windows carry (Figure 4).
        hardest_fifth: share of ``loss`` that the hardest 20 % of the windows carry.
        hardest_hundredth: the same of the hardest 1 %.
        half: the smallest share of the windows that carries half of ``loss``.
        ninety: the smallest share of the windows that carries 90 % of ``loss``.
    """

    gamma: float
    loss: float
    curve: Floats
    hardest_fifth: float
    hardest_hundredth: float
    half: float
    ninety: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; None where there are no windows."""
        names = ("hardest_fifth", "hardest_hundredth", "half", "ninety")
        shares = {name: _number(getattr(self, name)) for name in names}
        curve = [_number(value) for value in self.curve.tolist()]
        tolerance = curve_tolerance(self.gamma)
        return {"gamma": self.gamma, "loss": self.loss, **shares, "curve_tolerance": tolerance, "curve": curve}


@dataclass(frozen=True, eq=False)
class Windows:
    """All windows of one sign.

    Attributes:
        count: how many.
        loss: their loss with the alpha and gamma of the model, summed exactly, not from the histogram.
        histogram: (len(LOGIT_EDGES) - 1,) windows by logit, that is by probability; exact. What lies beyond an end is
            counted in the bin there.
        spreads: one for each gamma, ascending.
    """

    count: int
    loss: float
    histogram: Counts
    spreads: tuple[Spread, ...]

    def spread(self, gamma: float) -> Spread:
        """The one of that gamma."""
        return next(spread for spread in self.spreads if spread.gamma == gamma)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        spreads = [spread.to_dict() for spread in self.spreads]
        return {"count": self.count, "loss": self.loss, "histogram": self.histogram.tolist(), "spreads": spreads}


def windows(counts: Counts, *, positive: bool, loss: float, gammas: tuple[float, ...]) -> Windows:
    """What a histogram says.

    Args:
        counts: (BINS,) windows by logit, in bins of 1/1024 from -64 to 64.
        positive: which loss they have.
        loss: the exact sum of their losses.
        gammas: ascending.
    """
    middle = (np.arange(BINS) + 0.5) / PER_UNIT - REACH
    there = np.flatnonzero(counts)
    number, hardness = counts[there], -middle[there] if positive else middle[there]
    order = slice(None) if positive else slice(None, None, -1)  # hardest first: shares near 0 lose no digits
    spreads = tuple(_spread(number[order], hardness[order], gamma) for gamma in gammas)
    edges = ((LOGIT_EDGES + REACH) * PER_UNIT).astype(np.int64)
    edges[0], edges[-1] = 0, BINS
    histogram = np.add.reduceat(counts, edges[:-1])
    return Windows(int(counts.sum()), loss, histogram, spreads)


def _spread(number: Counts, hardness: Floats, gamma: float) -> Spread:
    """From ``number`` windows of each ``hardness``, the logit that a negative of that loss has, hardest first."""
    if not len(number):
        return Spread(gamma, 0.0, np.full(len(SHARES), math.nan), *(math.nan,) * 4)
    mass = number * loss_of_negatives(hardness, gamma)
    taken = np.concatenate([[0.0], number.cumsum() / number.sum()])  # share of windows, hardest first
    carried = np.concatenate([[0.0], mass.cumsum() / mass.sum()])  # share of their loss
    curve = 1 - np.interp(1 - SHARES, taken, carried)
    fifth, hundredth = np.interp([0.2, 0.01], taken, carried)
    half, ninety = np.interp([0.5, 0.9], carried, taken)
    return Spread(gamma, float(mass.sum()), curve, float(fifth), float(hundredth), float(half), float(ninety))


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
