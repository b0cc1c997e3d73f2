"""What is wrong with a data set: the first fault refuses it in training, the data doctor collects them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from retinanet.errors import UserError


class Fault(UserError):
    """One fault in the files of a data set, as an error with its parts apart.

    Args:
        kind: a short slug; ``analysis/data/findings.py`` lists them.
        where: the file, line or id; "" where the message names the place itself.
        reason: what is wrong there, without a full stop.
        remedy: how to fix it, in sentences.
        members: the files it is about, where one message stands for several.
    """

    def __init__(self, kind: str, where: str, reason: str, remedy: str, *, members: Sequence[Path] = ()) -> None:
        super().__init__(kind, where, reason, remedy)
        self.kind = kind
        self.where = where
        self.reason = reason
        self.remedy = remedy
        self.members = tuple(members)

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}. {self.remedy}" if self.where else f"{self.reason}. {self.remedy}"


# What a reader does with a fault. Where this returns, the reader leaves the faulty part out and goes on.
Faults = Callable[[Fault], None]


def refuse(fault: Fault) -> None:
    """The ``Faults`` of training: the first one is raised."""
    raise fault
