"""What the model had at a point of an image, from a network in torch."""

from __future__ import annotations

from typing import Any

import torch

from retinanet.analysis.trace.point import trace_point
from retinanet.inference.torch_backend import TorchBackend


def explain_point(backend: TorchBackend, pixels: Any, point: tuple[float, float]) -> list[dict[str, Any]]:
    """The best candidates at a point, each with the gate where it ended.

    Args:
        backend: the model.
        pixels: (H, W, 3) uint8 RGB.
        point: x and y in its pixels.
    """
    spec = backend.spec
    with torch.inference_mode():
        image = backend.prepare(pixels)
        raw, sizes = backend.raw([image])
        height, width = sizes[0].tolist()
        names, thresholds = spec.class_names, spec.thresholds
        entries = trace_point(
            *(raw, 0, point, (height, width), spec.postprocess),
            original=image.size,
            class_names=names,
            thresholds=thresholds,
        )
    return [
        {
            "box": list(entry.box),
            "score": entry.score,
            "name": names[entry.label],
            "gate": entry.gate,
            "reason": entry.reason,
        }
        for entry in entries
    ]
