"""The section of a report that says where the classification loss goes, what that means and what to try."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from retinanet.analysis.loss.curves import LOGIT_EDGES, SHARES, percent
from retinanet.analysis.loss.figures import (
    cumulative_loss,
    hardest_windows,
    loss_by_class,
    loss_by_level,
    probability_histograms,
)
from retinanet.analysis.loss.hint import TABLE_1B
from retinanet.analysis.loss.statistics import PROBABILITIES, FocalDiagnosis
from retinanet.errors import UserError
from retinanet.plotting.html import Section, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CLASSES = 20
# A class is named where it has this many times more of the loss than of the positives, and so many positives.
HEAVY, ENOUGH = 1.5, 20


def section(diagnosis: FocalDiagnosis, class_names: Sequence[str]) -> Section:
    """Where the loss goes, for a reader who knows the focal loss by name.

    Args:
        diagnosis: from :class:`~retinanet.analysis.loss.statistics.FocalStatistics`.
        class_names: K names.

    Raises:
        UserError: there are more or fewer names than classes.
    """
    classes = diagnosis.counts.shape[1]
    if len(class_names) != classes:
        raise UserError(f"expected {classes} class names, one for each class of the model, got {len(class_names)}")
    paragraphs = [
        _definition(diagnosis),
        _halves(diagnosis),
        _meaning(diagnosis),
        _heavy_classes(diagnosis, class_names),
        _suggestion(diagnosis),
    ]
    tables = [_by_gamma(diagnosis), _by_level(diagnosis)]
    if classes > 1:
        tables.append(_by_class(diagnosis, class_names))
    text = "\n\n".join(paragraph for paragraph in paragraphs if paragraph)
    return Section("Where the classification loss goes", text, tables, _figures(diagnosis, class_names))


def _definition(diagnosis: FocalDiagnosis) -> str:
    p, n = diagnosis.positive.count, diagnosis.negative.count
    ratio = f", {n / p:,.0f} negatives for each positive" if p else ""
    alpha = "off" if diagnosis.alpha is None else f"{diagnosis.alpha:g}"
    return (
        f"A window is one logit: a pair of an anchor and a class. It is positive where the anchor answers for a box of "
        f"that class, else negative; the {diagnosis.ignored_anchors:,} ignored anchors are left out. The "
        f"{diagnosis.images:,} images have {p:,} positive and {n:,} negative windows{ratio}. Losses are those of the "
        f"model, with alpha {alpha} and gamma {diagnosis.gamma:g}, unless another gamma is named."
    )


def _halves(diagnosis: FocalDiagnosis) -> str:
    """What half of the loss comes from."""
    parts = []
    for name, one in (("positives", diagnosis.positive), ("negatives", diagnosis.negative)):
        if one.count:
            spread = one.spread(diagnosis.gamma)
            half, ninety = (f"{share * one.count:,.0f} ({percent(share)})" for share in (spread.half, spread.ninety))
            carry = f"The {name} carry {percent(diagnosis.share(one.loss))} of the classification loss."
            parts.append(f"{carry} Half of that comes from the {half} hardest of them, 90 % from {ninety}.")
    return " ".join(parts)


def _meaning(diagnosis: FocalDiagnosis) -> str:
    """What to make of it: the negatives, the score threshold, the positives."""
    words = []
    if diagnosis.negative.count:
        share = diagnosis.negative.spread(diagnosis.gamma).hardest_hundredth
        if share >= 0.5:
            words.append(
                f"The hardest 1 % of the negatives carry {percent(share)} of their loss: the mass of easy background "
                "hardly counts, as the focal loss means it to. What is left is worth a look: hard negatives can be "
                "objects that nobody annotated, anchors beside an object, or another class that looks alike."
            )
        else:
            words.append(
                f"The hardest 1 % of the negatives carry only {percent(share)} of their loss: most of it is spread "
                "over easy background. A larger gamma would weigh that less, and longer training would thin it out."
            )
        low, high = (f"{count:,}" for count in diagnosis.above)
        words.append(
            f"{low} negatives have a probability above {PROBABILITIES[0]:g}, and {high} above {PROBABILITIES[1]:g}."
        )
    if diagnosis.positive.count:
        fifth = diagnosis.positive.spread(diagnosis.gamma).hardest_fifth
        words.append(
            f"The hardest 20 % of the positives carry {percent(fifth)} of theirs (about half in the paper); the mean "
            f"probability of the annotated class over all positives is {diagnosis.mean_probability:.2f}."
        )
    return " ".join(words)


def _heavy_classes(diagnosis: FocalDiagnosis, class_names: Sequence[str]) -> str:
    """The classes with far more of the loss than of the positives."""
    counts, losses = diagnosis.counts.sum(axis=0), _total(diagnosis).sum(axis=0)
    if len(class_names) == 1 or not counts.sum() or not losses.sum():
        return ""
    objects, loss = counts / counts.sum(), losses / losses.sum()
    heavy = [i for i in np.argsort(-loss, kind="stable") if counts[i] >= ENOUGH and loss[i] > HEAVY * objects[i]]
    if not heavy:
        return ""
    named = "; ".join(
        f"{class_names[i]} ({percent(objects[i])} of the positives, {percent(loss[i])} of the loss, mean probability "
        f"{diagnosis.probabilities[i]:.2f})"
        for i in heavy[:5]
    )
    more = f"; and {len(heavy) - 5} more" if len(heavy) > 5 else ""
    return (
        f"Classes with much more of the loss than of the positives: {named}{more}. Look at their annotations first, "
        "then for more images of them."
    )


def _suggestion(diagnosis: FocalDiagnosis) -> str:
    note = (
        "This is a hint from the losses of this model on this data, not a measured AP. The paper chose by AP, not by "
        "balance, and at gamma 2 found little at stake: on COCO, alpha 0.5 instead of 0.25 cost 0.4 AP. Only a "
        "training run can tell."
    )
    return f"Alpha and gamma: {diagnosis.hint.reason} {note}"


def _by_gamma(diagnosis: FocalDiagnosis) -> Table:
    rows = []
    pairs = zip(diagnosis.positive.spreads, diagnosis.negative.spreads, diagnosis.hint.balance, strict=True)
    for p, n, (gamma, alpha) in pairs:
        shares = [percent(share) for share in (p.hardest_fifth, n.hardest_hundredth, n.half, n.ninety)]
        paper = f"{TABLE_1B[gamma][0]:.2f}" if gamma in TABLE_1B else "–"
        rows.append([f"{gamma:g}", *shares, "–" if alpha is None else f"{alpha:.3f}", paper])
    heads = (
        "gamma",
        "hardest 20 % of positives carry",
        "hardest 1 % of negatives carry",
        "half of the negatives' loss in",
        "90 % in",
        "alpha that balances",
        "best alpha in the paper",
    )
    note = "The same model under each gamma. The alpha that balances would give positives and negatives equal loss."
    return Table(heads, rows, note)


def _by_level(diagnosis: FocalDiagnosis) -> Table:
    counts = diagnosis.counts.sum(axis=1)
    rows = [
        [name, int(count), *(percent(diagnosis.share(loss)) for loss in (p, n, p + n))]
        for name, count, p, n in zip(
            _levels(diagnosis),
            counts,
            diagnosis.positive_losses.sum(axis=1),
            diagnosis.negative_losses.sum(axis=1),
            strict=True,
        )
    ]
    return Table(("level", "positives", "loss of positives", "loss of negatives", "both"), rows, "Of the whole loss.")


def _by_class(diagnosis: FocalDiagnosis, class_names: Sequence[str]) -> Table:
    counts = diagnosis.counts.sum(axis=0)
    p, n = diagnosis.positive_losses.sum(axis=0), diagnosis.negative_losses.sum(axis=0)
    rows = [
        [
            class_names[i],
            int(counts[i]),
            float(diagnosis.probabilities[i]),
            *(percent(diagnosis.share(loss)) for loss in (p[i], n[i], p[i] + n[i])),
        ]
        for i in np.argsort(-(p + n), kind="stable")[:MOST_CLASSES]
    ]
    heads = ("class", "positives", "their mean probability", "loss of positives", "loss of negatives", "both")
    rest = f" The {MOST_CLASSES} classes with the most loss." if len(class_names) > MOST_CLASSES else ""
    return Table(heads, rows, "Of the whole loss; a negative belongs to the class of its logit." + rest)


def _figures(diagnosis: FocalDiagnosis, class_names: Sequence[str]) -> list[tuple[str, Figure]]:
    p, n = diagnosis.positive, diagnosis.negative
    curves = [{spread.gamma: spread.curve for spread in one.spreads} for one in (p, n)]
    whole = diagnosis.loss or 1.0
    losses = (diagnosis.positive_losses / whole, diagnosis.negative_losses / whole)
    figures = [
        (
            "Cumulative normalised loss of positive and negative windows, easiest first, under each gamma; the model "
            "is the same. As Figure 4 of the paper.",
            cumulative_loss(SHARES, *curves),
        ),
        (
            "The right panel from its hard end: what share of the negatives' loss the hardest of them carry.",
            hardest_windows(SHARES, curves[1], n.count),
        ),
        (
            "Probabilities of the annotated class at positives and of all other windows. Both axes are stretched.",
            probability_histograms(LOGIT_EDGES, p.histogram, n.histogram),
        ),
        (
            "Shares of the classification loss by level and sign.",
            loss_by_level(_levels(diagnosis), *(part.sum(axis=1) for part in losses)),
        ),
    ]
    if len(class_names) > 1:
        parts = (part.sum(axis=0) for part in losses)
        figures.append(("Shares of the classification loss by class and sign.", loss_by_class(class_names, *parts)))
    return figures


def _total(diagnosis: FocalDiagnosis) -> np.ndarray:
    return diagnosis.positive_losses + diagnosis.negative_losses


def _levels(diagnosis: FocalDiagnosis) -> list[str]:
    return [f"P{level + 3}" for level in range(len(diagnosis.counts))]
