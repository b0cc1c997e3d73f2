"""The section of a report that says where the classification loss goes and what that means, with its figures."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import ArrayLike

from retinanet.analysis.loss.curves import LOGIT_EDGES, SHARES
from retinanet.analysis.loss.statistics import PROBABILITIES, FocalStatistics
from retinanet.errors import UserError
from retinanet.plotting.figures import BLUE, INK, LEGEND, LINES, make_axes, say_empty, shorten_name, style_axes
from retinanet.plotting.html import Section, Table, format_percent

MOST_CLASSES = 20
# A class is named where it has this many times more of the loss than of the positives, and so many positives.
HEAVY, ENOUGH = 1.5, 20
THRESHOLD = 0.05  # the probability above which a detection is reported, marked in a figure
POSITIVE, NEGATIVE = BLUE, "#f0b27a"
# Probabilities named on the axis.
MARKED = {f"$10^{{{power}}}$": 10.0**power for power in (-6, -5, -4)} | {
    f"{p:g}": p for p in (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
}


def section(statistics: FocalStatistics, class_names: Sequence[str]) -> Section:
    """Where the loss goes, for a reader who knows the focal loss by name.

    Raises:
        UserError: there are more or fewer names than classes.
    """
    levels, classes = statistics.counts.shape
    if len(class_names) != classes:
        raise UserError(f"expected {classes} class names, one for each class of the model, got {len(class_names)}")
    p, n = statistics.positive, statistics.negative
    of_gamma = ("hardest 20 % of positives carry", "hardest 1 % of negatives carry", "half of the negatives' loss in")
    rows = [
        (f"{gamma:g}", *map(format_percent, (a.hardest_fifth, b.hardest_hundredth, b.half, b.ninety)))
        for (gamma, a), b in zip(p.spreads.items(), n.spreads.values(), strict=True)
    ]
    note, what = "The same model under each gamma.", "How few windows carry the loss, under each gamma"
    tables = [Table(("gamma", *of_gamma, "90 % in"), rows, note, point=what)]
    foreground, background = ({gamma: spread.curve for gamma, spread in sign.spreads.items()} for sign in (p, n))
    captions = (
        "Cumulative normalised loss of positive and negative windows, easiest first, under each gamma; the model is "
        "the same. As Figure 4 of the paper.",
        "The right panel from its hard end: what share of the negatives' loss the hardest of them carry.",
        "Probabilities of the annotated class at positives and of all other windows. Both axes are stretched.",
    )
    drawn = (
        cumulative_loss(SHARES, foreground, background),
        hardest_windows(SHARES, background, n.count),
        probability_histograms(LOGIT_EDGES, p.histogram, n.histogram),
    )
    figures = list(zip(captions, drawn, strict=True))

    # Shares of the loss by level, and by class where there are several: a table and a figure of each.
    positive, negative = statistics.share(p.losses), statistics.share(n.losses)
    facts = {"positives": statistics.counts.sum(axis=1)}
    groups = [("level", [f"P{i + 3}" for i in range(levels)], facts, positive.sum(axis=1), negative.sum(axis=1), "")]
    if classes > 1:
        positive, negative = positive.sum(axis=0), negative.sum(axis=0)
        most = np.argsort(-(positive + negative), kind="stable")[:MOST_CLASSES]
        facts = {"positives": statistics.counts.sum(axis=0)[most]}
        facts["their mean probability"] = statistics.probabilities[most]
        note = " A negative belongs to the class of its logit."
        if classes > MOST_CLASSES:
            note += f" The {MOST_CLASSES} classes with the most loss, of {classes}."
        groups.append(("class", [class_names[i] for i in most], facts, positive[most], negative[most], note))
    for what, names, facts, ours, theirs, note in groups:
        shares = [[format_percent(share) for share in column] for column in (ours, theirs, ours + theirs)]
        entries = zip(names, *(fact.tolist() for fact in facts.values()), *shares, strict=True)
        heads = (what, *facts, "loss of positives", "loss of negatives", "both")
        tables.append(Table(heads, list(entries), f"Of the whole loss.{note}", point=f"Share of the loss by {what}"))
        caption = f"Shares of the classification loss by {what} and sign.{note}"
        figures.append((caption, loss_shares(what, names, ours, theirs)))

    text = (_describe(statistics), _interpret(statistics), _name_heavy_classes(statistics, class_names))
    carried = format_percent(statistics.share(p.loss)) if p.count else "0 %"
    point = (
        f"{p.count:,} positive windows carry {carried} of the classification loss, {n.count:,} negative ones the rest."
    )
    return Section("Where the classification loss goes", "\n\n".join(filter(None, text)), tables, figures, point=point)


def _describe(statistics: FocalStatistics) -> str:
    """What is counted, and what half of the loss comes from."""
    p, n = statistics.positive.count, statistics.negative.count
    ratio = f", {n / p:,.0f} negatives for each positive" if p else ""
    alpha = "off" if statistics.alpha is None else f"{statistics.alpha:g}"
    words = [
        f"A window is one logit: a pair of an anchor and a class. It is positive where the anchor answers for a box of "
        f"that class, else negative; the {statistics.ignored_anchors:,} ignored anchors are left out. The "
        f"{statistics.images:,} images have {p:,} positive and {n:,} negative windows{ratio}. Losses are those of the "
        f"model, with alpha {alpha} and gamma {statistics.gamma:g}, unless another gamma is named.\n\n"
    ]
    for name, sign in (("positives", statistics.positive), ("negatives", statistics.negative)):
        if sign.count:
            spread = sign.spreads[statistics.gamma]
            half, ninety = (f"{s * sign.count:,.0f} ({format_percent(s)})" for s in (spread.half, spread.ninety))
            carried = format_percent(statistics.share(sign.loss))
            words.append(
                f"The {name} carry {carried} of the classification loss. Half of that comes from the {half} hardest of "
                f"them, 90 % from {ninety}. "
            )
    return "".join(words).strip()


def _interpret(statistics: FocalStatistics) -> str:
    """What to make of it: the negatives, the score threshold, the positives."""
    words = []
    if statistics.negative.count:
        share = statistics.negative.spreads[statistics.gamma].hardest_hundredth
        if share >= 0.5:
            words.append(
                f"The hardest 1 % of the negatives carry {format_percent(share)} of their loss: the mass of easy "
                "background hardly counts, as the focal loss means it to. What is left is worth a look: hard negatives "
                "can be objects that nobody annotated, anchors beside an object, or another class that looks alike."
            )
        else:
            words.append(
                f"The hardest 1 % of the negatives carry only {format_percent(share)} of their loss: most of it is "
                "spread over easy background. A larger gamma would weigh that less, and longer training would thin it "
                "out."
            )
        low, high = statistics.above
        words.append(
            f"{low:,} negatives have a probability above {PROBABILITIES[0]:g}, and {high:,} above {PROBABILITIES[1]:g}."
        )
    if statistics.positive.count:
        fifth = format_percent(statistics.positive.spreads[statistics.gamma].hardest_fifth)
        words.append(
            f"The hardest 20 % of the positives carry {fifth} of theirs (about half in the paper); the mean "
            f"probability of the annotated class over all positives is {statistics.mean_probability:.2f}."
        )
    return " ".join(words)


def _name_heavy_classes(statistics: FocalStatistics, class_names: Sequence[str]) -> str:
    """The classes with far more of the loss than of the positives."""
    counts = statistics.counts.sum(axis=0)
    losses = (statistics.positive.losses + statistics.negative.losses).sum(axis=0)
    if len(class_names) == 1 or not counts.any() or not losses.any():
        return ""
    objects, loss = counts / counts.sum(), losses / losses.sum()
    heavy = [i for i in np.argsort(-loss, kind="stable") if counts[i] >= ENOUGH and loss[i] > HEAVY * objects[i]]
    if not heavy:
        return ""
    named = "; ".join(
        f"{class_names[i]} ({format_percent(objects[i])} of the positives, {format_percent(loss[i])} of the loss, mean "
        f"probability {statistics.probabilities[i]:.2f})"
        for i in heavy[:5]
    )
    more = f"; and {len(heavy) - 5} more" if len(heavy) > 5 else ""
    return (
        f"Classes with much more of the loss than of the positives: {named}{more}. Look at their annotations first, "
        "then for more images of them."
    )


def cumulative_loss(
    shares: ArrayLike, foreground: Mapping[float, ArrayLike], background: Mapping[float, ArrayLike]
) -> Figure:
    """The paper's Figure 4: cumulative normalised loss against the fraction of windows, easiest first.

    ``shares`` (n,) are fractions of windows, 0 to 1; for each gamma the others are (n,) the share of the loss of the
    positives and of the negatives that they carry.
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

    ``shares`` and ``background`` are those of :func:`cumulative_loss`; the axis begins at one of ``count`` negatives.
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


