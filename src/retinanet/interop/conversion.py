"""A finished conversion: the detector, and an account of where every tensor went."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retinanet.files import write_atomically
from retinanet.interop.files import WeightsFile
from retinanet.interop.parity import Parity
from retinanet.interop.source import Settings
from retinanet.model.retinanet import RetinaNet
from retinanet.model_folder import write_model
from retinanet.plain import find_differences, flatten_fields, to_plain
from retinanet.spec import ModelSpec

REPORT = "conversion"  # .txt for people, .json for programs, beside the model


@dataclass(frozen=True)
class Conversion:
    """A detector made of somebody's weights, and an account of it.

    Attributes:
        spec: of the model.
        net: its network, ready to use.
        source: whose weights they were.
        file: where they came from.
        used: our key -> theirs, for every tensor that was taken.
        left_out: their key -> why it has no place in our network.
        filled: our keys that their files do not have: counters of batches, which nothing reads.
        settings: what their code did with the weights.
        parity: the measured difference from torchvision's code, where the weights are its own.
    """

    spec: ModelSpec
    net: RetinaNet
    source: str
    file: WeightsFile
    used: Mapping[str, str]
    left_out: Mapping[str, str]
    filled: tuple[str, ...]
    settings: Settings
    parity: Parity | None = None

    def report(self) -> str:
        """For a person: what was used, what not, what was concluded, and how equal it is."""
        spec, network, names = self.spec, self.spec.architecture, self.spec.class_names
        shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        loss = " ".join(f"--loss.{key} {value}" for key, value in find_differences(spec.loss).items())
        reasons: dict[str, list[str]] = {}
        for key, reason in self.left_out.items():
            reasons.setdefault(reason, []).append(key)
        unmeasured = f"{self.source}'s code is not part of this package; see docs/how-to/weights.md for what was"
        lines = [
            f"source         {self.source}: {self.file.path} (sha256 {self.file.sha256[:12]})",
            *(f"file           {note}" for note in self.file.notes),
            f"tensors        {len(self.used)} used, every shape as expected; {len(self.left_out)} left out",
            *(f"left out       {', '.join(keys)}: {reason}" for reason, keys in reasons.items()),
            *([f"not in file    {len(self.filled)} counters of batches, set to 0"] if self.filled else []),
            f"network        {network.backbone}, {_differences(network, ('backbone', 'anchors', 'coder'))}",
            f"anchors        {_differences(network.anchors)}",
            f"box code       {_differences(network.coder)}",
            f"input          {_differences(spec.preprocess)}",
            f"detections     {_differences(spec.postprocess)}",
            f"classes        {len(names)}: {shown}",
            *(f"concluded      {remark}" for remark in self.settings.remarks),
            f"trained with   {loss} (options of train, to go on as {self.source} did)",
            f"parity         {self.parity.summary() if self.parity else f'not measured here: {unmeasured}'}",
        ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The same for a program, with every key and shape."""
        state, settings = self.net.state_dict(), self.settings
        parts = ("architecture", "preprocess", "postprocess", "class_names", "loss")
        return {
            "source": self.source,
            "file": {"path": str(self.file.path), "sha256": self.file.sha256, "notes": list(self.file.notes)},
            "used": {ours: {"from": theirs, "shape": list(state[ours].shape)} for ours, theirs in self.used.items()},
            "left_out": dict(self.left_out),
            "filled": list(self.filled),
            **{name: to_plain(getattr(self.spec, name)) for name in parts},
            **{name: to_plain(getattr(settings, name)) for name in ("slots", "remarks")},
            "parity": asdict(self.parity) if self.parity else None,
        }

    def save(self, folder: Path) -> None:
        """Write the model folder, and then the report beside the model.

        Raises:
            UserError: the folder cannot be written.
        """
        write_model(folder, self.spec, self.net.state_dict())
        write_atomically(folder / f"{REPORT}.txt", self.report() + "\n")
        write_atomically(folder / f"{REPORT}.json", json.dumps(self.to_json(), indent=1) + "\n")


def _differences(value: Any, without: tuple[str, ...] = ()) -> str:
    """The fields of a dataclass, and of those in it, that are not at their defaults."""
    default = flatten_fields(type(value)())
    fields = [(key, entry) for key, entry in flatten_fields(value).items() if key.partition(".")[0] not in without]
    parts = [f"{key} {entry}" for key, entry in fields if entry != default[key]]
    return ", ".join(parts) if parts else "all at the defaults"
