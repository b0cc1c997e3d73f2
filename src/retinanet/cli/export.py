"""``retinanet export MODEL --format FORMAT``."""

from __future__ import annotations

from collections.abc import Sequence

from retinanet.cli.arguments import parse
from retinanet.deploy.export import export


def run(words: Sequence[str]) -> None:
    """Parse, export, print the report."""
    usage = "retinanet export MODEL --format onnx|openvino|pt2 [--precision int8 --calibrate DATA] [--verify DATA]"
    print(export(**vars(parse(export, words, positionals=["model"], usage=usage))))
