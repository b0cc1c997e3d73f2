"""Numbers in, axes out. Figures are built without pyplot, so nothing global changes and no display is needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

Row = Mapping[str, Any]
Series = NDArray[np.float64]

INK, FAINT, GREY = "#22262b", "#d9dce1", "#6b7280"
BLUE, VERMILION, ORANGE, GREEN = "#0072b2", "#d55e00", "#e69f00", "#009e73"
LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 9, "labelcolor": INK}
# (colour, line style, marker) of the lines of a figure: told apart without colour by the style.
LINES: tuple[tuple[str, Any, str], ...] = (
    (INK, "-", "o"),
    (VERMILION, "--", "s"),
    (BLUE, "-.", "^"),
    (GREEN, ":", "D"),
    ("#cc79a7", (0, (6, 1)), "v"),
    (ORANGE, (0, (1, 1)), "P"),
    ("#56b4e9", (0, (5, 2, 1, 2, 1, 2)), "X"),
    ("#7a5195", (0, (3, 1)), "*"),
)
# Columns of a training log: (name, label, colour, line style).
LOSSES = (
    ("loss", "total", INK, "-"),
    ("classification", "classification", BLUE, "--"),
    ("box", "box", VERMILION, "-."),
)
METRICS = (("AP50", "AP50", BLUE, "--"), ("AP75", "AP75", VERMILION, ":"), ("AP", "AP", INK, "-"))


def make_axes(title: str, x: str, y: str, *, size: tuple[float, float], grid: str = "y") -> tuple[Figure, Axes]:
    """A figure of ``size`` (width, height) in inches with one pair of axes; see :func:`style_axes`."""
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    style_axes(axes, title, x, y, grid)
    return figure, axes


def style_axes(axes: Axes, title: str, x: str, y: str, grid: str = "y") -> None:
    """The look of all axes: a title, labels, and grid lines from the axis named ``grid``, "x", "y" or "" for none."""
    axes.set_title(title, loc="left", fontsize=11, color=INK, weight="bold")
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK, labelsize=9)
    if grid:
        axes.grid(axis="x" if grid == "x" else "y", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)


def say_empty(axes: Axes, text: str) -> None:
    """Write in the middle of axes why there is nothing to see."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)


def shorten_name(name: str, letters: int = 24) -> str:
    """A name that fits beside an axis; dollar signs in it begin no formula."""
    return (name if len(name) <= letters else name[: letters - 1] + "…").replace("$", r"\$")


def save_figure(figure: Figure, path: Path, dpi: int = 150) -> None:
    """Write a figure as PNG, SVG or PDF, by the suffix of ``path``."""
    figure.savefig(path, dpi=dpi, facecolor="white")


def training_curves(rows: Sequence[Row]) -> Figure:
    """Losses, average precision and learning rate of a run.

    Args:
        rows: rows of the run's log, numbers or their text; an empty, missing or None entry is "not measured". Training
            rows have ``step``, ``epoch``, ``loss``, ``classification``, ``box`` and ``lr``; evaluation rows have
            ``step``, ``epoch``, ``val_loss``, ``AP``, ``AP50``, ``AP75``.

    Returns:
        A figure of three panels, to be saved with :func:`save_figure`.
    """
    figure = Figure(figsize=(13.5, 4.0), layout="constrained")
    losses, metrics, rate = figure.subplots(1, 3)

    style_axes(losses, "Loss", "step", "loss per positive anchor")
    shown: list[Series] = []
    for name, label, colour, line in LOSSES:  # as measured (faint) and smoothed
        x, y = _find_points(rows, "step", name)
        if np.isfinite(y).any():
            shown.append(smooth(y, len(y) / 40))
            losses.plot(x, y, color=colour, alpha=0.22, linewidth=0.8)
            marker = "o" if len(y) == 1 else None
            losses.plot(x, shown[-1], line, color=colour, linewidth=1.7, label=label, marker=marker)
    x, y = _find_points(rows, "step", "val_loss")
    if np.isfinite(y).any():
        shown.append(y)
        losses.plot(x, y, color=GREEN, marker="o", markersize=4, linewidth=0.8, label="validation")
    _set_limits(losses, shown, "no loss in the log")

    _draw_metrics(metrics, rows)

    style_axes(rate, "Learning rate", "step", "learning rate")
    x, y = _find_points(rows, "step", "lr")
    rate.plot(x, y, color=INK, linewidth=1.7, marker="o" if len(x) == 1 else None)
    if len(x):
        rate.yaxis.set_major_formatter("{x:g}")  # no power of ten above the axis, where the title is
    _set_limits(rate, [y], "no learning rate in the log")
    return figure


