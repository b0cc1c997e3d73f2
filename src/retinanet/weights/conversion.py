"""A finished conversion: the detector, and an account of where every tensor went."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retinanet.files import write_atomically
from retinanet.types import UserError
from retinanet.weights.checkpoint import Detector, save_detector
from retinanet.weights.files import WeightsFile
from retinanet.weights.parity import Parity
from retinanet.weights.source import Settings

REPORT = "conversion"  # .txt for people, .json for programs, beside the model


@dataclass(frozen=True)
class Conversion:
    """A detector made of somebody's weights, and an account of it.

    Attributes:
        detector: ready to use.
        source: whose weights they were.
        file: where they came from.
        used: our key -> theirs, for every tensor that was taken.
        left_out: their key -> why it has no place in our network.
        filled: our keys that their files do not have: counters of batches, which nothing reads.
        settings: what their code did with the weights.
        parity: the measured difference from torchvision's code, where the weights are its own.
    """

    detector: Detector
    source: str
    file: WeightsFile
    used: Mapping[str, str]
    left_out: Mapping[str, str]
    filled: tuple[str, ...]
    settings: Settings
    parity: Parity | None = None

    def report(self) -> str:
        """For a person: what was used, what not, what was concluded, and how equal it is."""
        detector, names = self.detector, self.detector.class_names
        shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        loss = " ".join(f"--loss.{key} {value}" for key, value in self.settings.loss.items())
        reasons = {
            reason: [key for key, why in self.left_out.items() if why == reason] for reason in self.left_out.values()
        }
        lines = [
            f"source         {self.source}: {self.file.path} (sha256 {self.file.sha256[:12]})",
            *(f"file           {note}" for note in self.file.notes),
            f"tensors        {len(self.used)} used, every shape as expected; {len(self.left_out)} left out",
            *(f"left out       {', '.join(keys)}: {reason}" for reason, keys in reasons.items()),
            *([f"not in file    {len(self.filled)} counters of batches, set to 0"] if self.filled else []),
            f"network        {detector.architecture.backbone}, "
            f"{_differences(detector.architecture, ('backbone', 'anchors', 'coder'))}",
            f"anchors        {_differences(detector.architecture.anchors)}",
            f"box code       {_differences(detector.architecture.coder)}",
            f"input          {_differences(detector.preprocess)}",
            f"detections     {_differences(detector.postprocess)}",
            f"classes        {len(names)}: {shown}",
            *(f"concluded      {remark}" for remark in self.settings.remarks),
            f"trained with   {loss} (options of train, to go on as {self.source} did)",
            f"parity         {self.parity.summary() if self.parity else _unmeasured(self.source)}",
        ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The same for a program, with every key and shape."""
        state = self.detector.net.state_dict()
        return {
            "source": self.source,
            "file": {"path": str(self.file.path), "sha256": self.file.sha256, "notes": list(self.file.notes)},
            "used": {ours: {"from": theirs, "shape": list(state[ours].shape)} for ours, theirs in self.used.items()},
            "left_out": dict(self.left_out),
            "filled": list(self.filled),
            "architecture": asdict(self.detector.architecture),
            "preprocess": asdict(self.detector.preprocess),
            "postprocess": asdict(self.detector.postprocess),
            "class_names": list(self.detector.class_names),
            "slots": None if self.settings.slots is None else list(self.settings.slots),
            "loss": dict(self.settings.loss),
            "remarks": list(self.settings.remarks),
            "parity": asdict(self.parity) if self.parity else None,
        }


def save_conversion(done: Conversion, folder: Path) -> None:
    """Write the model folder, and then the report beside the model.

    Raises:
        UserError: the folder cannot be written.
    """
    save_detector(folder, done.detector)
    write_atomically(folder / f"{REPORT}.txt", done.report() + "\n")
    write_atomically(folder / f"{REPORT}.json", json.dumps(done.to_json(), indent=1) + "\n")


def check_writable(target: Path) -> None:
    """Whether something can be made there, before the work is done.

    Raises:
        UserError: it cannot.
    """
    place = next(path for path in (target.absolute(), *target.absolute().parents) if path.exists())
    if place != target.absolute() and not place.is_dir():
        raise UserError(f"{target}: {place} is a file, so nothing can be made in it")
    if not os.access(place, os.W_OK):
        raise UserError(f"{target}: {place} cannot be written to. Choose another place")


def _differences(value: Any, without: tuple[str, ...] = ()) -> str:
    """The fields of a dataclass that are not at their defaults."""
    default = type(value)()
    pairs = [(key, entry) for key, entry in vars(value).items() if key not in without]
    parts = [f"{key} {entry}" for key, entry in pairs if entry != getattr(default, key)]
    return ", ".join(parts) if parts else "all at the defaults"


def _unmeasured(source: str) -> str:
    return f"not measured here: {source}'s code is not part of this package; see docs/how-to/weights.md for what was"
