"""What goes wrong in a way that the user can fix, the hint at the name that was meant, and the wish to stop."""

from __future__ import annotations

import difflib
import re
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

_PASSWORD = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+:/+)(?:[^\s/@:]*:\S*@|[^\s/@]*@)")  # NAME:PASSWORD@ or TOKEN@


def hide_passwords(text: str) -> str:
    """A text in which addresses are without their name and password."""
    return _PASSWORD.sub(r"\1", text)


class UserError(ValueError):
    """A mistake that the user can fix.

    The message names the file, line or box, says what was expected and what to do. The command line prints it and exits
    with code 2; a Python caller catches it as a ``ValueError``. Passwords in addresses are left out of it.
    """

    def __init__(self, *parts: object) -> None:
        super().__init__(*(hide_passwords(part) if isinstance(part, str) else part for part in parts))


class Interrupted(UserError):
    """Work was stopped by a signal after its state had been saved."""


@contextmanager
def stop_requested() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; a second one acts as usual."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, frame: FrameType | None) -> None:
        event.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, request)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def suggest(name: object, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: ``, did you mean 'sizes'?``, or a full stop where nothing is near."""
    nearest = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f", did you mean {nearest[0]!r}?" if nearest else "."


def make_printable(text: object) -> str:
    """A text whose control characters, which could change what a terminal shows, are written as Python writes them."""
    return "".join(letter if letter.isprintable() or letter == "\n" else repr(letter)[1:-1] for letter in str(text))
