"""The part of a report that is about anchors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from retinanet.analysis.anchors.audit import AnchorAudit, Group
from retinanet.analysis.anchors.figures import best_iou_histogram, box_sides, positives_by_size
from retinanet.analysis.anchors.propose import Proposal
from retinanet.plotting.html import Section, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXPLANATION = (
    "An anchor is positive, that is, it learns to find a box, from IoU {high:g} on; below {low:g} it is a negative. A "
    "box that no anchor reaches at {high:g} has its best anchors forced to be positive: fewer, and less like it. "
    "Where many boxes are below {high:g}, change sizes, ratios and scales of the anchors, or enlarge the images. The "
    "share of positives is the imbalance that the focal loss has to carry; the paper speaks of one in a thousand."
)


def section(audited: AnchorAudit, proposal: Proposal | None = None) -> Section:
    """What the anchors miss, where, and what would fix it.

    Args:
        audited: the anchors as they are.
        proposal: what to change; the figures show it beside them.
    """
    low, high = audited.matcher.background, audited.matcher.foreground
    text = [_as_it_is(audited.summary()), EXPLANATION.format(high=high, low=low)]
    after = proposal.after if proposal is not None and proposal.changed else None
    if proposal is not None:
        text += [_as_it_is(proposal.summary()), *([_as_it_is(proposal.to_yaml())] if proposal.changed else [])]
    if not audited.boxes:
        return Section("Anchors", "\n\n".join(text))
    options = [proposal.table()] if proposal is not None and proposal.options else []
    tables = [_table(audited, name, groups) for name, groups in audited.tables.items()]
    new = None if after is None else after.best_iou
    figures = [
        ("The best IoU of each box with any anchor.", best_iou_histogram(audited.best_iou, new, marks=(low, high))),
        ("Boxes and anchors by their sides, now.", _sides(audited)),
        *([("Boxes and anchors by their sides, as proposed.", _sides(after))] if after is not None else []),
        ("Positive anchors of a box by its size.", positives_by_size(audited.sides, audited.positives, audited.forced)),
    ]
    return Section("Anchors", "\n\n".join(text), [*options, *tables], figures)


def _as_it_is(text: str) -> str:
    """Lines that the report shows as they are."""
    return "\n".join(f"    {line}" for line in text.rstrip().split("\n"))


def _sides(audited: AnchorAudit) -> Figure:
    return box_sides(audited.sides, audited.best_iou, audited.templates, foreground=audited.matcher.foreground)


def _table(audited: AnchorAudit, name: str, groups: Sequence[Group]) -> Table:
    below = (f"below {audited.matcher.foreground:g}", f"below {audited.matcher.background:g}")
    columns = (f"by {name}", "boxes", *below, "mean best IoU", "positives per box", "forced only", "no positive")
    return Table(columns, [tuple(vars(group).values()) for group in groups])
