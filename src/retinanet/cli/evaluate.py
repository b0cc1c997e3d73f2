"""``retinanet evaluate MODEL DATA``."""

from __future__ import annotations

from collections.abc import Sequence

from retinanet.cli.arguments import parse
from retinanet.evaluation.evaluate import evaluate


def run(words: Sequence[str]) -> None:
    """Parse, evaluate, print the table."""
    usage = "retinanet evaluate MODEL DATA [--split test] [options]"
    print(evaluate(**vars(parse(evaluate, words, positionals=["model", "data"], usage=usage))))
