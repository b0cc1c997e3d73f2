"""Docstrings name functions as Sphinx does, which Markdown does not know: ``:func:`a.b.c` `` becomes code."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Roles(griffe.Extension):
    """Takes the roles out of docstrings, and what is written in front of doubled backticks."""

    def on_object(self, *, obj: griffe.Object, **others: Any) -> None:
        """Called for each module, class, function and attribute that was read."""
        if obj.docstring:
            obj.docstring.value = re.sub(r":\w+:`~?([\w.]+)`", r"`\1`", obj.docstring.value)
