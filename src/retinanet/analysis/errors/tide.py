"""What goes wrong and what each kind of mistake costs: the error types of TIDE (Bolya et al., ECCV 2020).

Section 2 of the paper names six types and gives each an oracle that fixes it. Where the paper leaves a choice open, the
choice is that of the authors' program, so that the numbers can be compared with published ones:

* A false detection that fits several types is the first of localisation, classification, duplicate, background, both.
* Of several classification and localisation errors on one object, the best-scoring can be fixed, the others can only
  be removed; all of them can only be removed where the object has been found by another detection.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from retinanet.evaluation.coco import mean
from retinanet.evaluation.matching import HIT, IGNORED, KINDS, Flags, Floats, Integers, Names, Overlaps
from retinanet.files import make_json_safe

FALSE = tuple(kind for kind in KINDS if kind not in (HIT, IGNORED))
SPECIAL = ("false positives", "false negatives")
FOREGROUND = 0.5  # IoU from which a detection has found an object: the t_f of the paper
BACKGROUND = 0.1  # IoU below which it has nothing to do with an object: t_b
RECALLS = np.linspace(0, 1, 101)


class ErrorType(NamedTuple):
    """A type of error, for a reader who does not know the types."""

    meaning: str  # what such an error is
    remedy: str  # what to do about it


# A "missed" error is of an object, the others are of detections: they are ``FALSE``.
TYPES = {
    "classification": ErrorType(
        "right boxes with the wrong class",
        "Right boxes get the wrong class. The confusion matrix names the pairs: check their annotations, then add "
        "examples of them.",
    ),
    "localisation": ErrorType(
        "boxes that lie near their object but not well enough",
        "Boxes lie near their object but not well enough. Check that the annotated boxes are tight and drawn by one "
        "rule, then try larger images or a longer training.",
    ),
    "both": ErrorType(
        "loose boxes of the wrong class",
        "Boxes lie near an object of another class. Mostly such detections are weak: a higher score removes them.",
    ),
    "duplicate": ErrorType(
        "objects found twice",
        "One object is found twice. Look for objects annotated twice. A lower NMS threshold removes duplicates, but "
        "also detections of objects that overlap.",
    ),
    "background": ErrorType(
        "detections where nothing is annotated",
        "Something is found where nothing is annotated. Look at the dashed boxes in the pictures below: if they are "
        "objects, the annotations are incomplete and AP is underrated; if not, add images without objects.",
    ),
    "missed": ErrorType(
        "objects without any detection near them",
        "Objects have no detection near them at any score. Check that anchors reach them and how small they are.",
    ),
}


@dataclass(frozen=True)
class ErrorAnalysis:
    """The errors of a model on a data set."""

    overlaps: Overlaps  # of D detections and T objects
    kind: Names  # (D,) what each detection is, of ``KINDS``
    partner: Integers  # (D,) the object that the kind refers to, -1 for none
    unmatched: Flags  # (T,) objects that no detection found
    missed: Flags  # (T,) those to which no classification or localisation error refers
    fixes: Flags  # (D,) the classification and localisation errors that become hits when they are fixed

    @property
    def objects(self) -> Integers:
        """(K,) annotated objects, ignore regions left out."""
        return self.overlaps.counts

    @property
    def hits(self) -> Integers:
        """(K,) detections that have found an object."""
        return self._count(HIT)

    @property
    def false(self) -> Flags:
        """(D,) detections that are errors."""
        return np.isin(self.kind, FALSE)

    @cached_property
    def counts(self) -> dict[str, Integers]:
        """For each of ``TYPES`` (K,) errors: false detections by the class given, missed objects by their own."""
        missed = np.bincount(self.overlaps.truth_label[self.missed], minlength=len(self.overlaps.class_names))
        return {**{kind: self._count(kind) for kind in FALSE}, "missed": missed}

    @property
    def totals(self) -> dict[str, int]:
        """Errors of each of ``TYPES``."""
        return {kind: int(number.sum()) for kind, number in self.counts.items()}

    @cached_property
    def ap50_by_class(self) -> Floats:
        """(K,) AP50 as it is, NaN where a class has no object."""
        return self.fix(())

    @property
    def ap50(self) -> float:
        """Its mean over the classes that have objects."""
        return mean(self.ap50_by_class)

    @cached_property
    def dap_by_class(self) -> dict[str, Floats]:
        """For each of ``TYPES`` and ``SPECIAL`` (K,) what AP gains if all errors of that type are fixed, no other."""
        return {kind: self.fix((kind,)) - self.ap50_by_class for kind in (*TYPES, *SPECIAL)}

    @property
    def dap(self) -> dict[str, float]:
        """Their means over the classes that have objects. The gains do not add up."""
        return {kind: mean(change) for kind, change in self.dap_by_class.items()}

    @property
    def all_fixed(self) -> float:
        """Average precision after fixing all six types, which is 1 wherever there are objects."""
        return mean(self.fix(TYPES))

    def fix(self, types: Collection[str]) -> Floats:
        """(K,) average precision after the oracles of some types, NaN where a class has no object.

        A classification error gets the class of its object and a localisation error its box, so both become hits at
        their score; the errors of the next three types are removed; missed objects are no longer counted. A class
        whose objects all left the count has AP 1 if no false detection of it is left, else 0.
        """
        overlaps = self.overlaps
        named, hits = np.isin(self.kind, np.array([*types], np.str_)), self.kind == HIT
        becomes = named & self.fixes
        keep = (self.kind != IGNORED) & (~named | becomes)
        if "false positives" in types:
            keep &= hits
        label = np.where(becomes, np.append(overlaps.truth_label, -1)[self.partner], overlaps.label)
        gone = self.unmatched if "false negatives" in types else self.missed & ("missed" in types)
        left = self.objects - np.bincount(overlaps.truth_label[gone], minlength=len(overlaps.class_names))
        result = average_precision(label[keep], (hits | becomes)[keep], left)
        false = np.bincount(label[keep & ~(hits | becomes)], minlength=len(left))
        return np.where((self.objects > 0) & (left == 0), false == 0, result)

    def judge_image(self, image: int) -> tuple[Integers, Integers, Integers]:
        """Of one image the rows of its hits, of its false detections and of the objects that no detection found."""
        here, there = self.overlaps.image == image, self.overlaps.truth_image == image
        row = self.overlaps.row
        return row[here & (self.kind == HIT)], row[here & self.false], self.overlaps.truth_row[there & self.unmatched]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the single images."""

        def numbers(count: Callable[[Integers], Any], share: Callable[[Floats], Any]) -> dict[str, Any]:
            return {
                "objects": count(self.objects),
                "hits": count(self.hits),
                "errors": {kind: count(number) for kind, number in self.counts.items()},
                "ap50": share(self.ap50_by_class),
                "dap50": {kind: share(change) for kind, change in self.dap_by_class.items()},
            }

        names = self.overlaps.class_names
        classes = [{"name": name, **numbers(itemgetter(k), itemgetter(k))} for k, name in enumerate(names)]
        thresholds = {"foreground": FOREGROUND, "background": BACKGROUND}
        overall = {**thresholds, **numbers(np.sum, mean), "ap50_all_fixed": self.all_fixed}
        return round_numbers({**overall, "classes": classes})

    def summary(self) -> str:
        """AP50, and what fixing each type would add, the costliest first."""
        if np.isnan(self.ap50):
            return "AP50 cannot be measured: there are no objects"
        gains = self.dap
        lines = [f"AP50 {self.ap50:.3f} of {int(self.objects.sum())} objects. Fixing every error of one type adds:"]
        for kind in sorted(TYPES, key=lambda kind: -gains[kind]):
            lines.append(f"  {kind:<15} {gains[kind]:+.3f}   ({self.totals[kind]} errors)")
        return "\n".join([*lines, *(f"  all {kind} removed: {gains[kind]:+.3f}" for kind in SPECIAL)])

    def _count(self, kind: str) -> Integers:
        """(K,) detections of a kind by the class that they were given."""
        labels = self.overlaps.label[self.kind == kind]
        return np.bincount(labels, minlength=len(self.overlaps.class_names))


