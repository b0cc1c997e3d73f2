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

from retinanet.errors import UserError

Row = Mapping[str, Any]
Series = NDArray[np.float64]

INK = "#22262b"
FAINT = "#d9dce1"
# (column, name, colour, line style): told apart without colour by the style and the place.
LOSSES = (
    ("loss", "total", INK, "-"),
    ("classification", "classification", "#0072b2", "--"),
    ("box", "box", "#d55e00", "-."),
)
METRICS = (("AP50", "AP50", "#0072b2", "--"), ("AP75", "AP75", "#d55e00", ":"), ("AP", "AP", INK, "-"))
SUFFIXES = (".png", ".svg", ".pdf")


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
    _losses(losses, rows)
    _metrics(metrics, rows)
    _learning_rate(rate, rows)
    return figure


def save_figure(figure: Figure, path: str | Path, dpi: int = 150) -> Path:
    """Write a figure as PNG, SVG or PDF, by the suffix of ``path``; missing folders are made.

    Raises:
        UserError: for any other suffix.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"cannot save a figure as {path.name}: the name must end in one of {', '.join(SUFFIXES)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi, facecolor="white")
    return path


def column(rows: Sequence[Row], name: str) -> Series:
    """One column as float64, NaN where a row has no such number."""
    return np.array([_number(row.get(name)) for row in rows], dtype=np.float64)


def smooth(values: Series, reach: float) -> Series:
    """Mean of the neighbours, weighted by a Gaussian of standard deviation ``reach`` (in values).

    It is centred, so it does not lag behind a falling loss. NaN and infinity count as absent and stay gaps.
    """
    there = np.isfinite(values)
    if reach <= 0 or not there.any():
        return np.where(there, values, np.nan)
    half = min(math.ceil(3 * reach), len(values) - 1)
    kernel = np.exp(-0.5 * (np.arange(-half, half + 1) / reach) ** 2)
    total = np.convolve(np.where(there, values, 0.0), kernel)[half : half + len(values)]
    weight = np.convolve(there.astype(np.float64), kernel)[half : half + len(values)]
    return np.where(there, total / np.maximum(weight, 1e-12), np.nan)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _losses(axes: Axes, rows: Sequence[Row]) -> None:
    """Each loss as measured (faint) and smoothed; the validation loss as dots."""
    steps = column(rows, "step")
    style_axes(axes, "Loss", "step", "loss per positive anchor")
    shown: list[Series] = []
    for name, label, colour, line in LOSSES:
        values = column(rows, name)
        there = np.isfinite(steps) & ~_absent(rows, name)
        if not np.isfinite(values[there]).any():
            continue
        x, y = steps[there], values[there]
        trend = smooth(y, len(y) / 40)
        shown.append(trend)
        axes.plot(x, y, color=colour, alpha=0.22, linewidth=0.8)
        axes.plot(x, trend, line, color=colour, linewidth=1.7, label=label, marker="o" if len(y) == 1 else None)
    values = column(rows, "val_loss")
    there = np.isfinite(steps) & np.isfinite(values)
    if there.any():
        axes.plot(
            steps[there], values[there], color="#009e73", marker="o", markersize=4, linewidth=0.8, label="validation"
        )
        shown.append(values[there])
    _finish(axes, shown, "no loss in the log")


def _metrics(axes: Axes, rows: Sequence[Row]) -> None:
    """AP, AP50 and AP75 over epochs, the best AP marked."""
    style_axes(axes, "Average precision on the validation images", "epoch", "AP")
    epochs = column(rows, "epoch")
    shown = []
    for name, label, colour, line in METRICS:
        values = column(rows, name)
        there = np.isfinite(epochs) & np.isfinite(values)
        if not there.any():
            continue
        x, y = epochs[there], values[there]
        shown.append(y)
        axes.plot(x, y, line, color=colour, linewidth=1.7, marker="o", markersize=3.5, label=label)
        if name == "AP":
            best = int(np.argmax(y))
            axes.plot(
                x[best], y[best], "*", color="#e69f00", markeredgecolor=INK, markersize=15, label="best", zorder=4
            )
            right = x[best] > (x[0] + x[-1]) / 2
            axes.annotate(
                f"{y[best]:.3f}",
                (x[best], y[best]),
                xytext=(-8 if right else 8, -14 if y[best] > 0.1 else 8),
                textcoords="offset points",
                ha="right" if right else "left",
                color=INK,
                weight="bold",
            )
    _finish(axes, shown, "not evaluated yet")
    axes.set_ylim(0, 1)


def _learning_rate(axes: Axes, rows: Sequence[Row]) -> None:
    style_axes(axes, "Learning rate", "step", "learning rate")
    steps, values = column(rows, "step"), column(rows, "lr")
    there = np.isfinite(steps) & np.isfinite(values)
    if there.any():
        axes.plot(steps[there], values[there], color=INK, linewidth=1.7, marker="o" if there.sum() == 1 else None)
        axes.yaxis.set_major_formatter("{x:g}")  # no power of ten above the axis, where the title is
    _finish(axes, [values[there]] if there.any() else [], "no learning rate in the log")


def _absent(rows: Sequence[Row], name: str) -> NDArray[np.bool_]:
    """Where a row has nothing in a column; a NaN that was measured is not absent and leaves a gap in the line."""
    return np.array([row.get(name) is None or row.get(name) == "" for row in rows], dtype=bool)


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


def shorten_name(name: str, letters: int = 24) -> str:
    """A name that fits beside an axis."""
    return name if len(name) <= letters else name[: letters - 1] + "…"


def _finish(axes: Axes, shown: Sequence[Series], empty: str) -> None:
    """Limits and a legend; or a word that there is nothing to see. One wild raw value does not set the limits."""
    if not shown:
        axes.text(0.5, 0.5, empty, transform=axes.transAxes, ha="center", va="center", color="#6b7280")
        axes.set_xticks([])
        axes.set_yticks([])
        return
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    low, high = axes.get_xlim()
    if high - low < 1:  # a single step or epoch
        axes.set_xlim((low + high) / 2 - 1, (low + high) / 2 + 1)
    values = np.concatenate(shown)
    finite = values[np.isfinite(values)]
    top = max(float(finite.max()), 0.0)
    axes.set_ylim(0, 1.08 * top if top > 0 else 1)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(frameon=False, fontsize=9, handlelength=2.6, labelcolor=INK)
