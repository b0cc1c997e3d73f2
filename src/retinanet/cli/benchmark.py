"""``retinanet benchmark MODEL DATA``."""

from __future__ import annotations

from collections.abc import Sequence

from retinanet.cli.arguments import parse
from retinanet.deploy.benchmark import benchmark


def run(words: Sequence[str]) -> None:
    """Parse, measure, print the table."""
    usage = "retinanet benchmark MODEL DATA [--split test] [--backends [torch-fp32,openvino-int8]] [options]"
    print(benchmark(**vars(parse(benchmark, words, positionals=["model", "data"], usage=usage))))
