"""OpenVINO IR, from the ONNX model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import openvino

from retinanet.deploy.onnx import to_onnx
from retinanet.detector import Detector
from retinanet.digest import seal
from retinanet.inference.card import Card
from retinanet.inference.openvino_backend import KEYS


def write_openvino(
    detector: Detector, card: Card, path: Path, images: Sequence[Path], *, keep_class_output: bool
) -> None:
    """Write ``path`` (.xml) and its weights (.bin); in int8, ``images`` set the scales.

    bf16 is a matter of the runtime: the file holds fp32 weights, and the card says how to compute.

    Raises:
        OSError: they cannot be written.
    """
    model = openvino.Core().read_model(to_onnx(detector, card).SerializeToString())
    if card.precision == "int8":
        from retinanet.deploy.quantise import quantise_model

        model = quantise_model(model, detector.spec.preprocess, images, keep_class_output=keep_class_output)
    model.set_rt_info(card.to_json(), KEYS)
    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:  # such as a full disk
        raise OSError(f"OpenVINO: {error}") from None
    seal(path, path.with_suffix(".bin"))
