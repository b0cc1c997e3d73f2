"""The folder of a run: no other run writes to it, nothing of anybody else is overwritten, and the disk has room.

A run writes ``state.pt`` first, at step 0, then ``config.yaml``; each epoch it writes its models before its state. So
whenever it is killed, its folder can be resumed, or holds nothing of value and can be started anew.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from retinanet.errors import UserError
from retinanet.files import check_writable, tensor_bytes
from retinanet.plain import flatten_fields, to_plain
from retinanet.planning.memory import MOMENTS
from retinanet.spec import CONFIG, TENSORS
from retinanet.training.build import Training
from retinanet.training.config import TrainConfig
from retinanet.training.resume import STATE, read_step
from retinanet.yaml_files import read_mapping

OPTIONS = "config.yaml"
LOCK = "run.lock"
_held: set[Path] = set()  # by this process, to which its own locks are no obstacle
# What may differ when a run goes on: where it is computed, not what. The second kind changes the rounding of sums.
FREE = {"run.workers", "run.save_every", "run.accept_changed_data", "run.log"}
ROUNDING = {"run.accelerator", "run.devices", "run.nodes", "optim.accumulate"}


def check_output(config: TrainConfig, *, resume: bool) -> list[str]:
    """Nothing is overwritten, and a run goes on only as it began; nothing is written here.

    Returns:
        Options that differ from those that the run began with and change the rounding of sums.

    Raises:
        UserError: the folder holds a run or other files and ``resume`` is off, or there is no run to resume, or its
            options differ.
    """
    folder = config.folder
    if resume:
        return _check_options(config)
    check_writable(folder / CONFIG)
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    if STATE in names and CONFIG not in names and read_step(folder) == 0:
        return []  # a run that saved nothing yet
    if STATE in names:
        raise UserError(
            f"{folder} already holds a run. Choose another --output, or go on with it: {resume_command(folder)}"
        )
    if CONFIG in names:
        raise UserError(_describe_lone_model(folder))
    others = [name for name in names if name != LOCK and not name.startswith(".") and not name.endswith(".log")]
    if others:
        shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        raise UserError(
            f"--output {folder} holds other files ({shown}), which a run must not overwrite or mix with. Choose a new "
            "folder"
        )
    return []


def check_not_in_use(folder: Path) -> None:
    """Check, before the data are read, that no other process holds the folder of a run.

    Raises:
        UserError: as :func:`lock`.
    """
    if os.path.exists(folder / LOCK):  # unlike Path.exists, for names of any length
        with lock(folder):
            pass


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold the folder of a run; the operating system frees it when this process ends, however it does.

    Raises:
        UserError: another process holds it, or one of another machine did not release it.
    """
    path, here, made = folder / LOCK, socket.gethostname(), not os.path.exists(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
            raise UserError(f"{path} is no lock of a run. Choose another --output")
        file = path.open("a+", encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}). Choose another --output") from None
    with file:
        free = path.resolve() not in _held and _try_lock(file) and _is_there(path, file)
        file.seek(0)
        text = file.read(1000)
        process, _, host = text.strip().partition(" on ")
        if text and not (process.startswith("process ") and host):
            raise UserError(f"{path} is no lock of a run. Choose another --output")
        if not free:
            owner = f", {process} on {host}" if text else ""
            raise UserError(f"{folder} is in use by another run{owner}. Choose another --output")
        if host not in ("", here):
            raise UserError(
                f"{folder} is in use by {process} on {host}, or that run was killed. If it has ended, delete {path} "
                "and start again"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {here}\n")
        file.flush()
        _held.add(path.resolve())
        try:
            yield
        finally:
            _held.discard(path.resolve())
            with suppress(OSError):
                path.unlink()
                if made:
                    folder.rmdir()  # which fails unless nothing was written


def remove_drafts(folder: Path) -> None:
    """Remove what a run left half written when it was killed."""
    for place in (folder, folder / "last"):
        for name in os.listdir(place) if place.is_dir() else ():
            if re.fullmatch(r"\.[A-Za-z]+\.[a-z]+\.\d+\.part", name):
                (place / name).unlink(missing_ok=True)


def check_space(training: Training) -> None:
    """Check, before the first step, that the disk has room for the models and the state, old and new at once.

    Raises:
        UserError: it has not.
    """
    folder = training.config.folder
    model = tensor_bytes(training.detector.net.state_dict())
    trained = sum(p.nbytes for p in training.detector.net.parameters() if p.requires_grad)
    state = model * (2 if training.average else 1) + MOMENTS[training.config.optim.optimizer] * trained
    needed = 2 * state + 3 * model  # each file is written beside the one that it replaces: best, last and a draft
    own = [place / name for place in (folder, folder / "last") for name in (STATE, TENSORS)]
    there = sum(path.stat().st_size for path in own if path.is_file())
    free = shutil.disk_usage(folder).free
    if needed - there > free:
        raise UserError(
            f"--output {folder}: the models and the state of this run take about {needed / 1e6:.0f} MB, and the disk "
            f"has {free / 1e6:.0f} MB free. Free some space or choose another place"
        )


def _is_there(path: Path, file: IO[str]) -> bool:
    """Whether a path still names an open file; the run that held it may have deleted it since."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except OSError:
        return False


def _try_lock(file: IO[str]) -> bool:
    """Whether a file is locked by this process now; True where its file system knows no locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(1000)  # behind the text, which others read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock, it is not kept by forked workers
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
    return True


def _check_options(config: TrainConfig) -> list[str]:
    """The options that change the rounding; those of the run and those that are free may not differ otherwise."""
    folder = config.folder
    if os.path.exists(folder / CONFIG) and not os.path.exists(folder / STATE):
        raise UserError(_describe_lone_model(folder))
    if not os.path.isfile(folder / STATE) or not os.path.isfile(folder / OPTIONS):
        raise UserError(f"nothing to resume: {folder} holds no saved state of a run. Start the run without --resume")
    then, now = flatten_fields(read_mapping(folder / OPTIONS)), flatten_fields(to_plain(config))
    names = [name for name in {**now, **then} if name not in FREE and then.get(name) != now.get(name)]
    differing = {name: f"{name} {then.get(name)} -> {now.get(name)}" for name in names}
    if others := [text for name, text in differing.items() if name not in ROUNDING]:
        epochs = f" --epochs {config.epochs}" if "epochs" in differing else ""
        raise UserError(
            f"{folder} was started with other options ({', '.join(others)}). Go on with the same: "
            f"{resume_command(folder)}. Or start another run from its model: retinanet train {config.data} --model "
            f"{folder} --output NEW{epochs}"
        )
    return list(differing.values())


def _describe_lone_model(folder: Path) -> str:
    return (
        f"{folder} holds a model without the state of its run ({STATE}), so the run cannot go on. Choose another "
        f"--output; to start from this model: --model {folder}"
    )


def resume_command(folder: Path) -> str:
    """What a person types to go on with the run in a folder."""
    return f"retinanet train --config {folder}/{OPTIONS} --resume"
