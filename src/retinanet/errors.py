"""What goes wrong in a way that the user can fix, and the hint at the name that was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake that the user can fix.

    The message names the file, line or box, says what was expected and what to do. The command line prints it and exits
    with code 2; a Python caller catches it as a ``ValueError``.
    """


class Interrupted(UserError):
    """Work was stopped by a signal after its state had been saved."""


def suggest(name: object, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: ``, did you mean 'sizes'?``, or a full stop where nothing is near."""
    nearest = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f", did you mean {nearest[0]!r}?" if nearest else "."


def make_printable(text: object) -> str:
    """A text whose control characters, which could change what a terminal shows, are written as Python writes them."""
    return "".join(letter if letter.isprintable() or letter == "\n" else repr(letter)[1:-1] for letter in str(text))
