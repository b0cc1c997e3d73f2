"""The part of a report that is about anchors: text, tables and figures of an audit and a proposal."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import indent
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from retinanet.analysis.anchors.audit import PARTS, AnchorAudit, Group, name_octave
from retinanet.analysis.anchors.propose import Proposal, format_values
from retinanet.plotting.figures import BLUE, FAINT, INK, LEGEND, ORANGE, VERMILION, make_axes, style_axes
from retinanet.plotting.html import Section, Table

EXPLANATION = (
    "An anchor is positive, that is, it learns to find a box, from IoU {high:g} on; below {low:g} it is a negative. A "
    "box that no anchor reaches at {high:g} has its best anchors forced to be positive: fewer, and less like it. "
    "Where many boxes are below {high:g}, change sizes, ratios and scales of the anchors, or enlarge the images. The "
    "share of positives is the imbalance that the focal loss has to carry; the paper speaks of one in a thousand."
)
DRAWN = 4000  # boxes in a scatter; more hide each other


def section(audited: AnchorAudit, proposal: Proposal | None = None) -> Section:
    """What the anchors miss, where, and what would fix it; figures show the proposal beside the anchors now."""
    low, high = audited.background, audited.foreground
    text, tables, after = [indent(audited.summary(), " " * 4), EXPLANATION.format(high=high, low=low)], [], None
    if proposal is not None:
        text.append(indent(proposal.summary(), " " * 4))
        if proposal.changed:
            text.append(indent(proposal.to_yaml().rstrip(), " " * 4))
            after = proposal.after
        if proposal.options:
            columns = ("option", "short side", "pixels, times", f"share at {high:g}", f"share at {low:g}", *PARTS)
            keys = ("name", "short", "pixels", "covered", "reached")
            rows = [
                (*(option[key] for key in keys), *(format_values(option[part]) for part in PARTS))
                for option in proposal.list_options()
            ]
            note = "Share of the boxes with an anchor at this IoU, on a sample where boxes are many."
            tables.append(Table(columns, rows, note, point=f"What was compared: {proposal.reason}"))
    if not len(audited):
        return Section("Anchors", "\n\n".join(text))
    point = (
        f"{audited.below(high):.1%} of {len(audited):,} boxes have no anchor at IoU {high:g}; a box has "
        f"{audited.positives.mean():.1f} positives on average."
    )
    heads = (f"below {high:g}", f"below {low:g}", "mean best IoU", "positives per box", "forced only", "no positive")
    tables += [
        Table((f"by {name}", "boxes", *heads), groups, point=f"By {name}: {_name_worst(groups, high)}")
        for name, groups in audited.tables.items()
    ]
    figures = [
        ("The best IoU of each box with any anchor.", draw_best_iou(audited, after)),
        ("Boxes and anchors by their sides, now.", draw_sides(audited)),
        *([("Boxes and anchors by their sides, as proposed.", draw_sides(after))] if after is not None else []),
        ("Positive anchors of a box by its size.", draw_positives(audited)),
    ]
    return Section("Anchors", "\n\n".join(text), tables, figures, point=point)


def _name_worst(groups: Sequence[Group], high: float) -> str:
    """The group that the anchors fit least, and the share of it that they miss."""
    worst = max((group for group in groups if group.boxes), key=lambda group: group.below_foreground)
    if not worst.below_foreground:
        return f"every box has an anchor at IoU {high:g}"
    return f"{worst.below_foreground:.1%} of {worst.name} have no anchor at IoU {high:g}, the most"


def draw_best_iou(now: AnchorAudit, proposed: AnchorAudit | None = None) -> Figure:
    """The best IoU of every box with any anchor, as a histogram; a proposal is drawn over it as an outline."""
    figure, axes = make_axes("Best anchor of each box", "best IoU with any anchor", "share of boxes", size=(7.0, 4.2))
    edges = np.linspace(0, 1, 41)
    high = now.foreground
    ways: list[tuple[str, AnchorAudit, dict[str, Any]]] = [("now", now, {"fill": True, "color": "#b9bec6"})]
    if proposed is not None:
        ways.append(("proposed", proposed, {"color": BLUE, "linewidth": 1.8}))
    for name, audited, style in ways:
        share = f"{audited.below(high):.1%}" if len(audited) else "none"
        heights = np.histogram(audited.best_iou, edges)[0] / max(1, len(audited))
        axes.stairs(heights, edges, label=f"{name} ({share} below {high:g})", **style)
    above = axes.get_xaxis_transform()
    for mark, line in ((now.background, ":"), (high, "--")):
        axes.axvline(mark, color=INK, linestyle=line, linewidth=1.1)
        axes.text(mark + 0.006, 0.99, f"{mark:g}", transform=above, va="top", fontsize=9, color=INK)
    axes.set_xlim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend(**LEGEND, loc="upper left")
    return figure


def draw_sides(audited: AnchorAudit) -> Figure:
    """Boxes by width and height, those that no anchor covers apart, with the anchors as crosses.

    At most 4000 boxes are drawn, evenly taken.
    """
    x, y = (f"{side} after the resize / pixels" for side in ("width", "height"))
    figure, axes = make_axes("Boxes and anchors", x, y, size=(6.2, 5.6))
    high, step = audited.foreground, -(-len(audited) // DRAWN) or 1
    drawn, missed = audited.sides[::step], audited.best_iou[::step] < np.float32(high)
    below = audited.below(high) if len(audited) else 0.0
    for rows, share, marker, colour, size, name in (
        (~missed, 1 - below, "o", "#9aa1ab", 9, f"IoU {high:g} and above"),
        (missed, below, "v", VERMILION, 20, f"below {high:g}"),
    ):
        (x, y), label = np.maximum(drawn[rows], 0.5).T, f"boxes, {name} ({share:.1%})"
        axes.scatter(x, y, s=size, marker=marker, color=colour, alpha=0.7, linewidths=0, label=label)
    corners = audited.lattice.templates().flatten(0, 1).numpy()  # (L * A, 4)
    templates = corners[:, 2:] - corners[:, :2]
    axes.plot(*templates.T, "+", color=INK, markersize=8, markeredgewidth=1.3, linestyle="", label="anchors", zorder=4)
    sides = np.concatenate([drawn, templates])
    limits = max(0.5, 0.8 * sides.min()), 1.25 * sides.max()
    axes.set(xscale="log", yscale="log", xlim=limits, ylim=limits)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator([2**k for k in range(-1, 14)]))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter("{x:g}")
    axes.grid(axis="x", color=FAINT, linewidth=0.7)
    axes.set_aspect("equal")
    axes.legend(**LEGEND | {"frameon": True}, framealpha=0.9, edgecolor=FAINT, loc="upper left")
    return figure


def draw_positives(audited: AnchorAudit) -> Figure:
    """How many anchors answer for a box, by its size, and how many boxes have none or forced ones only."""
    figure = Figure(figsize=(7.0, 5.6), layout="constrained")
    counts, shares = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    style_axes(counts, "Positive anchors of a box", "", "positive anchors\n(5, 25, 50, 75, 95 %)")
    style_axes(shares, "", "square root of the area after the resize / pixels", "share of boxes")
    shares.set_ylim(0, 1)
    shares.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    if not len(audited):
        return figure
    octaves = range(audited.octave.min(), audited.octave.max() + 1)
    members = [audited.octave == octave for octave in octaves]
    filled = {place: audited.positives[rows] for place, rows in enumerate(members) if rows.any()}
    ink: dict[str, Any] = {"color": INK}
    counts.boxplot(
        list(filled.values()),
        positions=list(filled),
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
    floor = np.zeros(len(octaves))
    for name, colour, hatch, which in (
        ("no positive anchor", VERMILION, "xx", audited.positives == 0),
        ("forced matches only", ORANGE, "//", audited.forced),
    ):
        height = np.array([which[rows].mean() if rows.any() else 0.0 for rows in members])
        style = {"color": colour, "edgecolor": INK, "linewidth": 0.7, "hatch": hatch, "label": name}
        shares.bar(range(len(octaves)), height, 0.6, floor, **style)
        floor += height
    counts.set_ylim(bottom=0)
    names = [f"{name_octave(octave)}\nn = {rows.sum():,}" for octave, rows in zip(octaves, members, strict=True)]
    shares.set_xticks(range(len(octaves)), names)
    shares.legend(**LEGEND)
    return figure
