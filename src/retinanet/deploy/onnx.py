"""ONNX, through torch's exporter, and from it OpenVINO; in int8 by way of NNCF."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxscript import opset18

from retinanet.deploy.graph import make_module, trace
from retinanet.detector import Detector
from retinanet.digest import seal
from retinanet.inference.exported import INPUTS, Card
from retinanet.inference.runtimes import ONNX_KEY, OPENVINO_KEYS, import_runtime, openvino_core, silence
from retinanet.spec import exported_files

OPSET = 18
op: Any = opset18  # its types know neither attributes nor symbolic tensors


def write_model(detector: Detector, card: Card, path: Path, images: Sequence[Path], *, keep_class_output: bool) -> None:
    """Write an ONNX file, or the two files of OpenVINO.

    In OpenVINO bf16 is a matter of the runtime: the file holds fp32 weights, and the card says how to compute.

    Args:
        detector: the model.
        card: of the file.
        path: ends in .onnx, or in .xml for OpenVINO.
        images: set the scales of int8.
        keep_class_output: see :func:`retinanet.deploy.quantise.quantise_model`.

    Raises:
        OSError: a file cannot be written.
    """
    model: Any = to_onnx(detector, card)
    if path.suffix == ".xml":
        model = openvino_core().read_model(model.SerializeToString())
    if card.precision == "int8":
        import_runtime("openvino", "OpenVINO")  # before NNCF does, so that neither reports to its maker
        from retinanet.deploy.quantise import quantise_model

        model = quantise_model(model, detector.spec, images, keep_class_output=keep_class_output)
    if path.suffix == ".xml":
        model.set_rt_info(card.to_json(), OPENVINO_KEYS)
        try:
            import_runtime("openvino", "OpenVINO").save_model(model, path, compress_to_fp16=False)
        except RuntimeError as error:  # such as a full disk
            raise OSError(f"OpenVINO: {error}") from None
    else:
        model.metadata_props.add(key=ONNX_KEY, value=card.to_json())
        onnx.save(model, path)
    seal(*exported_files(path))


def to_onnx(detector: Detector, card: Card) -> onnx.ModelProto:
    """An fp32 ONNX model of a detector, without the card."""
    module = make_module(detector, raw=card.raw)
    with (
        warnings.catch_warnings(),
        silence("torch.onnx", "onnxscript", "onnx_ir"),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")  # of the exporter, about itself
        program = torch.onnx.export(
            trace(module),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=list(module.outputs),
            custom_translation_table={torch.ops.retinanet.nms_keep.default: _nms_keep},
        )
    assert program is not None
    model = program.model_proto
    model.producer_name, model.producer_version = "retinanet", card.library_version
    model.doc_string = "RetinaNet: images (N, 3, H, W) RGB and sizes (N, 2) of their content -> detections"
    onnx.checker.check_model(model)
    return model


def _nms_keep(
    boxes: Any, scores: Any, labels: Any, threshold: float, class_agnostic: bool, num_classes: int, most: int
) -> Any:
    """:func:`~retinanet.anchors.nms.nms_keep` in operators of ONNX: one row of scores per class, 0 for the others."""
    axis = op.Constant(value_ints=[1])
    by_class = op.Unsqueeze(scores, axis)  # (N, 1, n)
    if not class_agnostic:
        classes = onnx.numpy_helper.from_array(np.arange(num_classes, dtype=np.int64).reshape(1, -1, 1))
        same = op.Equal(op.Unsqueeze(labels, axis), op.Constant(value=classes))
        by_class = op.Where(same, by_class, op.Constant(value_float=0.0))  # (N, K, n)
    chosen = op.NonMaxSuppression(  # (kept, 3): image, class, candidate
        boxes,
        by_class,
        op.Constant(value_ints=[most]),
        op.Constant(value_floats=[threshold]),
        op.Constant(value_floats=[0.0]),
    )
    place = op.Gather(chosen, op.Constant(value_ints=[0, 2]), axis=1)
    count = op.Gather(op.Shape(chosen), op.Constant(value_ints=[0]))
    ones = op.Expand(op.Constant(value_float=1.0), count)
    zeros = op.Expand(op.Constant(value_float=0.0), op.Shape(scores))
    return op.Cast(op.ScatterND(zeros, place, ones), to=onnx.TensorProto.BOOL)