def analyse_errors(overlaps: Overlaps) -> ErrorAnalysis:
    """Sort every false detection and every overlooked object into one of six types, and say what each type costs.

    The kinds of detections are those of :meth:`Overlaps.kinds`; an object is "missed" if no detection found it and no
    classification or localisation error refers to it. Detections in an ignore region of their class count neither way.
    """
    matched = overlaps.match(FOREGROUND)
    kind, partner = overlaps.kinds(matched, FOREGROUND, BACKGROUND)
    unmatched = ~overlaps.ignore
    unmatched[matched[matched >= 0]] = False

    # of the errors on an object that nobody found, the best-scoring one can be fixed
    wrong = np.isin(kind, ("classification", "localisation"))
    hopeful = np.flatnonzero(wrong & np.append(unmatched, False)[partner])  # index -1 is the entry appended
    objects, first = np.unique(partner[hopeful], return_index=True)  # detections are in the order of their scores
    fixes, missed = np.zeros(len(kind), bool), unmatched.copy()
    fixes[hopeful[first]] = True
    missed[objects] = False
    return ErrorAnalysis(overlaps, kind, partner, unmatched, missed, fixes)


def round_numbers(value: Any, digits: int = 6) -> Any:
    """Nested values for JSON with floats rounded and None for NaN."""
    if isinstance(value, Mapping):
        return {key: round_numbers(entry, digits) for key, entry in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [round_numbers(entry, digits) for entry in value]
    return make_json_safe(round(value, digits) if isinstance(value, float) else value)


def average_precision(labels: Integers, hits: Flags, counts: Integers) -> Floats:
    """COCO's average precision at one IoU: precision, made to fall only, at the recalls 0.00, 0.01 .. 1.00.

    Args:
        labels: (n,) classes of the detections that count, best score first.
        hits: (n,) whether each has found an object.
        counts: (K,) objects of each class.

    Returns:
        (K,) in [0, 1], NaN where a class has no object.
    """
    order = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[order], np.arange(len(counts) + 1))
    result = np.full(len(counts), np.nan)
    for label in np.flatnonzero(counts):
        found = np.cumsum(hits[order[bounds[label] : bounds[label + 1]]])
        precision = found / np.arange(1, len(found) + 1)
        falling = np.maximum.accumulate(precision[::-1])[::-1]
        reached = np.searchsorted(found / counts[label], RECALLS)
        result[label] = falling[reached[reached < len(found)]].sum() / len(RECALLS)
    return result
