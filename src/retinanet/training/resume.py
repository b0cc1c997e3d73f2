"""The state from which a run goes on: how far it is, its tensors, its data and the threads it computed with."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from retinanet.data.dataset import DetectionDataset
from retinanet.data.faults import name_list
from retinanet.data.windows import WindowDataset
from retinanet.digest import check_seal
from retinanet.errors import UserError
from retinanet.files import write_tensors
from retinanet.plain import check_types
from retinanet.types import Sample
from retinanet.yaml_files import read_mapping

STATE = "state.pt"
UNREADABLE = (OSError, RuntimeError, EOFError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError,
              pickle.UnpicklingError)  # fmt: skip


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

    def __post_init__(self) -> None:
        check_types(self, "progress")
        if self.step < 0 or self.stale < 0:
            raise ValueError(f"step {self.step}, stale {self.stale}")


def save_state(folder: Path, progress: Progress, parts: dict[str, Any], data: dict[str, str] | None = None) -> None:
    """Write the state of the run, whole or not at all.

    Args:
        folder: of the run.
        progress: how far it is.
        parts: name -> object with ``state_dict()``.
        data: of :func:`describe_data`.

    Raises:
        UserError: the file cannot be written; an earlier state is still there.
    """
    states = {name: part.state_dict() for name, part in parts.items()}
    about = {"data": data or {}, "threads": torch.get_num_threads()}
    write_tensors(folder / STATE, {"progress": vars(progress), **about, **states})


def load_state(folder: Path, parts: dict[str, Any], data: dict[str, str] | None = None) -> tuple[Progress, list[str]]:
    """Restore the parts and the number of threads from the state of the run; the file is read as data, never as code.

    Args:
        folder: of the run.
        parts: name -> object with ``load_state_dict()``.
        data: of :func:`describe_data`, to be compared with the state's; None does not compare.

    Returns:
        How far the run is, and why its weights may differ in their last bits from those of an uninterrupted run.

    Raises:
        UserError: the file is missing, damaged, or of another network, or the run began with other data.
    """
    path = folder / STATE
    if not path.is_file():
        raise UserError(f"nothing to resume in {folder}: {path} is missing. Start the run without --resume")
    try:
        check_seal(path, remedy="Copy it again, or start a new run")
        state = torch.load(path, map_location="cpu", weights_only=True)
        before = state.get("data")
        if data and before and (differences := compare_data(before, data)):
            raise UserError(
                f"the data are not those that the run in {folder} began with: {differences}. Start a new run, or go on "
                "with these: --run.accept_changed_data true"
            )
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return Progress(**state["progress"]), _restore_threads(state.get("threads"))
    except UserError:
        raise
    except UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is damaged or belongs to another model ({reason}). Start a new run") from None


def read_step(folder: Path) -> int | None:
    """The step of the saved state of a run; None where it cannot be read."""
    if not (folder / STATE).is_file():  # opening a named pipe would wait for its writer
        return None
    try:
        return int(torch.load(folder / STATE, map_location="cpu", weights_only=True, mmap=True)["progress"]["step"])
    except UNREADABLE:
        return None


def describe_data(train_set: DetectionDataset, val_set: DetectionDataset, root: Path) -> dict[str, str]:
    """What a run learns from, by which it notices at a resume that the data have changed.

    Args:
        train_set: what is learned from.
        val_set: what is evaluated on.
        root: folder of the data; names of images are relative to it.

    Returns:
        The names of the classes, one in a line, and for each split a line per image: a digest of its size, boxes,
        labels and ignore flags, a space, its name.
    """
    texts = {"classes": "\n".join(train_set.class_names)}
    for split, seen in (("train", train_set), ("validation", val_set)):
        dataset = seen.whole if isinstance(seen, WindowDataset) else seen
        texts[split] = "\n".join(
            f"{_digest(sample)} {os.path.relpath(sample.path, root)}" for sample in dataset.samples
        )
    return texts


def digest_data(data: dict[str, str]) -> str:
    """The SHA-256 digest of a result of :func:`describe_data`."""
    return hashlib.sha256("\n\n".join(data.values()).encode("utf-8", "surrogateescape")).hexdigest()


def compare_data(before: dict[str, str], now: dict[str, str]) -> str:
    """How two results of :func:`describe_data` differ, in words; empty if they do not."""
    differences = []
    if before["classes"] != now["classes"]:
        then, here = (", ".join(texts["classes"].splitlines()) for texts in (before, now))
        differences.append(f"the classes were {then} and are {here}")
    for split in ("train", "validation"):
        old, new = (
            {line.partition(" ")[2]: line.partition(" ")[0] for line in texts[split].splitlines()}
            for texts in (before, now)
        )
        kinds: dict[str, Sequence[str]] = {
            "gone": [name for name in old if name not in new],
            "new": [name for name in new if name not in old],
            "annotated differently": [name for name in old if name in new and old[name] != new[name]],
        }
        if changed := [f"{len(names)} {kind} ({name_list(names)})" for kind, names in kinds.items() if names]:
            differences.append(f"{split} had {len(old)} images and has {len(new)}: {', '.join(changed)}")
        elif before[split] != now[split]:
            differences.append(f"the images of {split} are in another order")
    return "; ".join(differences)


def _digest(sample: Sample) -> str:
    digest = hashlib.blake2b(repr(sample.size).encode(), digest_size=6)
    for column in vars(sample.target).values():
        digest.update(column.numpy().tobytes())
    return digest.hexdigest()


def _restore_threads(threads: int | None) -> list[str]:
    """Compute with as many threads as before, because sums over others round differently."""
    if threads in (None, torch.get_num_threads()) or not isinstance(threads, int):
        return []
    if "OMP_NUM_THREADS" in os.environ or threads > (os.cpu_count() or 1):
        return [f"threads {threads} -> {torch.get_num_threads()}"]
    torch.set_num_threads(threads)
    return []


def read_learned_images(folder: Path) -> frozenset[str] | None:
    """The absolute paths of the images that a run has learned from or chose its model by; None where it is not known.

    Args:
        folder: of the run, or of a model whose state is gone.
    """
    try:
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True, mmap=True)
        root = Path(read_mapping(folder / "config.yaml")["data"])
        lines = [line for split in ("train", "validation") for line in state["data"][split].splitlines()]
    except (*UNREADABLE, UserError):
        return None
    return frozenset(os.path.realpath(root / line.partition(" ")[2]) for line in lines)
