"""Errors and their cost in pictures: bars of TIDE's types, confusions, precision-recall, reliability, AP of groups.

Told apart without colour: by hatch, line style, marker and place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from retinanet.analysis.errors.calibration import Reliability
from retinanet.analysis.errors.curves import ClassCurve, ConfusionMatrix
from retinanet.analysis.errors.groups import GroupAP
from retinanet.plotting.figures import FAINT, INK, style_axes

BLUE, ORANGE, GREY, BAR = "#0072b2", "#d55e00", "#6b7280", "#b9bfc7"
# (colour, line style, marker) of the classes of a figure; more classes than these are drawn as thin grey lines.
LINES = (
    (INK, "-", "o"),
    (ORANGE, "--", "s"),
    (BLUE, "-.", "^"),
    ("#009e73", ":", "D"),
    ("#cc79a7", (0, (6, 1)), "v"),
    ("#e69f00", (0, (1, 1)), "P"),
    ("#56b4e9", (0, (5, 2, 1, 2, 1, 2)), "X"),
    ("#7a5195", (0, (3, 1)), "*"),
)
NUMBERED = 15  # a confusion matrix of more classes has no numbers in its cells


def error_bars(gains: Mapping[str, float], special: Mapping[str, float], counts: Mapping[str, int]) -> Figure:
    """What each type of error costs, and how many errors there are.

    Args:
        gains: AP50 gained by fixing each type, in the order in which they are drawn.
        special: more gains, drawn apart, such as that of removing all false positives.
        counts: number of errors of each type of ``gains``.
    """
    figure = Figure(figsize=(11.0, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    names, values = [*gains, *special], np.array([*gains.values(), *special.values()])
    places = np.arange(len(names)) + np.where(np.arange(len(names)) >= len(gains), 0.5, 0.0)
    lengths = np.nan_to_num(values)
    for bar in left.barh(places, lengths, color=BLUE, edgecolor=INK, height=0.68)[len(gains) :]:
        bar.set(facecolor="white", hatch="////")
    for place, value, length in zip(places, values, lengths, strict=True):
        _note(left, "not measured" if np.isnan(value) else f"{value:+.3f}", (max(length, 0), place))
    left.set_yticks(places, names)
    style_axes(left, "What fixing each type of error would add", "gain in AP50", "", grid="x")

    numbers, rows = [counts[name] for name in gains], places[: len(gains)]
    right.barh(rows, numbers, color=BAR, edgecolor=INK, height=0.68)
    for place, number in zip(rows, numbers, strict=True):
        _note(right, f"{number:,}", (number, place))
    right.set_yticks(rows, list(gains))
    right.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    right.xaxis.set_major_formatter("{x:,.0f}")
    style_axes(right, "How many there are", "errors", "", grid="x")
    for axes in (left, right):
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, 0), high + 0.16 * (high - min(low, 0)))
        axes.set_ylim(places[-1] + 0.6, -0.6)
    return figure


def confusion_map(confusion: ConfusionMatrix) -> Figure:
    """Which class was taken for which; darker is a larger share of the row."""
    counts, classes = confusion.matrix, len(confusion.class_names)
    labels = [_shorten(name) for name in (*confusion.class_names, "background")]
    size = min(max(0.85 * len(labels), 3.6), 14.0)
    figure = Figure(figsize=(size + 2.4, size + 1.0), layout="constrained")
    axes = figure.subplots()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Greys", vmin=0, vmax=1)
    if classes <= NUMBERED:
        for (row, column), number in np.ndenumerate(counts):
            corner, dark = row == column == classes, share[row, column] > 0.5
            text = "–" if corner else f"{number:,}\n{share[row, column]:.0%}" if number else "0"
            look = {"color": GREY} if corner else {"color": "white" if dark else INK, "fontsize": 9}
            axes.text(column, row, text, ha="center", va="center", **look)
    axes.axhline(classes - 0.5, color=INK, linewidth=1.2)  # the background is set off from the classes
    axes.axvline(classes - 0.5, color=INK, linewidth=1.2)
    slanted = len(labels) > 4
    axes.set_xticks(range(len(labels)), labels, rotation=45 if slanted else 0, ha="right" if slanted else "center")
    axes.set_yticks(range(len(labels)), labels)
    given, known = "class given (background: overlooked)", "class of the object (background: none)"
    style_axes(axes, "Confusions", given, known, grid="")
    axes.tick_params(labelsize=9 if len(labels) <= 30 else 6)
    axes.spines[:].set_visible(True)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the row")
    return figure


def precision_recall(curves: Sequence[ClassCurve]) -> Figure:
    """Precision over recall, a line per class, the point of the best F1 marked on it.

    Of more than eight classes the eight with the lowest best F1 are named and the others are thin grey lines.
    """
    figure = Figure(figsize=(8.4, 5.8), layout="constrained")
    axes = figure.subplots()
    style_axes(axes, "Precision and recall at IoU 0.5", "recall", "precision")
    for f1 in (0.2, 0.4, 0.6, 0.8):
        recall = np.linspace(f1 / (2 - f1), 1, 400)  # where the precision is 1, and 1
        axes.plot(recall, f1 * recall / (2 * recall - f1), color=FAINT, linewidth=0.9, zorder=1)
        _note(axes, f"F1 {f1}", (1, f1 / (2 - f1)), color=GREY, fontsize=8)
    known = [curve for curve in curves if curve.objects and len(curve.scores)]
    named = {id(curve) for curve in sorted(known, key=lambda curve: curve.f1)[: len(LINES)]}
    looks = iter(LINES)
    for curve in known:
        if id(curve) not in named:
            axes.plot(curve.recall, curve.precision, color="#9aa1aa", linewidth=0.6, alpha=0.7, zorder=1.5)
            continue
        (colour, style, marker), label, look = next(looks), _shorten(curve.name), dict[str, Any]()
        if curve.best is not None:
            label += f": F1 {curve.f1:.2f} at score {curve.threshold:.2f}"
            look = {"marker": marker, "markevery": [curve.best], "markeredgecolor": "white", "markersize": 10}
        axes.plot(curve.recall, curve.precision, linestyle=style, color=colour, linewidth=1.7, label=label, **look)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    if named:
        figure.legend(frameon=False, fontsize=9, handlelength=3.2, loc="outside lower center", ncols=min(len(named), 3))
    else:
        axes.text(0.5, 0.5, "no objects", transform=axes.transAxes, ha="center", color=GREY)
    return figure


def reliability_diagram(reliability: Reliability) -> Figure:
    """Share of right detections over their score, and how many detections there are; on the diagonal both agree."""
    there = reliability.counts > 0
    share, score = reliability.accuracy[there], reliability.confidence[there]
    middle, width = ((reliability.edges[:-1] + reliability.edges[1:]) / 2)[there], np.diff(reliability.edges)[there]
    figure = Figure(figsize=(5.4, 6.0), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    look: dict[str, Any] = {"edgecolor": INK, "linewidth": 0.8}
    above.bar(middle, share, width, color="#b5d3e7", label="share that is right", **look)
    hatched: dict[str, Any] = {"color": "none", "edgecolor": ORANGE, "hatch": "////", "linewidth": 0.8}
    low = np.minimum(share, score)
    above.bar(middle, np.abs(share - score), width, bottom=low, label="distance to the score", **hatched)
    above.plot([0, 1], [0, 1], "--", color=INK, linewidth=1.2, label="score = share that is right")
    above.plot(score, share, "o", color=INK, markersize=4.5, zorder=4, label="mean score and share of a bin")
    known = "no detections" if np.isnan(reliability.ece) else f"expected calibration error {reliability.ece:.3f}"
    title = "Reliability" if reliability.name == "all" else _shorten(reliability.name)
    style_axes(above, f"{title}: {known}", "", "share that is right")
    above.set_ylim(0, 1)
    above.legend(frameon=False, fontsize=9, loc="upper left", handlelength=2.2)
    below.bar(middle, reliability.counts[there], width, color=BAR, **look)
    below.set_yscale("symlog", linthresh=1)
    below.set_ylim(bottom=0)
    style_axes(below, "", "score", "detections")
    below.set_xlim(0, 1)
    return figure


def group_bars(panels: Mapping[str, Sequence[GroupAP]]) -> Figure:
    """AP and AP50 of groups of objects, a panel for each way to group them, with the number of objects.

    Args:
        panels: groups by the title of their panel; a panel without groups is left out.
    """
    shown = {title: groups for title, groups in panels.items() if groups}
    rows = max((len(shown) + 1) // 2, 1)
    figure = Figure(figsize=(11.5, 3.5 * rows), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False).ravel()
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    above: dict[str, Any] = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center", "fontsize": 8}
    for axes, (title, groups) in zip(grid, shown.items(), strict=False):
        places = np.arange(len(groups))
        ap, ap50 = [group.ap for group in groups], [group.ap50 for group in groups]
        for shift, name, values, look in (
            (-0.19, "AP", ap, {"color": BLUE}),
            (0.19, "AP50", ap50, {"color": "white", "hatch": "////"}),
        ):
            axes.bar(places + shift, values, 0.36, edgecolor=INK, label=name, **look)
            for place, value in zip(places + shift, values, strict=True):
                if not np.isnan(value):
                    axes.annotate(f"{value:.2f}", (place, value), **above)
        axes.set_xticks(places, [f"{_shorten(group.name)}\n{group.objects:,} obj." for group in groups])
        axes.set_xlim(-0.6, max(len(groups), 3) - 0.4)
        axes.set_ylim(0, 1.05)
        style_axes(axes, title, "", "average precision")
        axes.tick_params(axis="x", labelsize=8 if len(groups) < 7 else 7)
    if shown:
        entries = grid[0].get_legend_handles_labels()
        figure.legend(*entries, frameon=False, fontsize=9, loc="outside upper right", ncols=2)
    return figure


def _shorten(name: str, most: int = 24) -> str:
    """A class name that fits on an axis; dollar signs are no formulas."""
    name = name if len(name) <= most else name[: most - 1] + "…"
    return name.replace("$", r"\$")


def _note(axes: Axes, text: str, point: tuple[float, float], **look: Any) -> None:
    """Text to the right of a point."""
    axes.annotate(text, point, xytext=(4, 0), textcoords="offset points", va="center", **look)
