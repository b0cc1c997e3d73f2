"""The folder of a run: that none is overwritten, and the state from which one goes on."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from retinanet.digest import check_seal
from retinanet.errors import UserError
from retinanet.files import check_writable, write_tensors
from retinanet.plain import to_plain
from retinanet.spec import CONFIG
from retinanet.training.config import TrainConfig
from retinanet.yaml_files import read_mapping

STATE = "state.pt"


# what may differ when a run goes on: where it is computed, not what
FREE = {f"run.{key}" for key in ("accelerator", "devices", "nodes", "workers", "save_every")} | {"optim.accumulate"}


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: optimiser steps done.
        best: best AP so far, -1 before the first evaluation.
        stale: evaluations since the best.
    """

    step: int = 0
    best: float = -1.0
    stale: int = 0


def save_state(folder: Path, progress: Progress, parts: dict[str, Any]) -> None:
    """Write the state of the run, whole or not at all.

    Args:
        folder: of the run.
        progress: how far it is.
        parts: name -> object with ``state_dict()``.

    Raises:
        UserError: the file cannot be written; an earlier state is still there.
    """
    states = {name: part.state_dict() for name, part in parts.items()}
    write_tensors(folder / STATE, {"progress": vars(progress), **states})


def load_state(folder: Path, parts: dict[str, Any]) -> Progress:
    """Restore the parts from the state of the run; the file is read as data, never as code.

    Raises:
        UserError: the file is missing, damaged, or of another network.
    """
    path = folder / STATE
    if not path.is_file():
        raise UserError(f"nothing to resume in {folder}: {path} is missing. Start the run without --resume")
    try:
        check_seal(path, remedy="Copy it again, or start a new run")
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return Progress(**state["progress"])
    except UserError:
        raise
    except (OSError, RuntimeError, EOFError, LookupError, TypeError, ValueError, AttributeError,
            pickle.UnpicklingError) as error:  # fmt: skip
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is damaged or belongs to another model ({reason}). Start a new run") from None


def check_output(config: TrainConfig, *, resume: bool) -> None:
    """A run is never overwritten, and goes on only as it began.

    Raises:
        UserError: the folder holds a run and ``resume`` is off, or there is none to resume, or its options differ.
    """
    folder = config.folder
    if (folder / CONFIG).exists() and not (folder / STATE).exists():
        raise UserError(
            f"{folder} holds a model without the state of its run ({STATE}), so the run cannot go on. Choose another "
            f"--output; to start from this model: --model {folder}"
        )
    if not resume:
        if any((folder / name).exists() for name in (CONFIG, STATE)):
            raise UserError(
                f"{folder} already holds a run. Choose another --output, or go on with it: "
                f"retinanet train --config {folder}/config.yaml --resume"
            )
        check_writable(folder / CONFIG)
        return
    if not (folder / STATE).is_file() or not (folder / "config.yaml").is_file():
        raise UserError(f"nothing to resume: {folder} holds no saved state of a run. Start the run without --resume")
    before = read_mapping(folder / "config.yaml")
    then, now = _flat(before), _flat(to_plain(config))
    names = [name for name in {**now, **then} if name not in FREE and then.get(name) != now.get(name)]
    differing = [f"{name} {then.get(name)} -> {now.get(name)}" for name in names]
    if differing:
        raise UserError(
            f"{folder} was started with other options ({', '.join(differing)}). Go on with the same: "
            f"retinanet train --config {folder}/config.yaml --resume"
            f". Or start another run from its model: retinanet train {config.data} --model {folder} --output NEW"
            + f" --epochs {config.epochs}"
            * ("epochs" in names)
        )


def _flat(options: Mapping[str, Any], group: str = "") -> dict[str, Any]:
    """Nested options under dotted names."""
    flat: dict[str, Any] = {}
    for key, value in options.items():
        flat.update(_flat(value, f"{group}{key}.") if isinstance(value, Mapping) else {f"{group}{key}": value})
    return flat