def probability_histograms(logit_edges: ArrayLike, positive: ArrayLike, negative: ArrayLike) -> Figure:
    """How many windows have which probability, both axes so that both ends can be seen.

    Args:
        logit_edges: (n + 1,) edges of the bins, as logits.
        positive: (n,) counts of positives, by the probability of the annotated class.
        negative: (n,) counts of negatives.
    """
    x = "probability (logit scale)"
    figure, axes = make_axes("Probabilities of the windows", x, "windows in a bin", size=(7.6, 4.2))
    edges, counts = np.asarray(logit_edges, dtype=np.float64), np.array([negative, positive], dtype=np.float64)
    looks = (("negatives", NEGATIVE, "", "-"), ("positives", POSITIVE, "////", "--"))
    handles = []
    for values, (label, colour, hatch, line) in zip(counts, looks, strict=True):
        fill: dict[str, Any] = {
            "facecolor": "none" if hatch else colour,
            "edgecolor": colour,
            "hatch": hatch,
            "linewidth": 0,
        }
        axes.stairs(values, edges, fill=True, baseline=0.5, **fill)
        axes.stairs(values, edges, baseline=0.5, color=INK, linewidth=1.3, linestyle=line, label=label)
        handles.append(Patch(**fill, label=label))

    # the axis is as long as there are windows, 0.01 to 0.9 at least
    filled = np.flatnonzero(counts.sum(axis=0))
    low, high = (edges[filled[0]] - 1, edges[filled[-1] + 1] + 1) if len(filled) else (-5.0, 3.0)
    axes.set_xticks([np.log(p / (1 - p)) for p in MARKED.values()], list(MARKED))
    axes.set_xlim(max(edges[0], min(low, -5.0)), min(edges[-1], max(high, 3.0)))

    limit, top = np.log(THRESHOLD / (1 - THRESHOLD)), max(counts.max(), 1.0)
    axes.axvline(limit, color=INK, linewidth=0.9, linestyle=(0, (1, 3)))
    axes.set(yscale="log", ylim=(0.5, top * 6))
    words = f"score threshold {THRESHOLD:g}"
    axes.annotate(words, (limit, top * 3.2), xytext=(4, 0), textcoords="offset points", fontsize=8, color=INK)
    axes.legend(handles=handles, **LEGEND, loc="upper left")
    return figure


