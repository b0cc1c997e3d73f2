"""What a run tells while it goes on: TensorBoard, MLflow, Weights & Biases, trackio, and any object with their methods.

A tracker is optional in every sense: one that fails is told of once and left out, and the run goes on.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from retinanet.errors import UserError
from retinanet.files import write_atomically
from retinanet.plain import flatten_fields, to_plain
from retinanet.training.config import TRACKERS, TrainConfig

Outcome = Literal["finished", "stopped", "failed"]
Row = Mapping[str, Any]
METHODS = ("on_step", "on_evaluation", "on_end")
REMEMBERED = "trackers.json"  # in the folder of a run: what the trackers call it, so that a resumed run goes on there
PROJECT = "retinanet"  # where the tracker's own environment names no other
SEND_EVERY, MOST_SENT = 5.0, 900  # seconds and values between two requests to MLflow, which takes 1000 at once
MOST_PARAMETERS, LONGEST = 100, 6000  # of a request to MLflow; characters of one


class Callback(Protocol):
    """What ``train(callbacks=[...])`` calls, in the first process of a run only; an object may have some of these.

    An exception of a callback never ends the run: it is told once, and the callback is left out from then on. A
    callback that wants the run to stop calls ``signal.raise_signal(signal.SIGINT)``, which saves the state first.
    """

    def on_step(self, row: Row) -> None:
        """After an optimiser step: step, epoch, loss, classification, box, positives, lr, grad_norm, images_per_s."""

    def on_evaluation(self, row: Row) -> None:
        """After an evaluation: step, epoch, val_loss, AP, AP50, AP75 (NaN where it has no object), best."""

    def on_end(self, outcome: Outcome) -> None:
        """At the end: ``finished``; ``stopped`` by a signal, with the state saved; or ``failed``."""


class TensorBoard:
    """Event files in the folder ``tensorboard`` of the run."""

    def __init__(self, config: TrainConfig, step: int, known: str | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = step + 1 if step else None  # what a killed run wrote after its last saved step
        self._writer = SummaryWriter(str(config.folder / "tensorboard"), purge_step=purge, flush_secs=30)

    def on_step(self, row: Row) -> None:
        """Write the numbers of a step or an evaluation."""
        for name, value in _numbers(row).items():
            self._writer.add_scalar(name, value, row["step"])

    on_evaluation = on_step

    def on_end(self, outcome: Outcome) -> None:
        """Close the file."""
        self._writer.close()


class MLflow:
    """A run of the MLflow server or store that ``MLFLOW_TRACKING_URI`` names; it is not the active run of mlflow."""

    def __init__(self, config: TrainConfig, step: int, known: str | None) -> None:
        # A server that cannot be reached costs 5 s with 2 tries more, and minutes with MLflow's 7.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._client, self._metric = MlflowClient(), Metric
        self._waiting: list[Any] = []
        self._sent = time.monotonic()
        self.run_id = known
        if known is not None:
            self._client.update_run(known, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        place = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self.run_id = self._client.create_run(place, run_name=_name(config)).info.run_id
        options = [Param(key, str(value)[:LONGEST]) for key, value in flatten_fields(config).items()]
        for first in range(0, len(options), MOST_PARAMETERS):
            self._client.log_batch(self.run_id, params=options[first : first + MOST_PARAMETERS])

    def on_step(self, row: Row) -> None:
        """Keep the numbers of a step, and send them with those of others."""
        now = time.time_ns() // 1_000_000
        self._waiting += [self._metric(name, value, now, row["step"]) for name, value in _numbers(row).items()]
        if time.monotonic() - self._sent >= SEND_EVERY or len(self._waiting) >= MOST_SENT:
            self._send()

    def on_evaluation(self, row: Row) -> None:
        """Send the numbers of an evaluation."""
        self.on_step(row)
        self._send()

    def on_end(self, outcome: Outcome) -> None:
        """Send what is left and close the run."""
        self._send()
        status = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[outcome]
        with redirect_stdout(sys.stderr):  # it prints addresses
            self._client.set_terminated(self.run_id, status=status)

    def _send(self) -> None:
        waiting, self._waiting, self._sent = self._waiting, [], time.monotonic()
        self._client.log_batch(self.run_id, metrics=waiting)


class Wandb:
    """A run of Weights & Biases, as the variables ``WANDB_...`` say; offline with ``WANDB_MODE=offline``."""

    def __init__(self, config: TrainConfig, step: int, known: str | None) -> None:
        import wandb

        project = os.environ.get("WANDB_PROJECT", PROJECT)
        about: dict[str, Any] = {"name": _name(config), "config": to_plain(config), "dir": str(config.folder)}
        quiet = wandb.Settings(console="off")  # what the run prints is not sent
        self._run = wandb.init(project=project, id=known, resume="allow", settings=quiet, **about)
        self._run.define_metric("*", step_metric="step")  # a resumed run repeats the steps after its last saved one
        self.run_id = self._run.id

    def on_step(self, row: Row) -> None:
        """Send the numbers of a step or an evaluation."""
        self._run.log({"step": row["step"], "epoch": row["epoch"], **_numbers(row)})

    on_evaluation = on_step

    def on_end(self, outcome: Outcome) -> None:
        """Close the run."""
        self._run.finish(exit_code=int(outcome == "failed"))


class Trackio:
    """A run of trackio, in its own folder on this machine or where the variables ``TRACKIO_...`` say."""

    def __init__(self, config: TrainConfig, step: int, known: str | None) -> None:
        import trackio

        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self.run_id = known or f"{_name(config)}-{time.strftime('%Y%m%d-%H%M%S')}"  # a resumed run is found by its name
        with redirect_stdout(sys.stderr):
            self._run = trackio.init(
                project=project, name=self.run_id, config=to_plain(config), resume="allow" if known else "never"
            )

    def on_step(self, row: Row) -> None:
        """Send the numbers of a step or an evaluation."""
        self._run.log(_numbers(row), step=row["step"])

    on_evaluation = on_step

    def on_end(self, outcome: Outcome) -> None:
        """Send what is left."""
        with redirect_stdout(sys.stderr):
            self._run.finish()


OPENERS: Mapping[str, Callable[[TrainConfig, int, str | None], Any]] = dict(
    zip(TRACKERS, (TensorBoard, MLflow, Wandb, Trackio), strict=True)
)


def choose_trackers(names: Sequence[str] | None, callbacks: Sequence[object] = ()) -> Sequence[str]:
    """The trackers of a run, by name; where none is named, TensorBoard if it is installed.

    Raises:
        UserError: the package of one is missing, or a callback has none of the methods.
    """
    for callback in callbacks:
        if not any(callable(getattr(callback, method, None)) for method in METHODS):
            raise UserError(f"callbacks: {callback!r} has none of the methods {', '.join(METHODS)}")
    if names is None:
        return ("tensorboard",) if _is_installed("tensorboard") else ()
    for name in names:
        if not _is_installed(name):
            raise UserError(f'run.log: {name} is not installed. pip install "retinanet[{name}]", or leave it out')
    return names


def open_trackers(
    names: Sequence[str], config: TrainConfig, *, step: int, resume: bool, say: Callable[[str], None]
) -> list[Any]:
    """The trackers of a run, in its first process; one that cannot be opened is told of and left out.

    Args:
        names: of :func:`choose_trackers`.
        config: of the run, whose folder is there.
        step: at which the run starts.
        resume: go on in the trackers' runs of the folder, where they are known.
        say: tells the person.
    """
    path = config.folder / REMEMBERED
    known = _read_remembered(path) if resume else {}
    opened = []
    for name in names:
        try:
            opened.append(OPENERS[name](config, step, known.get(name)))
        except Exception as error:  # of any of four libraries and their networks
            say(f"warning: {name} cannot be used ({_explain(error)}); the run goes on without it")
            continue
        if run_id := getattr(opened[-1], "run_id", None):
            known[name] = run_id
            write_atomically(path, json.dumps(known, indent=1) + "\n")
    return opened


class Callbacks:
    """The trackers and the callbacks of a run, which hear of everything until they fail.

    Args:
        callbacks: any objects with some of the methods of :class:`Callback`.
        say: tells the person.
    """

    def __init__(self, callbacks: Sequence[object], say: Callable[[str], None]) -> None:
        self._callbacks, self._say = list(callbacks), say
        self.on_step, self.on_evaluation, self.on_end = (partial(self._tell, method) for method in METHODS)

    def _tell(self, method: str, about: Row | Outcome) -> None:
        for callback in tuple(self._callbacks):
            call = getattr(callback, method, None)
            if call is None:
                continue
            try:
                call(about if isinstance(about, str) else dict(about))
            except Exception as error:  # Ctrl-C is none
                self._callbacks = [other for other in self._callbacks if other is not callback]
                name = f"{type(callback).__name__}.{method}"
                self._say(f"warning: {name} failed ({_explain(error)}); the run goes on without it")


def _numbers(row: Row) -> dict[str, float]:
    """What is drawn over the steps."""
    return {name: float(value) for name, value in row.items() if name not in ("step", "epoch", "best")}


def _name(config: TrainConfig) -> str:
    return config.folder.resolve().name


def _is_installed(name: str) -> bool:
    """Whether there is a package; a folder of its name where the run was started, such as W&B's, is none."""
    spec = find_spec(name)
    return spec is not None and spec.origin is not None


def _explain(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _read_remembered(path: Path) -> dict[str, str]:
    with suppress(OSError, ValueError, AttributeError):
        return {name: value for name, value in json.loads(path.read_text()).items() if isinstance(value, str)}
    return {}
