"""Exported models in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retinanet.inference.backend import (
    INPUTS,
    ExportedModel,
    Mode,
    count_cores,
    explain_damage,
    explain_missing_runtime,
    read_card,
)

KEY = "retinanet"  # of the card, in the metadata of the file


def open_onnx(path: Path, mode: Mode = "latency", *, raw: bool = False) -> ExportedModel:
    """An ONNX file, ready to run on the CPU.

    Args:
        path: the file.
        mode: ``latency`` gives all cores to one call; ``throughput`` runs as many calls as there are cores, one core
            each.
        raw: see :func:`retinanet.inference.exported.open_exported`.

    Raises:
        UserError: ONNX Runtime is not installed, or the file is damaged, not ours, of a newer version or raw.
    """
    try:
        import onnxruntime
    except ImportError:
        raise explain_missing_runtime("ONNX Runtime", "onnxruntime") from None
    streams = count_cores() if mode == "throughput" else 1
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised too
    options.intra_op_num_threads = max(1, count_cores() // streams)
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        text = session.get_modelmeta().custom_metadata_map.get(KEY, "")
    except Exception as error:  # its exceptions have no base of their own
        raise explain_damage(path, "ONNX Runtime", error) from None
    card, names = read_card(text, path, raw=raw, outputs=[output.name for output in session.get_outputs()])

    def graph(images: NDArray[Any], sizes: NDArray[np.int64]) -> list[NDArray[Any]]:
        outputs: list[NDArray[Any]] = session.run(names, dict(zip(INPUTS, (images, sizes), strict=True)))
        return outputs

    return ExportedModel(card, graph, runtime="ONNX Runtime", streams=streams)
