"""How anchors fit boxes, drawn from plain arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter
from numpy.typing import NDArray

from retinanet.plotting.figures import FAINT, INK, style_axes

BLUE, VERMILION, ORANGE = "#0072b2", "#d55e00", "#e69f00"
DRAWN = 4000  # boxes in a scatter; more hide each other
Numbers = NDArray[Any]


def best_iou_histogram(
    before: Numbers, after: Numbers | None = None, *, marks: tuple[float, ...] = (0.4, 0.5)
) -> Figure:
    """The best IoU of every box with any anchor, as a histogram.

    Args:
        before: (M,) best IoUs.
        after: (M',) those with other anchors, drawn over it as an outline.
        marks: IoUs to mark; the legend says which share of the boxes is below the last.
    """
    figure, axes = _axes("Best anchor of each box", "best IoU with any anchor", "share of boxes")
    edges = np.linspace(0, 1, 41)
    last = marks[-1] if marks else 0.5

    def label(name: str, values: Numbers) -> str:
        share = f"{np.mean(values < last):.1%}" if len(values) else "none"
        return f"{name} ({share} below {last:g})"

    axes.stairs(_shares(before, edges), edges, fill=True, color="#b9bec6", label=label("now", before))
    if after is not None:
        axes.stairs(_shares(after, edges), edges, color=BLUE, linewidth=1.8, label=label("proposed", after))
    for mark, line in zip(marks, (":", "--", "-.", "-"), strict=False):
        axes.axvline(mark, color=INK, linestyle=line, linewidth=1.1)
        axes.text(
            mark + 0.006, 0.99, f"{mark:g}", transform=axes.get_xaxis_transform(), va="top", fontsize=9, color=INK
        )
    axes.set_xlim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="upper left")
    return figure


def box_sides(sides: Numbers, best_iou: Numbers, templates: Numbers, *, foreground: float = 0.5) -> Figure:
    """Boxes by width and height, those that no anchor covers apart, with the anchors as crosses.

    Args:
        sides: (M, 2) width and height in pixels of the resized image. At most 4000 boxes are drawn, evenly taken.
        best_iou: (M,) of each.
        templates: (T, 2) width and height of the anchors.
        foreground: IoU from which on a box counts as covered.
    """
    figure, axes = _axes("Boxes and anchors", "width after the resize / pixels", "height after the resize / pixels")
    figure.set_size_inches(6.2, 5.6)
    step = -(-len(sides) // DRAWN) or 1
    drawn, missed = sides[::step], best_iou[::step] < foreground
    below = np.count_nonzero(best_iou < foreground) / max(1, len(best_iou))
    for rows, share, marker, colour, size, name in (
        (~missed, 1 - below, "o", "#9aa1ab", 9, f"IoU {foreground:g} and above"),
        (missed, below, "v", VERMILION, 20, f"below {foreground:g}"),
    ):
        axes.scatter(
            np.maximum(drawn[rows, 0], 0.5),
            np.maximum(drawn[rows, 1], 0.5),
            s=size,
            marker=marker,
            color=colour,
            alpha=0.7,
            linewidths=0,
            label=f"boxes, {name} ({share:.1%})",
        )
    axes.plot(*templates.T, "+", color=INK, markersize=8, markeredgewidth=1.3, linestyle="", label="anchors", zorder=4)
    everything = np.concatenate([drawn, templates])
    low, high = max(0.5, 0.8 * everything.min()), 1.25 * everything.max()
    for axis, limit in ((axes.xaxis, axes.set_xlim), (axes.yaxis, axes.set_ylim)):
        axis.axes.set(**{f"{axis.axis_name}scale": "log"})
        limit(low, high)
        axis.set_major_locator(FixedLocator([2**k for k in range(-1, 14)]))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter("{x:g}")
    axes.grid(axis="x", color=FAINT, linewidth=0.7)
    axes.set_aspect("equal")
    axes.legend(frameon=True, framealpha=0.9, edgecolor=FAINT, fontsize=9, labelcolor=INK, loc="upper left")
    return figure


def positives_by_size(sides: Numbers, positives: Numbers, forced: Numbers) -> Figure:
    """How many anchors answer for a box, by its size, and how many boxes have none or forced ones only.

    Args:
        sides: (M, 2) width and height in pixels of the resized image.
        positives: (M,) anchors that answer for the box.
        forced: (M,) bool, whether all of them are forced.
    """
    figure = Figure(figsize=(7.0, 5.6), layout="constrained")
    counts, shares = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    style_axes(counts, "Positive anchors of a box", "", "positive anchors\n(5, 25, 50, 75, 95 %)")
    style_axes(shares, "", "square root of the area after the resize / pixels", "share of boxes")
    shares.set_ylim(0, 1)
    shares.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    if not len(sides):
        return figure
    octave = np.floor(np.log2(np.maximum(np.sqrt(sides.astype(float).prod(axis=1)), 0.5))).astype(int)
    keys = np.arange(octave.min(), octave.max() + 1)
    members = [octave == key for key in keys]
    _boxplot(counts, {place: positives[rows] for place, rows in enumerate(members) if rows.any()})
    floor = np.zeros(len(keys))
    for name, colour, hatch, which in (
        ("no positive anchor", VERMILION, "xx", positives == 0),
        ("forced matches only", ORANGE, "//", forced),
    ):
        height = np.array([which[rows].mean() if rows.any() else 0.0 for rows in members])
        style = {"color": colour, "edgecolor": INK, "linewidth": 0.7, "hatch": hatch, "label": name}
        shares.bar(range(len(keys)), height, 0.6, floor, **style)
        floor += height
    counts.set_ylim(bottom=0)
    names = [f"{2.0**key:g} to {2.0 ** (key + 1):g}" for key in keys]
    shares.set_xticks(
        range(len(keys)), [f"{name}\nn = {rows.sum():,}" for name, rows in zip(names, members, strict=True)]
    )
    shares.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


def _boxplot(axes: Axes, values: dict[int, Numbers]) -> None:
    ink = {"color": INK}
    axes.boxplot(
        list(values.values()),
        positions=list(values),
        whis=(5, 95),
        widths=0.6,
        showfliers=False,
        patch_artist=True,
        manage_ticks=False,
        boxprops={"facecolor": FAINT, "edgecolor": INK},
        medianprops=ink | {"linewidth": 2},
        whiskerprops=ink,
        capprops=ink,
    )


def _shares(values: Numbers, edges: Numbers) -> Numbers:
    return np.histogram(values, edges)[0] / max(1, len(values))


def _axes(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = figure.subplots()
    style_axes(axes, title, x, y)
    return figure, axes
