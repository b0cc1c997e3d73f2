"""The report of the data doctor: all faults of a data set, grouped by kind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from retinanet.data.faults import KINDS, Fault, Severity, short

_ORDER: tuple[Severity, ...] = ("error", "warning", "note")
_LISTED = 3
_OF_CLASSES = ("class-not-in-train", "rare-class", "similar-classes")
_OF_THE_WHOLE = ("corners", "one-based")
_IDLE = ("unseen-class", "unused-image", "missing-test")
"""Warnings about what training does not touch."""


class Harm(NamedTuple):
    """How much of the data set the findings of a kind concern."""

    kind: str
    faults: tuple[Fault, ...]
    share: float  # 0 to 1
    words: str


@dataclass(frozen=True)
class DoctorReport:
    """What was found in a data set.

    Attributes:
        findings: in the order of the files.
        images: how many images the splits hold, each file counted once.
        boxes: how many boxes could be read.
        classes: how many classes are declared.
        seconds: that the examination took.
        splits: images of each split; "" is a set without splits.
        per_class: usable boxes of each class in each split.
    """

    findings: tuple[Fault, ...]
    images: int
    boxes: int
    classes: int
    seconds: float
    splits: Mapping[str, int] = field(default_factory=dict)
    per_class: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def stops(self) -> bool:
        """Whether something would stop training or evaluation."""
        return self.count("error") > 0

    def count(self, severity: Severity) -> int:
        """How many findings are of this severity."""
        return sum(fault.severity == severity for fault in self.findings)

    def groups(self) -> dict[str, tuple[Fault, ...]]:
        """The findings by kind: errors, warnings, notes, and among those as ``KINDS`` orders them."""
        by_kind: dict[str, list[Fault]] = defaultdict(list)
        for fault in self.findings:
            by_kind[fault.kind].append(fault)
        kinds = sorted((kind for kind in KINDS if kind in by_kind), key=lambda kind: _ORDER.index(KINDS[kind].severity))
        return {kind: tuple(by_kind[kind]) for kind in kinds}

    def harms(self) -> list[Harm]:
        """Errors and warnings, the most harmful first: errors as ``KINDS`` has them, then by the share they concern."""
        harms = [self._measure_harm(kind, faults) for kind, faults in self.groups().items()]
        errors = [harm for harm in harms if KINDS[harm.kind].severity == "error"]
        warnings = [harm for harm in harms if KINDS[harm.kind].severity == "warning"]
        return errors + sorted(warnings, key=lambda harm: -harm.share)

    def _measure_harm(self, kind: str, faults: tuple[Fault, ...]) -> Harm:
        """Against the boxes, images or classes, by what the kind is about."""
        if kind in _OF_THE_WHOLE:
            return Harm(kind, faults, 1.0, "")
        if kind in _OF_CLASSES or kind == "unseen-class":
            whole, what = self.classes, "classes"
        elif faults[0].box is not None:
            whole, what = self.boxes, "boxes"
        else:
            whole, what = self.images, "images"
        count = len(faults)
        known = what == "classes" or faults[0].image is not None
        words = f"{count:,} of {whole:,} {what}" if known else f"{count:,}" if count > 1 else ""
        return Harm(kind, faults, 0.0 if kind in _IDLE else count / max(whole, 1), words)

    def summary(self) -> str:
        """A few lines per kind for the console: how many, the first places, and the remedy."""
        sizes = ", ".join(f"{name or 'all'} {count}" for name, count in self.splits.items())
        lines = [
            f"{self.images} images ({sizes or 'none'}), {self.boxes} boxes, {self.classes} classes, "
            f"read in {self.seconds:.1f} s: {self.count('error')} errors, {self.count('warning')} warnings, "
            f"{self.count('note')} notes"
        ]
        for kind, faults in self.groups().items():
            lines.append(f"{KINDS[kind].severity}: {KINDS[kind].title}: {len(faults)}  [{kind}]")
            lines += [f"    {short(fault.where, 200)}: {short(fault.reason, 300)}" for fault in faults[:_LISTED]]
            if len(faults) > _LISTED:
                lines.append(f"    ... and {len(faults) - _LISTED} more")
            lines.append(f"  {faults[0].remedy}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: the counts, the groups, and every finding."""
        return {
            "images": self.images,
            "boxes": self.boxes,
            "classes": self.classes,
            "seconds": self.seconds,
            "stops": self.stops,
            "splits": dict(self.splits),
            "per_class": {name: dict(counts) for name, counts in self.per_class.items()},
            "groups": [
                {"kind": kind, "severity": KINDS[kind].severity, "title": KINDS[kind].title, "count": len(faults)}
                for kind, faults in self.groups().items()
            ],
            "findings": [
                {
                    "kind": fault.kind,
                    "severity": fault.severity,
                    "where": fault.where,
                    "reason": fault.reason,
                    "remedy": fault.remedy,
                    "image": None if fault.image is None else str(fault.image),
                    "box": None if fault.box is None else list(fault.box),
                }
                for fault in self.findings
            ],
        }
