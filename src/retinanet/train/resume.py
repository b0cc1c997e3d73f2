"""The training state: what a run needs to go on from its last saved step."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from retinanet.digest import check_seal
from retinanet.files import write_tensors
from retinanet.types import UserError

STATE = "state.pt"


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
