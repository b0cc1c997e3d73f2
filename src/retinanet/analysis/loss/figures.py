"""Figures of where the focal loss goes: the paper's Figure 4, and shares of the loss. Plain arrays in, figures out."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import ArrayLike

from retinanet.plotting.figures import INK, LEGEND, make_axes, say_empty, shorten_name, style_axes

# (colour, line style), told apart in grey by the style; the largest gamma comes first and is a full line.
LINES: tuple[tuple[str, Any], ...] = (
    (INK, "-"),
    ("#0072b2", "--"),
    ("#d55e00", "-."),
    ("#009e73", ":"),
    ("#cc79a7", (0, (7, 2, 1, 2, 1, 2))),
    ("#e69f00", (0, (1, 3))),
)
POSITIVE, NEGATIVE = "#0072b2", "#f0b27a"
# Probabilities named on the axis.
MARKED = {f"$10^{{{power}}}$": 10.0**power for power in (-6, -5, -4)} | {
    f"{p:g}": p for p in (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
}


def cumulative_loss(
    shares: ArrayLike, foreground: Mapping[float, ArrayLike], background: Mapping[float, ArrayLike]
) -> Figure:
    """The paper's Figure 4: cumulative normalised loss against the fraction of windows, easiest first.

    Args:
        shares: (n,) fractions of windows, 0 to 1.
        foreground: for each gamma (n,) the share of the loss of the positives that they carry.
        background: the same of the negatives.
    """
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    panels = {"Foreground": foreground, "Background": background}
    for axes, (title, curves) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        what = title.lower()
        style_axes(axes, title, f"fraction of {what} windows, easiest first", "cumulative normalised loss")
        _draw_curves(axes, np.asarray(shares), curves, what)
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
    return figure


def hardest_windows(shares: ArrayLike, background: Mapping[float, ArrayLike], count: int) -> Figure:
    """How few negatives carry the loss: the background of Figure 4 from its hard end, on a logarithmic axis.

    Args:
        shares: (n,) fractions of windows, easiest first, 0 to 1.
        background: for each gamma (n,) the share of the loss that they carry.
        count: of the negatives; a single one is where the axis begins.
    """
    x = "fraction of background windows, hardest first"
    figure, axes = make_axes("The hardest negatives", x, "share of the loss", size=(6.4, 4.2))
    hardest = 1 - np.asarray(shares)[::-1]
    within = (hardest > 0) & (hardest * count > 0.999)
    curves = {gamma: (1 - np.asarray(curve)[::-1])[within] for gamma, curve in background.items()}
    _draw_curves(axes, hardest[within], curves, "background")
    axes.axhline(0.5, color=INK, linewidth=0.8, linestyle=(0, (1, 4)))
    if within.any():
        axes.set(xscale="log", xlim=(min(hardest[within][0], 0.1), 1))
    axes.set_ylim(0, 1.02)
    return figure


def probability_histograms(
    logit_edges: ArrayLike, positive: ArrayLike, negative: ArrayLike, threshold: float = 0.05
) -> Figure:
    """How many windows have which probability, both axes so that both ends can be seen.

    Args:
        logit_edges: (n + 1,) edges of the bins, as logits.
        positive: (n,) counts of positives, by the probability of the annotated class.
        negative: (n,) counts of negatives.
        threshold: a probability to mark: that above which a detection is reported.
    """
    x = "probability (logit scale)"
    figure, axes = make_axes("Probabilities of the windows", x, "windows in a bin", size=(7.6, 4.2))
    edges = np.asarray(logit_edges, dtype=np.float64)
    signs = (("negatives", negative, NEGATIVE, "", "-"), ("positives", positive, POSITIVE, "////", "--"))
    handles = []
    for label, counts, colour, hatch, line in signs:
        values = np.asarray(counts, dtype=np.float64)
        fill = "none" if hatch else colour
        axes.stairs(values, edges, fill=True, baseline=0.5, facecolor=fill, edgecolor=colour, hatch=hatch, linewidth=0)
        axes.stairs(values, edges, baseline=0.5, color=INK, linewidth=1.3, linestyle=line, label=label)
        handles.append(Patch(facecolor=fill, edgecolor=colour, hatch=hatch, linewidth=0, label=label))

    # the axis is as long as there are windows, 0.01 to 0.9 at least
    filled = np.flatnonzero(np.asarray(positive) + np.asarray(negative))
    low, high = (edges[filled[0]] - 1, edges[filled[-1] + 1] + 1) if len(filled) else (-5.0, 3.0)
    axes.set_xticks([np.log(p / (1 - p)) for p in MARKED.values()], list(MARKED))
    axes.set_xlim(max(edges[0], min(low, -5.0)), min(edges[-1], max(high, 3.0)))

    limit = np.log(threshold / (1 - threshold))
    axes.axvline(limit, color=INK, linewidth=0.9, linestyle=(0, (1, 3)))
    axes.set_yscale("log")
    top = max(float(np.max(positive)), float(np.max(negative)), 1.0)
    axes.set_ylim(0.5, top * 6)
    words = f"score threshold {threshold:g}"
    axes.annotate(words, (limit, top * 3.2), xytext=(4, 0), textcoords="offset points", fontsize=8, color=INK)
    axes.legend(handles=handles, **LEGEND, loc="upper left")
    return figure


def loss_shares(what: str, names: Sequence[str], positive: ArrayLike, negative: ArrayLike) -> Figure:
    """Shares of the whole loss by sign and by level or class, the first on top.

    Args:
        what: of the names, "level" or "class".
        names: n.
        positive: (n,) shares of the positives, in [0, 1].
        negative: (n,) shares of the negatives.
    """
    title, size = f"Classification loss by {what}", (7.6, 1.5 + 0.42 * len(names))
    figure, axes = make_axes(title, "share of the loss (%)", "", size=size, grid="x")
    places = np.arange(len(names))
    signs = (("positives", positive, POSITIVE, "", -0.2), ("negatives", negative, NEGATIVE, "////", 0.2))
    for label, shares, colour, hatch, shift in signs:
        values = 100 * np.asarray(shares, dtype=np.float64)
        bars = axes.barh(places + shift, values, 0.4, color=colour, edgecolor=INK, hatch=hatch, label=label)
        axes.bar_label(bars, [_bar_label(value) for value in values], padding=3, fontsize=8, color=INK)
    axes.set_yticks(places, [shorten_name(name) for name in names])
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.legend(**LEGEND, loc="lower right")
    return figure


def _draw_curves(axes: Axes, x: np.ndarray, curves: Mapping[float, ArrayLike], what: str) -> None:
    """A line for each gamma, the largest first, and a legend, the smallest first as in the paper."""
    for (colour, style), gamma in zip(itertools.cycle(LINES), sorted(curves, reverse=True), strict=False):
        y = np.asarray(curves[gamma], dtype=np.float64)
        if np.isfinite(y).any():
            axes.plot(x, y, linestyle=style, color=colour, linewidth=1.8, label=f"γ = {gamma:g}")
    lines, labels = axes.get_legend_handles_labels()
    if lines:
        axes.legend(lines[::-1], labels[::-1], loc="upper left", handlelength=3.2, **LEGEND)
    else:
        say_empty(axes, f"no {what} windows")


def _bar_label(percent: float) -> str:
    """With as many digits as say something; nothing where there is no loss at all."""
    if percent == 0:
        return ""
    return f"{percent:.0f}" if percent >= 10 else f"{percent:.1f}" if percent >= 0.1 else "<0.1"
