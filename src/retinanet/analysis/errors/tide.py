"""What goes wrong and what each kind of mistake costs: the error types of TIDE (Bolya et al., ECCV 2020).

Section 2 of the paper names six types and gives each an oracle that fixes it. Where the paper leaves a choice open, the
choice is that of the authors' program, so that the numbers can be compared with published ones:

* A false detection that fits several types is the first of localisation, classification, duplicate, background, both.
* Of several classification and localisation errors on one object, the best-scoring can be fixed, the others can only
  be removed; all of them can only be removed where the object has been found by another detection.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retinanet.analysis.errors.overlaps import Flags, Floats, Integers, Overlaps, average_precision, mean, plain
from retinanet.errors import UserError
from retinanet.types import Detections, Sample

TYPES = ("classification", "localisation", "both", "duplicate", "background", "missed")
SPECIAL = ("false positives", "false negatives")
HIT, IGNORED, LEFT_OUT = "hit", "ignored", "left out"
# What a detection is, by code; a "missed" error is of an object, never of a detection.
KINDS = (HIT, *TYPES[:-1], IGNORED)


@dataclass(frozen=True)
class ImageErrors:
    """What became of one image.

    Attributes:
        kinds: one per row of its ``Detections``: ``hit``, one of the first five ``TYPES``, ``ignored`` (it lies in an
            ignore region of its class) or ``left out`` (beyond the 100 best of its class).
        partners: one per row of its ``Detections``: the row of ``Target`` that the kind refers to, or -1. A hit's
            object; the object of another class (classification, both), of the same class (localisation), already
            found (duplicate); the ignore region.
        missed: rows of ``Target`` that no detection found and no classification or localisation error refers to.
        unmatched: rows of ``Target`` that no detection found, the missed ones among them.
    """

    kinds: tuple[str, ...]
    partners: tuple[int, ...]
    missed: tuple[int, ...]
    unmatched: tuple[int, ...]


@dataclass(frozen=True)
class ErrorAnalysis:
    """The errors of a model on a data set.

    Attributes:
        class_names: K names.
        foreground: IoU from which a detection has found an object.
        background: IoU below which a detection has nothing to do with an object.
        objects: (K,) annotated objects, ignore regions left out.
        hits: (K,) detections that have found an object.
        counts: for each of ``TYPES``, (K,) errors: false detections by the class they were given, missed objects by
            their own class. They are counted at all scores.
        ap50: average precision at ``foreground`` as it is, mean of the classes that have objects.
        dap: for each of ``TYPES`` and of ``SPECIAL``, the average precision after fixing all errors of that type and
            no other, minus ``ap50``. The gains do not add up.
        ap50_by_class: (K,), NaN where a class has no object.
        dap_by_class: the same differences for each class, (K,).
        all_fixed: average precision after fixing all six types, which is 1 wherever there are objects.
        images: what became of each image, in the order of the samples.
    """

    class_names: tuple[str, ...]
    foreground: float
    background: float
    objects: Integers
    hits: Integers
    counts: Mapping[str, Integers]
    ap50: float
    dap: Mapping[str, float]
    ap50_by_class: Floats
    dap_by_class: Mapping[str, Floats]
    all_fixed: float
    images: tuple[ImageErrors, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the single images."""
        rows = [
            {
                "name": name,
                "objects": int(self.objects[k]),
                "hits": int(self.hits[k]),
                "errors": {kind: int(self.counts[kind][k]) for kind in TYPES},
                "ap50": plain(self.ap50_by_class[k]),
                "dap50": {kind: plain(self.dap_by_class[kind][k]) for kind in (*TYPES, *SPECIAL)},
            }
            for k, name in enumerate(self.class_names)
        ]
        return {
            "foreground": self.foreground,
            "background": self.background,
            "objects": int(self.objects.sum()),
            "hits": int(self.hits.sum()),
            "errors": {kind: int(self.counts[kind].sum()) for kind in TYPES},
            "ap50": plain(self.ap50),
            "dap50": {kind: plain(self.dap[kind]) for kind in (*TYPES, *SPECIAL)},
            "ap50_all_fixed": plain(self.all_fixed),
            "classes": rows,
        }

    def summary(self) -> str:
        """AP50, and what fixing each type would add, the costliest first."""
        if np.isnan(self.ap50):
            return "AP50 cannot be measured: there are no objects"
        lines = [f"AP50 {self.ap50:.3f} of {int(self.objects.sum())} objects. Fixing every error of one type adds:"]
        for kind in sorted(TYPES, key=lambda kind: -self.dap[kind]):
            lines.append(f"  {kind:<15} {self.dap[kind]:+.3f}   ({int(self.counts[kind].sum())} errors)")
        lines += [f"  all {kind} removed: {self.dap[kind]:+.3f}" for kind in SPECIAL]
        return "\n".join(lines)


