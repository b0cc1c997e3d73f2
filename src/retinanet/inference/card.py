"""The card: what an exported model carries inside its file beside the graph, as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path

from retinanet import __version__
from retinanet.errors import UserError
from retinanet.spec import ModelSpec, check_version


@dataclass(frozen=True)
class Card:
    """All that a prediction needs beside the graph, and what people want to know of the model.

    Attributes:
        spec: of the model; its post-processing is for people and for tiles, because the graph has it built in.
        precision: fp32, bf16 or int8: what the file was made for.
        raw: whether the graph ends at the heads, without detections.
        library_version: of the package that wrote the file.
        weights_sha256: of the ``model.safetensors`` that the file was made from; empty where nobody knows.
    """

    spec: ModelSpec
    precision: str = "fp32"
    raw: bool = False
    library_version: str = __version__
    weights_sha256: str = ""

    def to_json(self) -> str:
        """One line of JSON."""
        own = {name: value for name, value in vars(self).items() if name != "spec"}
        return json.dumps({**self.spec.to_dict(), **own})

    @classmethod
    def from_json(cls, text: str, path: Path) -> Card:
        """The card that :meth:`to_json` wrote.

        Args:
            text: from inside the file.
            path: the file, for messages.

        Raises:
            UserError: it is damaged, not ours, or from a newer version.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            raise _refuse(path) from None
        if not isinstance(values, dict) or not isinstance(values.get("format"), int):
            raise _refuse(path)
        values = check_version(values, path)
        own = {entry.name for entry in fields(cls)} - {"spec"}
        if unknown := values.keys() - own - {entry.name for entry in fields(ModelSpec)} - {"format"}:
            raise _refuse(path, f" (unknown: {', '.join(sorted(unknown))})")
        try:
            card = cls(
                ModelSpec.from_dict(values, network=False), **{name: values[name] for name in own & values.keys()}
            )
        except UserError as error:
            raise _refuse(path, f" ({error})") from None
        texts = (card.precision, card.library_version, card.weights_sha256)
        if not all(isinstance(text, str) for text in texts) or not isinstance(card.raw, bool):
            raise _refuse(path)
        return card


def _refuse(path: Path, why: str = "") -> UserError:
    return UserError(
        f"{path} is damaged, or not a model that retinanet exported{why}. Export it again: retinanet export MODEL"
    )
