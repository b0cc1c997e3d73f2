"""Errors and their cost in pictures: bars of TIDE's types, confusions, precision-recall, reliability, AP of groups.

Told apart without colour: by hatch, line style, marker and place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from retinanet.plotting.figures import FAINT, INK, style_axes

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#6b7280"
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


class Curve(NamedTuple):
    """Precision over recall of one class.

    Attributes:
        name: of the class.
        recall: (n,) rising.
        precision: (n,).
        best: index of the point to mark, None for none.
        threshold: the score of that point.
    """

    name: str
    recall: ArrayLike
    precision: ArrayLike
    best: int | None
    threshold: float | None


class Bar(NamedTuple):
    """One group of objects.

    Attributes:
        name: what is in it.
        objects: how many.
        ap: AP over IoU 0.50:0.95.
        ap50: AP at IoU 0.5.
    """

    name: str
    objects: int
    ap: float
    ap50: float


def error_bars(gains: Mapping[str, float], special: Mapping[str, float], counts: Mapping[str, int]) -> Figure:
    """What each type of error costs, and how many errors there are.

    Args:
        gains: AP50 gained by fixing each type, in the order in which they are drawn.
        special: more gains, drawn apart, such as that of removing all false positives.
        counts: number of errors of each type of ``gains``.
    """
    figure = Figure(figsize=(11.0, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    names = [*gains, *special]
    places = np.arange(len(names)) + np.where(np.arange(len(names)) >= len(gains), 0.5, 0.0)
    values = np.array([*gains.values(), *special.values()])
    bars = left.barh(places, np.nan_to_num(values), color=BLUE, edgecolor=INK, height=0.68)
    for bar in bars[len(gains) :]:
        bar.set(facecolor="white", hatch="////")
    for place, value in zip(places, values, strict=True):
        text = "not measured" if np.isnan(value) else f"{value:+.3f}"
        _note(left, text, (max(np.nan_to_num(value), 0), place))
    left.set_yticks(places, names)
    style_axes(left, "What fixing each type of error would add", "gain in AP50", "", grid="x")
    numbers = [counts[name] for name in gains]
    right.barh(places[: len(gains)], numbers, color="#b9bfc7", edgecolor=INK, height=0.68)
    for place, number in zip(places, numbers, strict=False):
        _note(right, f"{number:,}", (number, place))
    right.set_yticks(places[: len(gains)], list(gains))
    right.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    right.xaxis.set_major_formatter("{x:,.0f}")
    style_axes(right, "How many there are", "errors", "", grid="x")
    for axes in (left, right):
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, 0), high + 0.16 * (high - min(low, 0)))
        axes.set_ylim(places[-1] + 0.6, -0.6)
    return figure


def confusion_map(matrix: ArrayLike, names: Sequence[str]) -> Figure:
    """Which class was taken for which; darker is a larger share of the row.

    Args:
        matrix: (K + 1, K + 1) counts, row: class of the object, column: class given, the last of both the background.
        names: K names.
    """
    counts = np.asarray(matrix, dtype=np.float64)
    labels = [_short(name) for name in (*names, "background")]
    size = min(max(0.85 * len(labels), 3.6), 14.0)
    figure = Figure(figsize=(size + 2.4, size + 1.0), layout="constrained")
    axes = figure.subplots()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Greys", vmin=0, vmax=1)
    if len(names) <= NUMBERED:
        for (row, column), number in np.ndenumerate(counts):
            if row == column == len(names):
                axes.text(column, row, "–", ha="center", va="center", color=GREY)
                continue
            ink = "white" if share[row, column] > 0.5 else INK
            text = f"{int(number):,}\n{share[row, column]:.0%}" if number else "0"
            axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=9)
    axes.axhline(len(names) - 0.5, color=INK, linewidth=1.2)  # the background is set off from the classes
    axes.axvline(len(names) - 0.5, color=INK, linewidth=1.2)
    small, slanted = 9 if len(labels) <= 30 else 6, len(labels) > 4
    axes.set_xticks(range(len(labels)), labels, rotation=45 if slanted else 0, ha="right" if slanted else "center")
    axes.set_yticks(range(len(labels)), labels)
    style_axes(
        axes, "Confusions", "class given (background: overlooked)", "class of the object (background: none)", grid=""
    )
    axes.tick_params(labelsize=small)
    axes.spines[:].set_visible(True)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the row")
    return figure


def precision_recall(curves: Sequence[Curve]) -> Figure:
    """Precision over recall, a line per class, the point of the best F1 marked on it.

    Of more than eight classes the eight with the lowest best F1 are named and the others are thin grey lines.
    """
    figure = Figure(figsize=(8.4, 5.8), layout="constrained")
    axes = figure.subplots()
    style_axes(axes, "Precision and recall at IoU 0.5", "recall", "precision")
    recall = np.linspace(0.005, 1, 400)
    for f1 in (0.2, 0.4, 0.6, 0.8):
        with np.errstate(divide="ignore"):
            precision = np.where(2 * recall > f1, f1 * recall / (2 * recall - f1), np.inf)
        shown = precision <= 1
        axes.plot(recall[shown], precision[shown], color=FAINT, linewidth=0.9, zorder=1)
        _note(axes, f"F1 {f1}", (1, f1 / (2 - f1)), color=GREY, fontsize=8)
    known = [curve for curve in curves if np.isfinite(np.asarray(curve.recall, dtype=np.float64)).any()]
    named = sorted(known, key=_f1)[: len(LINES)]
    for curve in known:
        if not any(curve is other for other in named):
            axes.plot(curve.recall, curve.precision, color="#9aa1aa", linewidth=0.6, alpha=0.7, zorder=1.5)
    shown_in_order = [curve for curve in known if any(curve is other for other in named)]
    for curve, (colour, style, marker) in zip(shown_in_order, LINES, strict=False):
        label, look = _short(curve.name), dict[str, Any]()
        if curve.best is not None:
            label += f": F1 {_f1(curve):.2f} at score {curve.threshold:.2f}"
            look = {"marker": marker, "markevery": [curve.best], "markeredgecolor": "white", "markersize": 10}
        axes.plot(curve.recall, curve.precision, linestyle=style, color=colour, linewidth=1.7, label=label, **look)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    if named:
        figure.legend(frameon=False, fontsize=9, handlelength=3.2, loc="outside lower center", ncols=min(len(named), 3))
    else:
        axes.text(0.5, 0.5, "no objects", transform=axes.transAxes, ha="center", color=GREY)
    return figure


def reliability_diagram(
    edges: ArrayLike, confidence: ArrayLike, accuracy: ArrayLike, counts: ArrayLike, error: float, name: str = ""
) -> Figure:
    """Share of right detections over their score, and how many detections there are; on the diagonal both agree.

    Args:
        edges: (B + 1,) ends of the bins.
        confidence: (B,) mean score of each bin, NaN where it is empty.
        accuracy: (B,) share of the bin that is right, NaN where it is empty.
        counts: (B,) detections.
        error: the expected calibration error.
        name: of the class, if it is of one.
    """
    ends, numbers = np.asarray(edges, dtype=np.float64), np.asarray(counts)
    share, score = np.asarray(accuracy, dtype=np.float64), np.asarray(confidence, dtype=np.float64)
    figure = Figure(figsize=(5.4, 6.0), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    middle, width = (ends[:-1] + ends[1:]) / 2, np.diff(ends)
    there = numbers > 0
    above.bar(
        middle[there],
        share[there],
        width[there],
        color="#b5d3e7",
        edgecolor=INK,
        linewidth=0.8,
        label="share that is right",
    )
    low, high = np.minimum(share, score), np.maximum(share, score)
    hatched: dict[str, Any] = {"color": "none", "edgecolor": ORANGE, "hatch": "////", "linewidth": 0.8}
    off, floor = (high - low)[there], low[there]
    above.bar(middle[there], off, width[there], bottom=floor, label="distance to the score", **hatched)
    above.plot([0, 1], [0, 1], "--", color=INK, linewidth=1.2, label="score = share that is right")
    above.plot(
        score[there], share[there], "o", color=INK, markersize=4.5, zorder=4, label="mean score and share of a bin"
    )
    found = "no detections" if np.isnan(error) else f"expected calibration error {error:.3f}"
    style_axes(above, f"{_short(name) or 'Reliability'}: {found}", "", "share that is right")
    above.set_ylim(0, 1)
    above.legend(frameon=False, fontsize=9, loc="upper left", handlelength=2.2)
    below.bar(middle[there], numbers[there], width[there], color="#b9bfc7", edgecolor=INK, linewidth=0.8)
    below.set_yscale("symlog", linthresh=1)
    below.set_ylim(bottom=0)
    style_axes(below, "", "score", "detections")
    below.set_xlim(0, 1)
    return figure


def group_bars(panels: Mapping[str, Sequence[Bar]]) -> Figure:
    """AP and AP50 of groups of objects, a panel for each way to group them, with the number of objects.

    Args:
        panels: groups by the title of their panel; a panel without groups is left out.
    """
    shown = {title: bars for title, bars in panels.items() if bars}
    rows = max((len(shown) + 1) // 2, 1)
    figure = Figure(figsize=(11.5, 3.5 * rows), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False).ravel()
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    for axes, (title, bars) in zip(grid, shown.items(), strict=False):
        places = np.arange(len(bars))
        for shift, name, colour, hatch in ((-0.19, "AP", BLUE, ""), (0.19, "AP50", "white", "////")):
            values = [bar.ap if name == "AP" else bar.ap50 for bar in bars]
            axes.bar(places + shift, values, 0.36, color=colour, edgecolor=INK, hatch=hatch, label=name)
            for place, value in zip(places + shift, values, strict=True):
                if not np.isnan(value):
                    axes.annotate(
                        f"{value:.2f}",
                        (place, value),
                        xytext=(0, 2),
                        textcoords="offset points",
                        ha="center",
                        fontsize=8,
                    )
        axes.set_xticks(places, [f"{_short(bar.name)}\n{bar.objects:,} obj." for bar in bars])
        axes.set_xlim(-0.6, max(len(bars), 3) - 0.4)
        axes.set_ylim(0, 1.05)
        style_axes(axes, title, "", "average precision")
        axes.tick_params(axis="x", labelsize=8 if len(bars) < 7 else 7)
    if shown:
        figure.legend(
            *grid[0].get_legend_handles_labels(), frameon=False, fontsize=9, loc="outside upper right", ncols=2
        )
    return figure


def _f1(curve: Curve) -> float:
    """F1 of the marked point, 0 without one."""
    if curve.best is None:
        return 0.0
    precision, recall = np.asarray(curve.precision)[curve.best], np.asarray(curve.recall)[curve.best]
    return float(2 * precision * recall / (precision + recall))


def _short(name: str, most: int = 24) -> str:
    """A class name that fits on an axis; dollar signs are no formulas."""
    name = name if len(name) <= most else name[: most - 1] + "…"
    return name.replace("$", r"\$")


def _note(axes: Axes, text: str, point: tuple[float, float], **look: Any) -> None:
    """Text to the right of a point."""
    axes.annotate(text, point, xytext=(4, 0), textcoords="offset points", va="center", **look)
