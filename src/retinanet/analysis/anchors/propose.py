"""Anchors, or a size of images, that fit the boxes of a data set better: found by search, judged by the audit.

Three remedies are compared: other sizes, ratios and scales at the same size of images, larger images with the anchors
as they are, and both. The search climbs on a smooth count of the boxes that an anchor overlaps by the foreground IoU,
each box where it lies on the lattice, not centred on an anchor. For objects as small as a stride that matters most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from retinanet.analysis.anchors.audit import IMAGE, PARTS, AnchorAudit, audit
from retinanet.analysis.anchors.search import fit_lattice
from retinanet.anchors.lattice import AnchorLattice
from retinanet.errors import UserError
from retinanet.images.preprocess import Preprocess
from retinanet.types import Sample

ENOUGH = 0.99  # share of covered boxes at which nothing is changed
WORTH = 0.02  # share of the boxes that larger images must win
ANCHORS_WORTH = 0.005  # share of the boxes that new anchors must win
JUDGED = 20_000  # boxes that the options are compared on
FACTORS = (1.25, 1.5, 2.0)  # on the short side


@dataclass(frozen=True)
class Proposal:
    """What to change, if anything."""

    before: AnchorAudit  # the audit of things as they are
    after: AnchorAudit  # the audit of the proposal; ``before`` itself if nothing is proposed
    reason: str  # why this and not another, or why nothing
    # all that were compared, by name, as things are first; audited on a sample of the boxes where they are many.
    options: Mapping[str, AnchorAudit] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        """Whether anything is proposed."""
        return self.after is not self.before

    @property
    def architecture_anchors(self) -> dict[str, list[float]]:
        """What goes to ``--architecture.anchors``: sizes, ratios and scales; empty if they stay."""
        return {} if self.after.lattice == self.before.lattice else list_parts(self.after.lattice)

    @property
    def image(self) -> dict[str, int]:
        """What goes to ``--image``: short, long and multiple, for which the anchors are meant."""
        return {key: getattr(self.after.preprocess, key) for key in IMAGE}

    def to_yaml(self) -> str:
        """The text of a file that ``retinanet train DATA --output RUN --config FILE`` takes."""
        high = self.before.foreground
        lines = [f"# {self.reason}", f"# boxes without an anchor at IoU {high:g}: {self.before.below(high):.1%}"]
        if self.changed:
            lines[-1] += f" before, {self.after.below(high):.1%} after"
        if self.architecture_anchors:
            rows = [f"    {key}: {values}" for key, values in self.architecture_anchors.items()]
            lines += ["architecture:", "  anchors:", *rows]
        lines += ["image:", *(f"  {key}: {value}" for key, value in self.image.items())]
        return "\n".join(lines) + "\n"

    def summary(self) -> str:
        """A few lines: what, why, and the shares before and after."""
        lines = [f"proposal: {self.reason}"]
        if not self.changed:
            return lines[0]
        lines += [f"  {name}: {format_values(values)}" for name, values in self.architecture_anchors.items()]
        lines.append(f"  images: short side {self.image['short']}, long side at most {self.image['long']} pixels")
        for iou in (self.before.foreground, self.before.background):
            lines.append(f"  boxes below IoU {iou:g}: {self.before.below(iou):.1%} -> {self.after.below(iou):.1%}")
        return "\n".join(lines)

    def list_options(self) -> list[dict[str, Any]]:
        """Each option in plain values; ``pixels`` of an image, as a multiple of those now, cost time and memory."""
        now = self.before.preprocess.short
        return [
            {
                "name": name,
                **list_parts(option.lattice),
                "short": option.preprocess.short,
                "pixels": (option.preprocess.short / now) ** 2,
                "covered": option.covered,
                "reached": 1 - option.below(option.background),
            }
            for name, option in self.options.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """The proposal as plain JSON."""
        return {
            "changed": self.changed,
            "reason": self.reason,
            "architecture": {"anchors": self.architecture_anchors},
            "image": self.image,
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "options": self.list_options(),
        }


def list_parts(lattice: AnchorLattice) -> dict[str, list[float]]:
    """The sizes, ratios and scales of a lattice."""
    return {key: [float(value) for value in getattr(lattice, key)] for key in PARTS}


def format_values(values: Sequence[float]) -> str:
    """Numbers with commas between, six digits each at most."""
    return ", ".join(f"{value:.6g}" for value in values)


def propose(
    samples: Sequence[Sample],
    class_names: Sequence[str],
    *,
    lattice: AnchorLattice,
    preprocess: Preprocess,
    most_pixels: float = 4.0,
) -> Proposal:
    """Look for anchors or a size of images that cover more boxes. The same data give the same proposal.

    Nothing is proposed where 99 % of the boxes have an anchor at the foreground IoU already. Else images stay as small
    as they may: the least size is taken at which 99 %, or all but 2 % of what the largest reach, are covered. At that
    size new anchors are proposed where they win half a percent or more. Of their sizes, ratios and scales those that
    hardly matter stay as they are.

    Args:
        samples: annotated images; their pixels are not read.
        class_names: K names.
        lattice: the anchors now.
        preprocess: the size of training now.
        most_pixels: how many times as many pixels an image may get; 1 leaves the size of images as it is.

    Raises:
        UserError: ``most_pixels`` is below 1.
    """
    if most_pixels < 1:
        raise UserError(f"a proposal needs most_pixels >= 1, got {most_pixels}")
    before = audit(samples, class_names, lattice=lattice, preprocess=preprocess)
    if not (before.sides > 0).all(axis=1).any() or before.covered >= ENOUGH:
        return Proposal(before, before, _explain_no_change(before))
    judged = _draw_samples(samples, len(before))
    options: dict[str, AnchorAudit] = {}
    for size in _list_sizes(preprocess, most_pixels):  # the remedies from the cheapest on, until one covers enough
        larger = f"short side {size.short}" if size.short != preprocess.short else ""
        old = options[larger or "as it is"] = audit(judged, class_names, lattice=lattice, preprocess=size)
        if larger and old.covered >= ENOUGH:
            break
        new = audit(judged, class_names, lattice=fit_lattice(old), preprocess=size)
        options[f"{larger}, new anchors" if larger else "new anchors"] = new
        if new.covered >= ENOUGH:
            break
    best = _choose(list(options.values()))
    if best is options["as it is"]:
        return Proposal(before, before, "nothing was found that covers more boxes", options)
    after = audit(samples, class_names, lattice=best.lattice, preprocess=best.preprocess)
    pixels = (after.preprocess.short / preprocess.short) ** 2
    what = f"larger images (short side {after.preprocess.short}, {pixels:.2g} x the pixels)"
    if after.lattice != lattice:
        what = f"new anchors and {what}" if pixels != 1 else "new anchors at the same size of images"
    covered = f"{after.covered:.1%} of the boxes at IoU {before.foreground:g}, {before.covered:.1%} now"
    return Proposal(before, after, f"{what} cover {covered}", options)


def _choose(options: Sequence[AnchorAudit]) -> AnchorAudit:
    """Of options from the cheapest on: the least images that are enough or nearly as good as the best.

    The old anchors stay if they do nearly as well as new ones at that size.
    """

    def cheapest(options: Sequence[AnchorAudit], worth: float) -> AnchorAudit:
        enough = min(ENOUGH, max(option.covered for option in options) - worth)
        return next(option for option in options if option.covered >= enough)

    size = cheapest(options, WORTH).preprocess
    return cheapest([option for option in options if option.preprocess == size], ANCHORS_WORTH)


def _explain_no_change(audited: AnchorAudit) -> str:
    """Why nothing is proposed, and which class it would be for if not for its few boxes."""
    if not len(audited):
        return "there are no boxes to fit anchors to"
    high = audited.foreground
    text = f"the anchors cover {audited.covered:.1%} of the boxes at IoU {high:g}: nothing to change"
    worst = max((group for group in audited.tables["class"] if group.boxes), key=lambda group: group.below_foreground)
    if worst.below_foreground <= 0.1:
        return text
    return f"{text}, though of the class {worst.name} they cover {1 - worst.below_foreground:.1%}"


def _draw_samples(samples: Sequence[Sample], boxes: int) -> Sequence[Sample]:
    """So many of the images that they hold about ``JUDGED`` boxes."""
    wanted = math.ceil(len(samples) * JUDGED / boxes)
    if wanted >= len(samples):
        return samples
    rows = np.sort(np.random.default_rng(0).choice(len(samples), wanted, replace=False))
    return [samples[row] for row in rows.tolist()]


def _list_sizes(preprocess: Preprocess, most_pixels: float) -> list[Preprocess]:
    """The size of images as it is, then larger ones, to the multiple that images are padded to."""
    sizes, step = [preprocess], preprocess.multiple
    for factor in FACTORS:
        short = max(1, round(preprocess.short * factor / step)) * step
        larger = replace(preprocess, short=short, long=max(short, round(preprocess.long * short / preprocess.short)))
        if sizes[-1].short < short and (short / preprocess.short) ** 2 <= most_pixels:
            sizes.append(larger)
    return sizes