def analyse_errors(
    samples: Sequence[Sample],
    detections: Sequence[Detections],
    class_names: Sequence[str],
    *,
    foreground: float = 0.5,
    background: float = 0.1,
    overlaps: Overlaps | None = None,
) -> ErrorAnalysis:
    """Sort every false detection and every overlooked object into one of six types, and say what each type costs.

    ====================  ===========================================================================================
    type                  a detection that has found no object and ...
    ====================  ===========================================================================================
    classification        overlaps an object of another class by ``foreground`` or more
    localisation          overlaps an object of its class by ``background`` or more, but less than ``foreground``
    both                  overlaps an object of another class by ``background`` or more, but less than ``foreground``
    duplicate             overlaps an object of its class that a better-scored detection has found
    background            overlaps every object by less than ``background``
    missed                (an object) found by none, and no classification or localisation error refers to it
    ====================  ===========================================================================================

    The oracles: a classification error gets the class of its object and a localisation error its box, so both become
    hits at their score; the errors of the next three types are removed; missed objects are no longer counted. A class
    whose objects all left the count has AP 1 if no false detection of it is left, else 0. Detections in an ignore
    region of their class count neither way.

    Args:
        samples: N annotated images, boxes in pixels of the original image.
        detections: N, what was found in each of them, in the same pixels.
        class_names: K names.
        foreground: the paper's t_f.
        background: the paper's t_b.
        overlaps: of the same data, if they have been computed already.

    Raises:
        UserError: the thresholds are not 0 < background < foreground <= 1, or the data do not fit together.
    """
    if not 0 < background < foreground <= 1:
        raise UserError(f"expected 0 < background < foreground <= 1, got {background} and {foreground}")
    overlaps = overlaps or Overlaps.of(samples, detections, class_names)
    sorting = _Sorting.of(overlaps, foreground, background)
    ap = sorting.fixed(())
    by_class = {kind: sorting.fixed((kind,)) - ap for kind in (*TYPES, *SPECIAL)}
    classes = len(overlaps.class_names)
    counts = {
        kind: np.bincount(overlaps.label[sorting.kind == code], minlength=classes) for code, kind in enumerate(KINDS)
    }
    counts["missed"] = np.bincount(overlaps.truth_label[sorting.missed], minlength=classes)
    return ErrorAnalysis(
        class_names=overlaps.class_names,
        foreground=foreground,
        background=background,
        objects=overlaps.counts,
        hits=counts[HIT],
        counts={kind: counts[kind] for kind in TYPES},
        ap50=mean(ap),
        dap={kind: mean(change) for kind, change in by_class.items()},
        ap50_by_class=ap,
        dap_by_class=by_class,
        all_fixed=mean(sorting.fixed(TYPES)),
        images=_by_image(sorting, detections),
    )


