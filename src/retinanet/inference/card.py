"""The card: what an exported model carries inside its file beside the graph, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from retinanet import __version__
from retinanet.errors import UserError
from retinanet.images.preprocess import Preprocess, PreprocessCompat
from retinanet.model.changes import nest_compat

CARD_FORMAT = 2


@dataclass(frozen=True)
class Card:
    """All that a prediction needs beside the graph, and what people want to know of the model.

    Attributes:
        class_names: K names.
        preprocess: how images become the graph's input.
        postprocess: as in ``config.json``; for people, because the graph has it built in.
        thresholds: the score from which on a detection of a class is shown, by class name; a class may be missing.
        metrics: what the model was last evaluated to.
        precision: fp32, bf16 or int8: what the file was made for.
        raw: whether the graph ends at the heads, without detections.
        scale: how much larger or smaller than their pixels the images of training were, or None where nobody knows.
        library_version: of the package that wrote the file.
        weights_sha256: of the ``model.safetensors`` that the file was made from; empty where nobody knows.
    """

    class_names: tuple[str, ...]
    preprocess: Preprocess
    postprocess: dict[str, Any] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    precision: str = "fp32"
    raw: bool = False
    scale: float | None = None
    library_version: str = __version__
    weights_sha256: str = ""

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps({"format": CARD_FORMAT, **asdict(self)})

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
        except ValueError:
            raise _no_card(path) from None
        if not isinstance(values, dict) or not isinstance(values.get("format"), int):
            raise _no_card(path)
        version = values.pop("format")
        if version < 1:
            raise _no_card(path)
        if version > CARD_FORMAT:
            raise UserError(
                f"{path} was exported by retinanet {values.get('library_version')} in format {version}; this is "
                f"{__version__}, which reads up to format {CARD_FORMAT}. Upgrade the package: pip install -U retinanet"
            )
        try:
            rule: Any = nest_compat(values.pop("preprocess"), PreprocessCompat)
            rule = {key: tuple(value) if isinstance(value, list) else value for key, value in rule.items()}
            preprocess = Preprocess(**{**rule, "compat": PreprocessCompat(**rule["compat"])})
            card = cls(tuple(_list(values.pop("class_names"))), preprocess, **values)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise _no_card(path, f" ({error})") from None
        if not all(_fits(card, entry.name) for entry in fields(cls)):
            raise _no_card(path)
        named = card.class_names and all(isinstance(name, str) and name for name in card.class_names)
        if not named or not all(isinstance(limit, float | int) for limit in card.thresholds.values()):
            raise _no_card(path)
        return card


_KINDS: Mapping[str, type | tuple[type, ...]] = {
    **{"class_names": tuple, "preprocess": Preprocess, "postprocess": dict, "thresholds": dict, "metrics": dict},
    **{"precision": str, "raw": bool, "scale": (float, int, type(None)), "library_version": str},
    "weights_sha256": str,
}


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("class_names is no list")
    return value


def _fits(card: Card, name: str) -> bool:
    return isinstance(getattr(card, name), _KINDS[name])


def _no_card(path: Path, why: str = "") -> UserError:
    return UserError(
        f"{path} is damaged, or not a model that retinanet exported{why}. Export it again: retinanet export MODEL"
    )
