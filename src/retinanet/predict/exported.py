"""Exported models: from a path to what runs it."""

from __future__ import annotations

from pathlib import Path

from retinanet.predict.backend import ExportedModel, Mode
from retinanet.weights.exported import exported_file

__all__ = ["exported_file", "open_exported"]


def open_exported(
    file: Path, mode: Mode = "latency", *, raw: bool = False, trust: bool = False, trust_code: bool = False
) -> ExportedModel:
    """The exported model in a file; only the runtime of its format is imported.

    Args:
        file: as :func:`exported_file` finds it.
        mode: ``latency``: one call at a time, all cores; ``throughput``: a call per core.
        raw: a graph that ends at the heads will do; its ``graph`` can be called, and not its ``run``.
        trust: see :func:`retinanet.predict.pt2_backend.open_pt2`; the other formats hold no code.
        trust_code: likewise.

    Raises:
        UserError: its runtime is not installed; the file is damaged, not ours, of a newer version or raw; or a pt2
            file is not trusted.
    """
    if file.suffix == ".onnx":
        from retinanet.predict.onnx_backend import open_onnx

        return open_onnx(file, mode, raw=raw)
    if file.suffix == ".xml":
        from retinanet.predict.openvino_backend import open_openvino

        return open_openvino(file, mode, raw=raw)
    from retinanet.predict.pt2_backend import open_pt2

    return open_pt2(file, raw=raw, trust=trust, trust_code=trust_code)
