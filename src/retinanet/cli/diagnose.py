"""``retinanet diagnose MODEL DATA``."""

from __future__ import annotations

from collections.abc import Sequence

from retinanet.analysis.diagnose import diagnose
from retinanet.cli.arguments import parse


def run(words: Sequence[str]) -> None:
    """Parse, diagnose, print the main numbers."""
    usage = "retinanet diagnose MODEL DATA [--split val] [options]"
    print(diagnose(**vars(parse(diagnose, words, positionals=["model", "data"], usage=usage))).summary())
