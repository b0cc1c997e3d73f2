"""A tiny graph with the inputs and outputs of an exported model, in every format that needs no torch."""

import onnx
import openvino
import pytest
from onnx import TensorProto, helper

from retinanet.images.preprocess import Preprocess
from retinanet.inference.exported import Card
from retinanet.spec import ModelSpec

RULE = Preprocess(short=32, long=64, multiple=32)
CARD = Card(ModelSpec(("spot", "half"), RULE, thresholds={"spot": 0.2}, scale=0.5))


def peak_graph():
    """Boxes from ``sizes``: the whole image, scored by its brightest value, and its middle with half of that.

    The second one counts only where the score is above a half.
    """
    nodes = []

    def node(kind, *inputs, **attributes):
        nodes.append(helper.make_node(kind, inputs, [f"t{len(nodes)}"], **attributes))
        return nodes[-1].output[0]

    def constant(kind, *values, shape=None):
        return node("Constant", value=helper.make_tensor("value", kind, shape or [len(values)], values))

    def number(value):
        return constant(TensorProto.FLOAT, value, shape=[])

    axes = constant(TensorProto.INT64, 1)
    pixels = node("Cast", "images", to=TensorProto.FLOAT)
    peak = node("Div", node("ReduceMax", pixels, axes=[1, 2, 3], keepdims=0), number(255.0))  # (N,)
    sides = node("Gather", node("Cast", "sizes", to=TensorProto.FLOAT), constant(TensorProto.INT64, 1, 0), axis=1)
    whole = node("Concat", node("Mul", sides, number(0.0)), sides, axis=1)  # (N, 4)
    middle = node("Concat", node("Mul", sides, number(0.25)), node("Mul", sides, number(0.75)), axis=1)
    boxes = [node("Unsqueeze", one, axes) for one in (whole, middle)]
    nodes.append(helper.make_node("Concat", boxes, ["boxes"], axis=1))
    first = node("Unsqueeze", peak, axes)
    nodes.append(helper.make_node("Concat", [first, node("Mul", first, number(0.5))], ["scores"], axis=1))
    labels = node("Add", node("Mul", "scores", number(0.0)), constant(TensorProto.FLOAT, 0.0, 1.0))
    nodes.append(helper.make_node("Cast", [labels], ["labels"], to=TensorProto.INT64))
    second = node("Cast", node("Greater", peak, number(0.5)), to=TensorProto.INT64)
    nodes.append(helper.make_node("Add", [second, constant(TensorProto.INT64, 1, shape=[])], ["count"]))
    inputs = [
        helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 3, "H", "W"]),
        helper.make_tensor_value_info("sizes", TensorProto.INT64, ["N", 2]),
    ]
    outputs = [
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["N", 2, 4]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 2]),
        helper.make_tensor_value_info("labels", TensorProto.INT64, ["N", 2]),
        helper.make_tensor_value_info("count", TensorProto.INT64, ["N"]),
    ]
    graph = helper.make_graph(nodes, "peak", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def write(path, text):
    """The graph in a file of the format that its name says, with ``text`` as its card."""
    path.parent.mkdir(parents=True, exist_ok=True)
    model = peak_graph()
    if path.suffix == ".onnx":
        helper.set_model_props(model, {"retinanet": text})
        onnx.save(model, path)
        return path
    source = path.with_suffix(".source.onnx")
    onnx.save(model, source)
    converted = openvino.Core().read_model(source)
    source.unlink()
    if text:
        converted.set_rt_info(text, ["retinanet", "card"])
    openvino.save_model(converted, path, compress_to_fp16=False)
    return path


@pytest.fixture(scope="session")
def written():
    """Writes the graph: ``written(path, text of the card)``."""
    return write


@pytest.fixture(scope="session")
def card():
    """The card of the exported models."""
    return CARD


@pytest.fixture(scope="session", params=["model.onnx", "model.xml"])
def exported(request, tmp_path_factory):
    """The folder of an exported model. Read only."""
    folder = tmp_path_factory.mktemp("exported") / request.param.replace(".", "-")
    write(folder / request.param, CARD.to_json())
    return folder