@dataclass(frozen=True)
class _Sorting:
    """The kind of every detection and the state of every object.

    Attributes:
        overlaps: of the data.
        kind: (D,) index into ``KINDS``.
        partner: (D,) the object that the kind refers to, -1 for none.
        unmatched: (T,) objects that no detection found.
        missed: (T,) those to which no classification or localisation error refers.
        fixes: (D,) the classification and localisation errors that become hits when they are fixed.
    """

    overlaps: Overlaps
    kind: Integers
    partner: Integers
    unmatched: Flags
    missed: Flags
    fixes: Flags

    @staticmethod
    def of(overlaps: Overlaps, foreground: float, background: float) -> _Sorting:
        """Match, then sort what is left."""
        matched = overlaps.match(foreground)
        kind, partner = _kinds(overlaps, matched, foreground, background)
        unmatched = ~overlaps.ignore
        unmatched[matched[kind == KINDS.index(HIT)]] = False
        wrong = np.isin(kind, [KINDS.index("classification"), KINDS.index("localisation")])
        hopeful = np.flatnonzero(wrong & np.append(unmatched, False)[partner])  # index -1 is the entry appended
        best = np.full(len(overlaps.ignore), len(kind))
        np.minimum.at(best, partner[hopeful], hopeful)  # detections are in the order of their scores
        fixes = np.zeros(len(kind), bool)
        fixes[best[best < len(kind)]] = True
        return _Sorting(overlaps, kind, partner, unmatched, unmatched & (best == len(kind)), fixes)

    def fixed(self, types: Collection[str]) -> Floats:
        """(K,) average precision after the oracles of some types, NaN where a class has no object."""
        overlaps = self.overlaps
        named = np.array([kind in types for kind in KINDS])[self.kind]
        hits = self.kind == KINDS.index(HIT)
        becomes = named & self.fixes
        keep = (self.kind != KINDS.index(IGNORED)) & (~named | becomes)
        if "false positives" in types:
            keep &= hits
        label = np.where(becomes, np.append(overlaps.truth_label, -1)[self.partner], overlaps.label)
        gone = self.unmatched if "false negatives" in types else self.missed & ("missed" in types)
        left = overlaps.counts - np.bincount(overlaps.truth_label[gone], minlength=len(overlaps.class_names))
        result = average_precision(label[keep], (hits | becomes)[keep], left)
        false = np.bincount(label[keep & ~(hits | becomes)], minlength=len(left))
        return np.where((overlaps.counts > 0) & (left == 0), false == 0, result)


def _kinds(overlaps: Overlaps, matched: Integers, foreground: float, background: float) -> tuple[Integers, Integers]:
    """(D,) index into ``KINDS`` and (D,) the object it refers to, from the objects matched (D,)."""
    objects = ~overlaps.ignore[overlaps.pair_truth]
    same = overlaps.label[overlaps.pair_detection] == overlaps.truth_label[overlaps.pair_truth]
    own, own_iou = overlaps.nearest(objects & same)
    other, other_iou = overlaps.nearest(objects & ~same)
    ignored = np.zeros(len(matched), bool)
    ignored[matched >= 0] = overlaps.ignore[matched[matched >= 0]]
    cases: list[tuple[str, Flags, Integers]] = [
        (IGNORED, ignored, matched),
        (HIT, matched >= 0, matched),
        ("localisation", (own_iou >= background) & (own_iou < foreground), own),
        ("classification", other_iou >= foreground, other),
        ("duplicate", own_iou >= foreground, own),
        ("background", other_iou < background, np.full_like(matched, -1)),
        ("both", np.ones(len(matched), bool), other),
    ]
    conditions = [condition for _, condition, _ in cases]
    kind = np.select(conditions, [np.full_like(matched, KINDS.index(name)) for name, _, _ in cases])
    return kind, np.select(conditions, [partner for _, _, partner in cases])


def _by_image(sorting: _Sorting, detections: Sequence[Detections]) -> tuple[ImageErrors, ...]:
    """The flat arrays, cut into images and put into the order of their rows."""
    overlaps = sorting.overlaps
    kinds = [[LEFT_OUT] * len(found) for found in detections]
    partners = [[-1] * len(found) for found in detections]
    rows = np.append(overlaps.truth_row, -1)[sorting.partner]  # index -1 is the entry appended
    columns = (overlaps.image.tolist(), overlaps.row.tolist(), sorting.kind.tolist(), rows.tolist())
    for image, row, kind, partner in zip(*columns, strict=True):
        kinds[image][row] = KINDS[kind]
        partners[image][row] = partner
    missed, unmatched = _rows(overlaps, sorting.missed), _rows(overlaps, sorting.unmatched)
    parts = zip(kinds, partners, missed, unmatched, strict=True)
    return tuple(ImageErrors(tuple(k), tuple(p), tuple(m), tuple(u)) for k, p, m, u in parts)


def _rows(overlaps: Overlaps, chosen: Flags) -> list[list[int]]:
    """The chosen objects (T,) of each image, by their row."""
    rows: list[list[int]] = [[] for _ in range(overlaps.images)]
    for image, row in zip(overlaps.truth_image[chosen].tolist(), overlaps.truth_row[chosen].tolist(), strict=True):
        rows[image].append(row)
    return rows
