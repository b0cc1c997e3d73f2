"""``retinanet convert WEIGHTS FOLDER``."""

from __future__ import annotations

from collections.abc import Sequence

from retinanet.cli.arguments import parse
from retinanet.errors import UserError
from retinanet.interop.convert import convert


def run(words: Sequence[str]) -> None:
    """Parse, convert, print the report. ``--from torchvision:NAME`` stands for the weights."""
    usage = "retinanet convert WEIGHTS|torchvision:NAME FOLDER [options], or MODEL FILE --to torchvision"
    print(convert(**vars(parse(convert, _from_first(words), positionals=["weights", "output"], usage=usage))))


def _from_first(words: Sequence[str]) -> list[str]:
    """``from`` is no name for a parameter in Python: its value becomes the first word."""
    rest = list(words)
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == "--from":
            if not equals and place + 1 == len(words):
                raise UserError("option --from needs a value, such as torchvision:retinanet_resnet50_fpn")
            end = place + (1 if equals else 2)
            return [value if equals else words[place + 1], *words[:place], *words[end:]]
    return rest