def _draw_metrics(axes: Axes, rows: Sequence[Row]) -> None:
    """AP, AP50 and AP75 over epochs, the best AP marked."""
    style_axes(axes, "Average precision on the validation images", "epoch", "AP")
    shown = []
    for name, label, colour, line in METRICS:
        x, y = _find_points(rows, "epoch", name)
        if not np.isfinite(y).any():
            continue
        shown.append(y)
        axes.plot(x, y, line, color=colour, linewidth=1.7, marker="o", markersize=3.5, label=label)
        if name == "AP":
            best = int(np.nanargmax(y))
            point, right = (x[best], y[best]), x[best] > (x[0] + x[-1]) / 2
            axes.plot(*point, "*", color=ORANGE, markeredgecolor=INK, markersize=15, label="best", zorder=4)
            place: dict[str, Any] = {"xytext": (-8 if right else 8, -14 if y[best] > 0.1 else 8)}
            place |= {"textcoords": "offset points", "ha": "right" if right else "left"}
            axes.annotate(f"{y[best]:.3f}", point, color=INK, weight="bold", **place)
    _set_limits(axes, shown, "not evaluated yet")
    axes.set_ylim(0, 1)


def _set_limits(axes: Axes, shown: Sequence[Series], empty: str) -> None:
    """Limits and a legend; or a word that there is nothing to see. One wild raw value does not set the limits."""
    values = np.concatenate([np.zeros(0), *shown])
    finite = values[np.isfinite(values)]
    if not len(finite):
        say_empty(axes, empty)
        axes.set(xticks=[], yticks=[])
        return
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    low, high = axes.get_xlim()
    if high - low < 1:  # a single step or epoch
        axes.set_xlim((low + high) / 2 - 1, (low + high) / 2 + 1)
    top = float(finite.max())
    axes.set_ylim(0, 1.08 * top if top > 0 else 1)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(**LEGEND, handlelength=2.6)


def _find_points(rows: Sequence[Row], x: str, y: str) -> tuple[Series, Series]:
    """Two columns (n,) in the n rows that have both.

    A NaN that was measured in ``y`` is not absent and leaves a gap in the line.
    """
    places = column(rows, x)
    there = np.isfinite(places) & np.array([row.get(y) not in (None, "") for row in rows], dtype=bool)
    return places[there], column(rows, y)[there]


def column(rows: Sequence[Row], name: str) -> Series:
    """One column as float64, NaN where a row has no such number."""

    def read_number(value: Any) -> float:
        try:
            return float(value)
        except (TypeError, ValueError):
            return math.nan

    return np.array([read_number(row.get(name)) for row in rows], dtype=np.float64)


def smooth(values: Series, reach: float) -> Series:
    """Mean of the neighbours, weighted by a Gaussian of standard deviation ``reach`` (in values).

    It is centred, so it does not lag behind a falling loss. NaN and infinity count as absent and stay gaps.
    """
    there = np.isfinite(values)
    if reach <= 0 or not there.any():
        return np.where(there, values, np.nan)
    half = min(math.ceil(3 * reach), len(values) - 1)
    kernel = np.exp(-0.5 * (np.arange(-half, half + 1) / reach) ** 2)
    total, weight = (
        np.convolve(part, kernel)[half : half + len(values)]
        for part in (np.where(there, values, 0.0), there.astype(np.float64))
    )
    return np.where(there, total / np.maximum(weight, 1e-12), np.nan)
