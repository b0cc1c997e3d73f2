"""ONNX, through torch's exporter."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxscript import opset18

from retinanet.deploy.graph import DetectionModule, RawModule, trace
from retinanet.detector import Detector
from retinanet.digest import seal
from retinanet.inference.backend import INPUTS
from retinanet.inference.card import Card
from retinanet.inference.onnx_backend import KEY

OPSET = 18
op: Any = opset18  # its types know neither attributes nor symbolic tensors


def write_onnx(detector: Detector, card: Card, path: Path, images: Sequence[Path], *, keep_class_output: bool) -> None:
    """Write an ONNX file; in int8, ``images`` set the scales (see :func:`retinanet.deploy.quantise.quantise_model`)."""
    model = to_onnx(detector, card)
    if card.precision == "int8":
        from retinanet.deploy.quantise import quantise_model

        model = quantise_model(model, detector.spec.preprocess, images, keep_class_output=keep_class_output)
        _add_card(model, card)
    onnx.save(model, path)
    seal(path)


def to_onnx(detector: Detector, card: Card) -> onnx.ModelProto:
    """An fp32 ONNX model of a detector, with the card inside."""
    module = RawModule(detector) if card.raw else DetectionModule(detector)
    with warnings.catch_warnings(), _silent("torch.onnx", "onnxscript", "onnx_ir"):
        warnings.simplefilter("ignore")  # of the exporter, about itself
        made = torch.onnx.export(
            trace(module),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=list(module.outputs),
            custom_translation_table={torch.ops.retinanet.nms_keep.default: _nms_keep},
        )
    assert made is not None
    model = made.model_proto
    model.producer_name, model.producer_version = "retinanet", card.library_version
    model.doc_string = "RetinaNet: images (N, 3, H, W) RGB and sizes (N, 2) of their content -> detections"
    _add_card(model, card)
    onnx.checker.check_model(model)
    return model


def _add_card(model: onnx.ModelProto, card: Card) -> None:
    """Put a card into a model, in place of an earlier one."""
    kept = [entry for entry in model.metadata_props if entry.key != KEY]
    del model.metadata_props[:]
    model.metadata_props.extend([*kept, onnx.StringStringEntryProto(key=KEY, value=card.to_json())])


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


@contextlib.contextmanager
def _silent(*names: str) -> Iterator[None]:
    """Loggers of libraries say nothing below an error, and nobody prints."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
