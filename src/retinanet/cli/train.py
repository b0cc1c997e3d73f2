"""``retinanet train DATA --output FOLDER``."""

from __future__ import annotations

from collections.abc import Sequence

from retinanet.cli.arguments import parse
from retinanet.training.run import train


def run(words: Sequence[str]) -> None:
    """Parse, train, say where the model is."""
    usage = "retinanet train DATA --output FOLDER [options]"
    result = train(**vars(parse(train, words, positionals=["data"], usage=usage)))
    print(f"{result.folder}: AP {result.ap:.3f} after {result.steps} steps; curves in {result.folder / 'curves.png'}")
    print(f"find objects with it: retinanet predict {result.folder} IMAGE")
