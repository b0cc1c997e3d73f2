"""``retinanet check DATA``."""

from __future__ import annotations

from collections.abc import Sequence

from retinanet.analysis.data.check import check
from retinanet.cli.arguments import parse


def run(words: Sequence[str]) -> int:
    """Parse, examine, print the findings; 1 where something would stop training."""
    result = check(**vars(parse(check, words, positionals=["data"], usage="retinanet check DATA [options]")))
    print(result.summary())
    return int(result.stops)
