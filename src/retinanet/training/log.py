"""What a run tells: a CSV file always, trackers and callbacks, a progress bar for a person."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from retinanet.errors import Interrupted
from retinanet.files import explain_failed_write, write_atomically
from retinanet.plotting.html import format_number, format_time
from retinanet.training.trackers import Callbacks

STEP_COLUMNS = ("step", "epoch", "loss", "classification", "box", "positives", "lr", "grad_norm", "images_per_s")
COLUMNS = (*STEP_COLUMNS, "val_loss", "AP", "AP50", "AP75")
TOLD, PULSE = 3, 30.0  # steps after which the time is told; seconds between two lines where there is no terminal


class _Console(Console):
    """A console whose reader may leave, such as ``tee`` at Ctrl-C: the run goes on and is saved, unheard."""

    def on_broken_pipe(self) -> None:
        """Say no more; rich would end the process."""
        self.quiet = True


class RunLog:
    """Writes the log of a run; only rank 0 has one that speaks.

    Args:
        folder: of the run.
        total: optimiser steps of the run.
        start: step it starts at; rows of an earlier attempt from this step on are dropped.
        per_epoch: steps of an epoch.
        enabled: False for every rank but 0.
        callbacks: hear of every step and evaluation (see :class:`retinanet.training.trackers.Callback`).
        clock: tells seconds.
    """

    def __init__(
        self,
        folder: Path,
        *,
        total: int,
        start: int = 0,
        per_epoch: int = 1,
        enabled: bool = True,
        callbacks: Sequence[object] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = folder / "log.csv"
        self._total, self._start, self._per_epoch, self._clock = total, start, per_epoch, clock
        self._told = clock()  # when the last line was written
        self._first = (start, self._told)  # a step and when it was done
        self.enabled = enabled
        self.console = _Console(stderr=True, quiet=not enabled)
        self._callbacks = Callbacks(callbacks if enabled else (), self.say)
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  AP {task.fields[ap]}  {task.fields[speed]} images/s"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (enabled and self.console.is_terminal),
        )
        self._task = self._progress.add_task(
            "train", total=total, completed=start, epoch="", loss="-", ap="-", speed="-"
        )
        if not enabled:
            return
        rows = [row for row in read_log(self.path) if int(row["step"]) <= start]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path, text.getvalue())

    def step(self, row: Mapping[str, Any]) -> None:
        """One optimiser step: a row, and the progress bar."""
        self._write(row)
        self._callbacks.on_step(row)
        loss, speed = f"{row['loss']:.3f}", f"{row['images_per_s']:.1f}"
        self._progress.update(self._task, completed=row["step"], epoch=row["epoch"], loss=loss, speed=speed)
        self._tell_time(row["step"])
        now = self._clock()
        if not self.console.is_terminal and now - self._told >= PULSE:
            left = format_time((self._total - row["step"]) * self._seconds_per_step(row["step"], now))
            text = (
                f"epoch {row['epoch']}  step {row['step']} of {self._total}  loss {loss}  {speed} images/s  {left} left"
            )
            self._told = now
            self.say(text)

    def _tell_time(self, step: int) -> None:
        """Say how long it will take, once a few steps are done; the first one is slower than the others."""
        done = step - self._start
        if done == 1:
            self._first = (step, self._clock())
        if done == min(TOLD, self._total - self._start) > 1:
            each = self._seconds_per_step(step, self._clock())
            epoch, rest = format_time(each * self._per_epoch), format_time(each * (self._total - step))
            self.say(f"{each:.2g} s a step: about {epoch} an epoch and {rest} in all, evaluation not counted")

    def _seconds_per_step(self, step: int, now: float) -> float:
        """Since the first step of this process, with the evaluations between."""
        first, then = self._first
        return (now - then) / max(1, step - first)

    def evaluation(self, row: Mapping[str, Any], *, best: bool) -> None:
        """One evaluation: a row, and a line for the person."""
        self._write(row)
        self._callbacks.on_evaluation({**row, "best": best})
        if best:
            self._progress.update(self._task, ap=format_number(row["AP"]))
        self.say(
            f"epoch {row['epoch']}  step {row['step']}  validation loss {row['val_loss']:.3f}  "
            f"AP {format_number(row['AP'])}  AP50 {format_number(row['AP50'])}"
            + ("  best so far" if best and not math.isnan(row["AP"]) else "")
        )

    def say(self, text: str) -> None:
        """A line for the person."""
        with suppress(OSError):  # the terminal is gone
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> RunLog:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        with suppress(OSError):  # the terminal is gone
            self._progress.stop()
        stopped = kind is not None and issubclass(kind, Interrupted | KeyboardInterrupt)
        self._callbacks.on_end("stopped" if stopped else "finished" if kind is None else "failed")

    def _write(self, row: Mapping[str, Any]) -> None:
        if not self.enabled:
            return
        line = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}
        with explain_failed_write(self.path), self.path.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow(line)


def read_log(path: Path) -> list[dict[str, str]]:
    """The rows of a log, without those that a killed run left half written."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(file)
        try:
            if tuple(reader.fieldnames or ()) != COLUMNS:
                return []
            return [row for row in reader if None not in row.values() and row["step"].isdecimal()]
        except csv.Error:  # damaged, as by a power cut
            return []
