"""Exported models in OpenVINO."""

from __future__ import annotations

import logging
import queue
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retinanet.errors import UserError
from retinanet.inference.backend import (
    INPUTS,
    ExportedModel,
    Mode,
    count_cores,
    explain_damage,
    explain_missing_runtime,
    read_card,
)
from retinanet.inference.card import Card

KEYS = ["retinanet", "card"]  # where the card lies in the model's runtime information

_log = logging.getLogger(__name__)


def open_openvino(path: Path, mode: Mode = "latency", *, raw: bool = False) -> ExportedModel:
    """An OpenVINO model, ready to run on the CPU.

    Args:
        path: the .xml file; the weights lie beside it, in a .bin file of the same name.
        mode: ``latency`` gives all cores to one call; ``throughput`` runs as many calls as there are cores, one core
            each.
        raw: see :func:`retinanet.inference.exported.open_exported`.

    Raises:
        UserError: OpenVINO is not installed, or the file is damaged, not ours, of a newer version or raw.
    """
    try:
        import openvino
    except ImportError:
        raise explain_missing_runtime("OpenVINO", "openvino") from None
    if not path.with_suffix(".bin").is_file():
        raise UserError(f"{path.with_suffix('.bin')} is missing: the weights of {path.name}. Copy it as well")
    streams = count_cores() if mode == "throughput" else 1
    core = openvino.Core()
    try:
        model = core.read_model(path)
        text = model.get_rt_info(KEYS).astype(str) if model.has_rt_info(KEYS) else ""
    except RuntimeError as error:
        raise explain_damage(path, "OpenVINO", error) from None
    card, names = read_card(text, path, raw=raw, outputs=[output.get_any_name() for output in model.outputs])
    settings = {
        "PERFORMANCE_HINT": mode.upper(),
        "NUM_STREAMS": str(streams),
        "INFERENCE_NUM_THREADS": str(count_cores()),
        "INFERENCE_PRECISION_HINT": _precision(core, card, path),
    }
    try:
        compiled = core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise explain_damage(path, "OpenVINO", error) from None
    return ExportedModel(card, _Requests(compiled, names, streams), runtime="OpenVINO", streams=streams)


def _precision(core: Any, card: Card, path: Path) -> str:
    """In what to compute: left alone, OpenVINO computes in bf16 wherever the CPU can."""
    if card.precision != "bf16":
        return "f32"
    if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return "bf16"
    _log.warning("%s was exported for bf16, which this CPU does not compute in: fp32 is used instead", path)
    return "f32"


class _Requests:
    """A compiled model with as many requests as calls may go on at once; a request serves one call at a time."""

    def __init__(self, compiled: Any, outputs: Sequence[str], streams: int) -> None:
        self._outputs = outputs
        self._inputs = {name for port in compiled.inputs for name in port.get_names()}
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(streams):
            self._free.put(compiled.create_infer_request())

    def __call__(self, images: NDArray[Any], sizes: NDArray[np.int64]) -> list[NDArray[Any]]:
        given = dict(zip(INPUTS, (images, sizes), strict=True))
        request = self._free.get()
        try:  # OpenVINO drops an input that nothing needs: the sizes of a raw graph of normalised images
            request.infer({name: given[name] for name in INPUTS if name in self._inputs}, share_inputs=True)
            return [request.get_tensor(name).data.copy() for name in self._outputs]
        finally:
            self._free.put(request)
