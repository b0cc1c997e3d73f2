"""``retinanet why MODEL IMAGE``."""

from __future__ import annotations

from collections.abc import Sequence

from retinanet.analysis.trace.why import why
from retinanet.cli.arguments import parse


def run(words: Sequence[str]) -> None:
    """Parse, trace, say what happened."""
    usage = "retinanet why MODEL IMAGE [--data DATA] [--score 0.3] [options]"
    arguments = vars(parse(why, words, positionals=["model", "image"], usage=usage))
    print(why(**arguments).summary())
    print(f"report.html, why.json and why.png are in {arguments['output']}")
