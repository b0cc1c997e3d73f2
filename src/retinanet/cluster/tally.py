"""How far a job is, told while it runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import Progress

from retinanet.errors import UserError
from retinanet.plotting.html import format_time

PULSE = 30.0  # seconds between two lines where there is no terminal
WARNINGS = 5  # of actors that are told; the others are counted
_log = logging.getLogger(__name__)


class Tally:
    """What is done so far, told: a bar for a person, a line now and then for a log."""

    def __init__(self, images: int, max_errors: int | None) -> None:
        self.images, self.max_errors = images, max_errors
        self.done = self.errors = self.objects = 0
        self.first: tuple[int, float] | None = None  # images that were done when the first task was, and when that was
        self.reason = ""
        self.warnings: list[str] = []
        self.untold = 0
        self.begun = self.told = self.last = time.monotonic()
        self.console = Console(stderr=True)
        self.bar = Progress(console=self.console, transient=True, disable=not self.console.is_terminal)

    def __enter__(self) -> None:
        self.begun = self.told = time.monotonic()
        self.bar.start()
        self.row = self.bar.add_task("predict", total=self.images, completed=self.done)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.seconds = time.monotonic() - self.begun
        self.bar.stop()
        if self.untold:
            _log.warning("%d more warning%s", self.untold, "s" if self.untold > 1 else "")

    def add(self, summary: Mapping[str, Any], *, before: bool = False) -> list[list[int]]:
        """Count a task; the images that it left for tasks of their own, with their windows.

        Raises:
            UserError: more images cannot be read than are allowed.
        """
        self.done += int(summary["images"])
        self.objects += int(summary["objects"])
        self.errors += int(summary["errors"])
        self.reason = self.reason or str(summary["reason"] or "")
        if self.max_errors is not None and self.errors > self.max_errors:
            raise UserError(
                f"{self.errors} images cannot be read, more than --max_errors {self.max_errors}. The first: "
                f"{self.reason} What is done is kept: the same command with a larger --max_errors goes on"
            )
        for text in filter(None, str(summary.get("warnings", "")).split("\n")):
            if len(self.warnings) == WARNINGS:
                self.untold += text not in self.warnings
            elif text not in self.warnings:
                self.warnings.append(text)
                _log.warning("%s", text)
        if not before:
            self._tell()
        return [[int(index), int(windows)] for index, windows in summary["deferred"]]

    @property
    def speed(self) -> float:
        """Images/s since the first task was done; 0 before."""
        if self.first is None:
            return 0.0
        done, then = self.first
        return (self.done - done) / max(1e-9, self.last - then)

    def _tell(self) -> None:
        now = time.monotonic()
        self.first = self.first or (self.done, now)
        self.last = now
        text = f"{self.done} of {self.images} images, {self.errors} errors"
        if self.speed:
            left = format_time((self.images - self.done) / self.speed)
            text = f"{text}, {self.speed:.1f} images/s, {left} left"
        self.bar.update(self.row, completed=self.done, description=text)
        if not self.console.is_terminal and now - self.told >= PULSE:
            self.told = now
            self.console.print(text, highlight=False)
