"""Errors and their cost in pictures: bars of TIDE's types, confusions, precision-recall, reliability, AP of groups.

Told apart without colour: by hatch, line style, marker and place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from retinanet.analysis.errors.curves import ClassCurve, ConfusionMatrix, Reliability
from retinanet.analysis.errors.groups import GroupAP
from retinanet.plotting.figures import (
    BLUE,
    FAINT,
    GREY,
    INK,
    LINES,
    VERMILION,
    make_axes,
    say_empty,
    shorten_name,
    style_axes,
)

BAR = "#b9bfc7"
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
    names, values = [*gains, *special], [*gains.values(), *special.values()]
    places = np.arange(len(names)) + np.where(np.arange(len(names)) >= len(gains), 0.5, 0.0)
    bars = left.barh(places, np.nan_to_num(values), color=BLUE, edgecolor=INK, height=0.68)
    for bar in bars[len(gains) :]:
        bar.set(facecolor="white", hatch="////")
    left.bar_label(bars, ["not measured" if np.isnan(value) else f"{value:+.3f}" for value in values], padding=4)
    left.set_yticks(places, names)
    style_axes(left, "What fixing each type of error would add", "gain in AP50", "", grid="x")

    numbers, rows = [counts[name] for name in gains], places[: len(gains)]
    right.bar_label(right.barh(rows, numbers, color=BAR, edgecolor=INK, height=0.68), fmt="{:,.0f}", padding=4)
    right.set_yticks(rows, list(gains))
    right.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    right.xaxis.set_major_formatter("{x:,.0f}")
    style_axes(right, "How many there are", "errors", "", grid="x")
    for axes in (left, right):
        axes.margins(x=0.16)
        axes.set_ylim(places[-1] + 0.6, -0.6)
    return figure


def confusion_map(confusion: ConfusionMatrix) -> Figure:
    """Which class was taken for which; darker is a larger share of the row."""
    counts, classes = confusion.matrix, len(confusion.class_names)
    labels = [shorten_name(name) for name in (*confusion.class_names, "background")]
    size = min(max(0.85 * len(labels), 3.6), 14.0)
    known, given = "class of the object (background: none)", "class given (background: overlooked)"
    figure, axes = make_axes("Confusions", given, known, size=(size + 2.4, size + 1.0), grid="")
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
    axes.tick_params(labelsize=9 if len(labels) <= 30 else 6)
    axes.spines[:].set_visible(True)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the row")
    return figure


def precision_recall(curves: Sequence[ClassCurve]) -> Figure:
    """Precision over recall, a line per class, the point of the best F1 marked on it.

    Of more than eight classes the eight with the lowest best F1 are named and the others are thin grey lines.
    """
    figure, axes = make_axes("Precision and recall at IoU 0.5", "recall", "precision", size=(8.4, 5.8))
    for f1 in (0.2, 0.4, 0.6, 0.8):
        recall = np.linspace(f1 / (2 - f1), 1, 400)  # where the precision is 1, and 1
        axes.plot(recall, f1 * recall / (2 * recall - f1), color=FAINT, linewidth=0.9, zorder=1)
        axes.annotate(f" F1 {f1}", (1, f1 / (2 - f1)), va="center", color=GREY, fontsize=8)
    known = [curve for curve in curves if curve.objects and len(curve.scores)]
    named = {id(curve) for curve in sorted(known, key=lambda curve: curve.f1)[: len(LINES)]}
    looks = iter(LINES)
    for curve in known:
        if id(curve) not in named:
            axes.plot(curve.recall, curve.precision, color="#9aa1aa", linewidth=0.6, alpha=0.7, zorder=1.5)
            continue
        (colour, style, marker), label, look = next(looks), shorten_name(curve.name), dict[str, Any]()
        if curve.best is not None:
            label += f": F1 {curve.f1:.2f} at score {curve.threshold:.2f}"
            look = {"marker": marker, "markevery": [curve.best], "markeredgecolor": "white", "markersize": 10}
        axes.plot(curve.recall, curve.precision, linestyle=style, color=colour, linewidth=1.7, label=label, **look)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    if named:
        figure.legend(frameon=False, fontsize=9, handlelength=3.2, loc="outside lower center", ncols=min(len(named), 3))
    else:
        say_empty(axes, "no objects")
    return figure


def reliability_diagram(reliability: Reliability) -> Figure:
    """Share of right detections over their score, and how many detections there are; on the diagonal both agree."""
    there = reliability.counts > 0
    share, score = reliability.accuracy[there], reliability.confidence[there]
    middle, width = ((reliability.edges[:-1] + reliability.edges[1:]) / 2)[there], np.diff(reliability.edges)[there]
    figure = Figure(figsize=(5.4, 6.0), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    known = "no detections" if np.isnan(reliability.ece) else f"expected calibration error {reliability.ece:.3f}"
    title = "Reliability" if reliability.name == "all" else shorten_name(reliability.name)
    style_axes(above, f"{title}: {known}", "", "share that is right")
    style_axes(below, "", "score", "detections")

    look: dict[str, Any] = {"edgecolor": INK, "linewidth": 0.8}
    above.bar(middle, share, width, color="#b5d3e7", label="share that is right", **look)
    hatched: dict[str, Any] = {"color": "none", "edgecolor": VERMILION, "hatch": "////", "linewidth": 0.8}
    low = np.minimum(share, score)
    above.bar(middle, np.abs(share - score), width, bottom=low, label="distance to the score", **hatched)
    above.plot([0, 1], [0, 1], "--", color=INK, linewidth=1.2, label="score = share that is right")
    above.plot(score, share, "o", color=INK, markersize=4.5, zorder=4, label="mean score and share of a bin")
    above.set(xlim=(0, 1), ylim=(0, 1))
    above.legend(frameon=False, fontsize=9, loc="upper left", handlelength=2.2)
    below.bar(middle, reliability.counts[there], width, color=BAR, **look)
    below.set_yscale("symlog", linthresh=1)
    below.set_ylim(bottom=0)
    return figure


def group_bars(panels: Mapping[str, Sequence[GroupAP]]) -> Figure:
    """AP and AP50 of groups of objects and their number, a panel for each title; one without groups is left out."""
    shown = {title: groups for title, groups in panels.items() if groups}
    rows = max((len(shown) + 1) // 2, 1)
    figure = Figure(figsize=(11.5, 3.5 * rows), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False).ravel()
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    looks: tuple[tuple[str, dict[str, Any]], ...] = (
        ("AP", {"color": BLUE}),
        ("AP50", {"color": "white", "hatch": "////"}),
    )
    for axes, (title, groups) in zip(grid, shown.items(), strict=False):
        style_axes(axes, title, "", "average precision")
        for shift, (name, look) in zip((-0.19, 0.19), looks, strict=True):
            values = [getattr(group, name.lower()) for group in groups]
            bars = axes.bar(np.arange(len(groups)) + shift, values, 0.36, edgecolor=INK, label=name, **look)
            axes.bar_label(bars, ["" if np.isnan(value) else f"{value:.2f}" for value in values], padding=2, fontsize=8)
        names = [f"{shorten_name(group.name)}\n{group.objects:,} obj." for group in groups]
        axes.set_xticks(range(len(groups)), names, fontsize=8 if len(groups) < 7 else 7)
        axes.set(xlim=(-0.6, max(len(groups), 3) - 0.4), ylim=(0, 1.05))
    if shown:
        entries = grid[0].get_legend_handles_labels()
        figure.legend(*entries, frameon=False, fontsize=9, loc="outside upper right", ncols=2)
    return figure
