"""Exported models: from a path to what runs it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from retinanet.digest import check_seal
from retinanet.files import open_file
from retinanet.inference.backend import ExportedModel, Mode
from retinanet.inference.card import Card

_log = logging.getLogger(__name__)


def open_exported(
    file: Path, mode: Mode = "latency", *, raw: bool = False, trust: bool = False, trust_code: bool = False
) -> ExportedModel:
    """The exported model in a file; only the runtime of its format is imported.

    Args:
        file: as :func:`exported_file` finds it.
        mode: ``latency``: one call at a time, all cores; ``throughput``: a call per core.
        raw: a graph that ends at the heads will do; its ``graph`` can be called, and not its ``run``.
        trust: see :func:`retinanet.inference.pt2_backend.open_pt2`; the other formats hold no code.
        trust_code: likewise.

    Raises:
        UserError: its runtime is not installed; the file is damaged, not ours, of a newer version or raw; or a pt2
            file is not trusted.
    """
    opened = _open(file, mode, raw=raw, trust=trust, trust_code=trust_code)
    warn_if_stale(file, opened.card)
    return opened


def warn_if_stale(file: Path, card: Card) -> None:
    """Log a warning where the model folder around an exported model holds other weights than it was made from."""
    for folder in file.absolute().parents[:2]:
        try:
            with open_file(folder / "config.json") as stream:
                digests = json.load(stream).get("weights_sha256")
        except (OSError, ValueError, AttributeError, RecursionError):  # no model folder
            continue
        if card.weights_sha256 and isinstance(digests, list) and card.weights_sha256 not in digests:
            _log.warning(
                "%s was exported from other weights than %s holds now. To export those: retinanet export %s",
                *(file, folder / "model.safetensors", folder),
            )


def _open(file: Path, mode: Mode, *, raw: bool, trust: bool, trust_code: bool) -> ExportedModel:
    _check_content(file)
    if file.suffix == ".onnx":
        from retinanet.inference.onnx_backend import open_onnx

        return open_onnx(file, mode, raw=raw)
    if file.suffix == ".xml":
        from retinanet.inference.openvino_backend import open_openvino

        return open_openvino(file, mode, raw=raw)
    from retinanet.inference.pt2_backend import open_pt2

    return open_pt2(file, raw=raw, trust=trust, trust_code=trust_code)


def _check_content(file: Path) -> None:
    """Refuse files that are damaged, as far as their digest tells; a .bin file that is missing is told later."""
    weights = file.with_suffix(".bin")
    others = (weights,) if file.suffix == ".xml" else ()
    if all(other.is_file() for other in others):
        check_seal(file, *others, remedy="Copy it again, or export it again: retinanet export MODEL")
