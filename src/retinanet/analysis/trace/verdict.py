"""The verdict on one image: what happened to its objects, and the main reason."""

from __future__ import annotations

from collections import Counter

from retinanet.analysis.trace.outcomes import FOUND, GATES, ImageTrace
from retinanet.plotting.html import KeyNumber, Point, State, Verdict
from retinanet.types import DEFAULT_THRESHOLD

# What a false detection of each kind is.
MEANINGS = {
    "classification": "with the wrong class",
    "localisation": "near an object, but not well enough",
    "both": "near an object of another class",
    "duplicate": "on an object that has been found",
    "background": "where nothing is annotated",
}


def judge_image(result: ImageTrace) -> Verdict:
    """What a reader has to know about an image."""
    objects, found = len(result.boxes), result.counts.get(FOUND, 0)
    missed = {gate: count for gate, count in result.counts.items() if gate != FOUND}
    kinds = Counter(detection.kind for detection in result.detections if detection.false)
    false = kinds.total()
    state: State = "good" if not missed and not false else "fair" if found else "bad"
    what = (
        f"{found:,} of {objects:,} objects found, {objects - found:,} missed" if objects else "No object is annotated"
    )
    headline = f"{what}, {false:,} false {'detection' if false == 1 else 'detections'} above score {result.score:g}."
    points = []
    if missed:
        listed = ", ".join(f"{count:,} {gate}" for gate, count in sorted(missed.items(), key=lambda entry: -entry[1]))
        points.append(Point("Missed", f"{listed}."))
        main = max(missed, key=missed.__getitem__)
        remedy = GATES[main].remedy
        points.append(Point("Main reason", f"{main[0].upper()}{main[1:]}: {remedy}."))
    elif objects:
        points.append(Point("Missed", "None: a detection counts for every object."))
    if false:
        listed = ", ".join(f"{count:,} {MEANINGS.get(kind, kind)} ({kind})" for kind, count in kinds.most_common())
        points.append(Point("False", f"{listed}."))
    strong = sum(detection.false and detection.score >= DEFAULT_THRESHOLD for detection in result.detections)
    numbers = [
        KeyNumber("objects annotated", f"{objects:,}", f"in {result.size[1]} x {result.size[0]} pixels"),
        KeyNumber("found", f"{found:,}", f"by {len(result.detections):,} detections", "good" if objects else "plain"),
        KeyNumber(
            "missed", f"{objects - found:,}", max(missed, key=missed.__getitem__, default=""), _tone(len(missed))
        ),
        KeyNumber("false detections", f"{false:,}", f"{strong:,} score {DEFAULT_THRESHOLD:g} or more", _tone(false)),
        KeyNumber("score threshold", f"{result.score:g}", "detections score above it"),
    ]
    return Verdict(state, headline, points, numbers)


def _tone(count: int) -> State:
    return "fair" if count else "good"