def loss_shares(what: str, names: Sequence[str], positive: ArrayLike, negative: ArrayLike) -> Figure:
    """Shares of the whole loss by sign and by level or class, the first on top.

    ``names`` are n levels or classes, as ``what`` says; ``positive`` and ``negative`` are (n,) shares in [0, 1].
    """
    title, size = f"Classification loss by {what}", (7.6, 1.5 + 0.42 * len(names))
    figure, axes = make_axes(title, "share of the loss (%)", "", size=size, grid="x")
    places = np.arange(len(names))
    signs = (("positives", positive, POSITIVE, "", -0.2), ("negatives", negative, NEGATIVE, "////", 0.2))
    for label, shares, colour, hatch, shift in signs:
        values = 100 * np.asarray(shares, dtype=np.float64)
        bars = axes.barh(places + shift, values, 0.4, color=colour, edgecolor=INK, hatch=hatch, label=label)
        words = ["" if v == 0 else f"{v:.0f}" if v >= 10 else f"{v:.1f}" if v >= 0.1 else "<0.1" for v in values]
        axes.bar_label(bars, words, padding=3, fontsize=8, color=INK)
    axes.set_yticks(places, [shorten_name(name) for name in names])
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.legend(**LEGEND, loc="lower right")
    return figure


def _draw_curves(axes: Axes, x: np.ndarray, curves: Mapping[float, ArrayLike], what: str) -> None:
    """A line for each gamma, the largest first, and a legend, the smallest first as in the paper."""
    for (colour, style, _), gamma in zip(itertools.cycle(LINES), sorted(curves, reverse=True), strict=False):
        y = np.asarray(curves[gamma], dtype=np.float64)
        if np.isfinite(y).any():
            axes.plot(x, y, linestyle=style, color=colour, linewidth=1.8, label=f"γ = {gamma:g}")
    lines, labels = axes.get_legend_handles_labels()
    if lines:
        axes.legend(lines[::-1], labels[::-1], loc="upper left", handlelength=3.2, **LEGEND)
    else:
        say_empty(axes, f"no {what} windows")
