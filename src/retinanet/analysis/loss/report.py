"""The section of a report that says where the classification loss goes and what that means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from retinanet.analysis.loss.curves import LOGIT_EDGES, SHARES, Floats
from retinanet.analysis.loss.figures import cumulative_loss, hardest_windows, loss_shares, probability_histograms
from retinanet.analysis.loss.statistics import PROBABILITIES, FocalStatistics
from retinanet.errors import UserError
from retinanet.plotting.html import Section, Table, format_percent

MOST_CLASSES = 20
# A class is named where it has this many times more of the loss than of the positives, and so many positives.
HEAVY, ENOUGH = 1.5, 20


def section(statistics: FocalStatistics, class_names: Sequence[str]) -> Section:
    """Where the loss goes, for a reader who knows the focal loss by name.

    Args:
        statistics: of the whole data set.
        class_names: K names.

    Raises:
        UserError: there are more or fewer names than classes.
    """
    levels, classes = statistics.counts.shape
    if len(class_names) != classes:
        raise UserError(f"expected {classes} class names, one for each class of the model, got {len(class_names)}")
    positive, negative = (statistics.share(sign.losses) for sign in (statistics.positive, statistics.negative))
    names = [f"P{level + 3}" for level in range(levels)]
    facts = {"positives": statistics.counts.sum(axis=1)}
    by_group = [_show_shares("level", names, facts, positive.sum(axis=1), negative.sum(axis=1))]
    if classes > 1:
        positive, negative = positive.sum(axis=0), negative.sum(axis=0)
        most = np.argsort(-(positive + negative), kind="stable")[:MOST_CLASSES]
        names = [class_names[i] for i in most]
        counts, probabilities = statistics.counts.sum(axis=0)[most], statistics.probabilities[most]
        facts = {"positives": counts, "their mean probability": probabilities}
        note = " A negative belongs to the class of its logit."
        if classes > MOST_CLASSES:
            note += f" The {MOST_CLASSES} classes with the most loss, of {classes}."
        by_group.append(_show_shares("class", names, facts, positive[most], negative[most], note))
    tables, figures = zip(*by_group, strict=True)
    by_gamma = Table(
        (
            "gamma",
            "hardest 20 % of positives carry",
            "hardest 1 % of negatives carry",
            "half of the negatives' loss in",
            "90 % in",
        ),
        [
            (f"{p.gamma:g}", *map(format_percent, (p.hardest_fifth, n.hardest_hundredth, n.half, n.ninety)))
            for p, n in zip(statistics.positive.spreads, statistics.negative.spreads, strict=True)
        ],
        "The same model under each gamma.",
    )
    text = [_describe(statistics), _interpret(statistics), _name_heavy_classes(statistics, class_names)]
    return Section(
        "Where the classification loss goes",
        "\n\n".join(paragraph for paragraph in text if paragraph),
        [by_gamma, *tables],
        [*_draw_windows(statistics), *figures],
    )


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
            spread = sign.spread(statistics.gamma)
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
        share = statistics.negative.spread(statistics.gamma).hardest_hundredth
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
        low, high = (f"{count:,}" for count in statistics.above)
        words.append(
            f"{low} negatives have a probability above {PROBABILITIES[0]:g}, and {high} above {PROBABILITIES[1]:g}."
        )
    if statistics.positive.count:
        fifth = format_percent(statistics.positive.spread(statistics.gamma).hardest_fifth)
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


def _show_shares(
    what: str,
    names: Sequence[str],
    facts: Mapping[str, np.ndarray],
    positive: Floats,
    negative: Floats,
    note: str = "",
) -> tuple[Table, tuple[str, Figure]]:
    """The shares (n,) of n levels or classes as a table, with a column for each of the facts (n,), and as a figure."""
    columns = [fact.tolist() for fact in facts.values()]
    columns += [[format_percent(share) for share in shares] for shares in (positive, negative, positive + negative)]
    headings = (what, *facts, "loss of positives", "loss of negatives", "both")
    table = Table(headings, list(zip(names, *columns, strict=True)), f"Of the whole loss.{note}")
    caption = f"Shares of the classification loss by {what} and sign.{note}"
    return table, (caption, loss_shares(what, names, positive, negative))


def _draw_windows(statistics: FocalStatistics) -> list[tuple[str, Figure]]:
    p, n = statistics.positive, statistics.negative
    foreground, background = ({spread.gamma: spread.curve for spread in sign.spreads} for sign in (p, n))
    return [
        (
            "Cumulative normalised loss of positive and negative windows, easiest first, under each gamma; the model "
            "is the same. As Figure 4 of the paper.",
            cumulative_loss(SHARES, foreground, background),
        ),
        (
            "The right panel from its hard end: what share of the negatives' loss the hardest of them carry.",
            hardest_windows(SHARES, background, n.count),
        ),
        (
            "Probabilities of the annotated class at positives and of all other windows. Both axes are stretched.",
            probability_histograms(LOGIT_EDGES, p.histogram, n.histogram),
        ),
    ]
