"""``retinanet predict MODEL IMAGE...``."""

from __future__ import annotations

from collections.abc import Sequence

from retinanet.cli.arguments import parse
from retinanet.inference.predict import predict


def run(words: Sequence[str]) -> None:
    """Parse, predict, say what was found."""
    usage = "retinanet predict MODEL IMAGE|FOLDER|PATTERN... --output FOLDER [options]"
    arguments = vars(parse(predict, words, positionals=["model", "images"], usage=usage))
    found = predict(**arguments)
    objects = sum(len(one.detections) for one in found)
    print(f"{objects} objects in {len(found)} images; pictures, detections.json and .csv are in {arguments['output']}")
