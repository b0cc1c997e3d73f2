"""int8: post-training quantisation of an OpenVINO or ONNX model with NNCF.

Only what leads to a convolution is quantised: decoding, top-k and suppression compute with coordinates, which 8 bits
cannot hold. The last convolution of the box subnet stays in fp32 too, since its errors are errors of the boxes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import nncf
import onnx
import openvino
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

from retinanet.deploy.parity import read_seen
from retinanet.inference.exported import INPUTS
from retinanet.inference.runtimes import silence
from retinanet.interop.comparison import make_batch
from retinanet.spec import ModelSpec

CLASS_OUTPUT = "heads.cls.output.weight"  # how the name of the weights of the class subnet's last convolution ends
BOX_OUTPUT = "heads.box.output.weight"
Model = TypeVar("Model", openvino.Model, onnx.ModelProto)


def quantise_model(model: Model, spec: ModelSpec, images: Sequence[Path], *, keep_class_output: bool) -> Model:
    """An int8 copy of a model.

    Args:
        model: in fp32, with detections or raw outputs.
        spec: of the model.
        images: of the kind that the model is for; their activations set the scales.
        keep_class_output: the last convolution of the class subnet stays in fp32.
    """
    with silence("nncf"):  # it reports each step on the console
        result: Model = nncf.quantize(
            model,
            nncf.Dataset(list(enumerate(images)), lambda numbered: _read_inputs(spec, *numbered)),
            subset_size=len(images),
            preset=nncf.QuantizationPreset.MIXED,  # activations may be asymmetric: not every backbone ends in a ReLU
            ignored_scope=nncf.IgnoredScope(names=_find_ignored(model, keep_class_output)),
            # Weights of 7 bits: with 8, a CPU without VNNI cuts sums of two products at 16 bits, and boxes suffer.
            advanced_parameters=AdvancedQuantizationParameters(overflow_fix=OverflowFix.ENABLE),
        )
    return result


def _read_inputs(spec: ModelSpec, number: int, path: Path) -> dict[str, Any]:
    """What a graph is given for one image: (1, 3, H, W) and (1, 2)."""
    batch = make_batch(spec.preprocess, [read_seen(spec, number, path)])
    return dict(zip(INPUTS, (batch.images.contiguous().numpy(), batch.sizes.numpy()), strict=True))


def _find_ignored(model: openvino.Model | onnx.ModelProto, keep_class_output: bool) -> list[str]:
    """Names of the nodes that stay as they are."""
    after, convolutions = _openvino_graph(model) if isinstance(model, openvino.Model) else _onnx_graph(model)
    leads: dict[str, bool] = {}
    for name in reversed(after):  # in topological order, so what comes after a node is known already
        leads[name] = any(node in convolutions or leads.get(node, False) for node in after[name])
    ignored = [name for name in after if not leads[name] and name not in convolutions]
    kept = (BOX_OUTPUT, CLASS_OUTPUT) if keep_class_output else (BOX_OUTPUT,)
    outputs = [name for name, weights in convolutions.items() if weights.endswith(kept)]
    assert outputs, "the last convolutions of the subnets are not to be found by the names of their weights"
    return ignored + outputs


def _openvino_graph(model: openvino.Model) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The nodes after each node, and the name of the weights of each convolution."""
    after: dict[str, list[str]] = {}
    convolutions: dict[str, str] = {}
    for node in model.get_ordered_ops():
        kind, name = node.get_type_name(), node.get_friendly_name()
        if kind in ("Constant", "Parameter", "Result"):
            continue
        after[name] = [
            target.get_node().get_friendly_name() for out in node.outputs() for target in out.get_target_inputs()
        ]
        if kind in ("Convolution", "GroupConvolution"):
            convolutions[name] = node.input_value(1).get_node().get_friendly_name()
    return after, convolutions


def _onnx_graph(model: onnx.ModelProto) -> tuple[dict[str, list[str]], dict[str, str]]:
    """As for OpenVINO."""
    takers: dict[str, list[str]] = defaultdict(list)
    for node in model.graph.node:
        for value in node.input:
            takers[value].append(node.name)
    after = {node.name: [name for value in node.output for name in takers[value]] for node in model.graph.node}
    return after, {node.name: node.input[1] for node in model.graph.node if node.op_type == "Conv"}
