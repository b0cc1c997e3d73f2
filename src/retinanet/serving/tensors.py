"""Tensors in requests and answers of the Open Inference Protocol V2: as JSON, or as bytes behind it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retinanet.serving.bodies import parse_json
from retinanet.serving.limits import Refusal

TYPES: dict[str, Any] = {"UINT8": np.uint8, "FP32": np.float32, "INT64": np.int64}  # those of our graphs
MOST_SIDES = 4  # of a shape
LENGTH_HEADER = "Inference-Header-Content-Length"


def split_body(body: bytes, length: str | None) -> tuple[dict[str, Any], bytes]:
    """The JSON object of a body, and the bytes of tensors behind it.

    Args:
        body: of a request.
        length: what the header says of the bytes of JSON; None where all is JSON.

    Raises:
        Refusal: there are not so many bytes, or they are not JSON.
    """
    if length is None:
        return parse_json(body), b""
    if not length.isdecimal() or len(length) > 12 or int(length) > len(body):
        raise Refusal(400, f"{LENGTH_HEADER} is not the number of bytes of the JSON in the body")
    return parse_json(body[: int(length)]), body[int(length) :]


def read_tensors(request: Mapping[str, Any], binary: bytes, wanted: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    """The input tensors of a request.

    Args:
        request: its JSON.
        binary: the bytes behind it.
        wanted: the type of each input, by name.

    Raises:
        Refusal: a tensor is missing, unknown, or not what it says.
    """
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or not all(isinstance(entry, dict) for entry in inputs):
        raise Refusal(400, "inputs is not a list of tensors")
    if sorted(str(entry.get("name")) for entry in inputs) != sorted(wanted):
        raise Refusal(400, f"the inputs of the model are {' and '.join(wanted)}, each once")
    tensors = {}
    for entry in inputs:
        name = entry["name"]
        if entry.get("datatype") != wanted[name]:
            raise Refusal(400, f"the datatype of {name} is {wanted[name]}")
        shape = _check_shape(name, entry.get("shape"))
        size = _get_parameters(entry).get("binary_data_size")
        if size is None:
            tensors[name] = _from_list(name, entry.get("data"), wanted[name], shape)
            continue
        kind = np.dtype(TYPES[wanted[name]]).newbyteorder("<")
        if not _is_whole(size) or size != math.prod(shape) * kind.itemsize or size > len(binary):
            raise Refusal(400, f"binary_data_size of {name} does not fit its shape, or the body is shorter")
        tensors[name] = np.frombuffer(binary[:size], kind).reshape(shape)
        binary = binary[size:]
    if binary:
        raise Refusal(400, f"the body has {len(binary)} bytes that belong to no tensor")
    return tensors


def write_tensors(
    answer: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], request: Mapping[str, Any]
) -> tuple[bytes, dict[str, str]]:
    """The body of an answer, and its headers: the tensors that a request wants, in the form that it wants.

    Args:
        answer: the JSON without the tensors.
        tensors: by name, of one of ``TYPES``.
        request: the JSON of the request.

    Raises:
        Refusal: it wants a tensor that there is not.
    """
    every = _get_parameters(request).get("binary_data_output") is True
    wanted = request.get("outputs") or [{"name": name} for name in tensors]
    if not isinstance(wanted, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("name"), str) and entry["name"] in tensors for entry in wanted
    ):
        raise Refusal(400, f"the outputs of the model are {', '.join(tensors)}")
    if len({entry["name"] for entry in wanted}) < len(wanted):
        raise Refusal(400, "an output is wanted twice")
    names = {kind: name for name, kind in TYPES.items()}
    outputs: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for entry in wanted:
        values = tensors[entry["name"]]
        output = {"name": entry["name"], "datatype": names[values.dtype.type], "shape": list(values.shape)}
        if _get_parameters(entry).get("binary_data", every) is True:
            binary.append(values.astype(values.dtype.newbyteorder("<")).tobytes())
            outputs.append({**output, "parameters": {"binary_data_size": len(binary[-1])}})
        else:
            outputs.append({**output, "data": np.nan_to_num(values).flatten().tolist()})
    text = json.dumps({**answer, "outputs": outputs}, allow_nan=False).encode()
    if not binary:
        return text, {"Content-Type": "application/json"}
    headers = {"Content-Type": "application/octet-stream", LENGTH_HEADER: str(len(text))}
    return b"".join([text, *binary]), headers


def _get_parameters(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = entry.get("parameters", {})
    if not isinstance(parameters, dict):
        raise Refusal(400, "parameters is not an object")
    return parameters


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_shape(name: str, shape: Any) -> Sequence[int]:
    few = isinstance(shape, list) and len(shape) <= MOST_SIDES  # before anything is multiplied
    if not few or not all(_is_whole(side) and 0 < side < 2**31 for side in shape):
        raise Refusal(400, f"the shape of {name} is a list of up to {MOST_SIDES} whole numbers above 0")
    return shape


def _from_list(name: str, data: Any, kind: str, shape: Sequence[int]) -> NDArray[Any]:
    """A tensor from numbers, in one list or in nested ones."""
    refusal = Refusal(400, f"data of {name} is not a list of {math.prod(shape):,} numbers of type {kind}")
    values = data
    for _ in range(MOST_SIDES):
        if not isinstance(values, list) or not values or {*map(type, values)} != {list}:
            break
        if len({*map(len, values)}) > 1:  # ragged
            raise refusal
        values = list(chain.from_iterable(values))
    # Counted and looked at before numpy sees them: it makes of one long text among many short ones as many long ones.
    if not isinstance(values, list) or len(values) != math.prod(shape):
        raise refusal
    if not {*map(type, values)} <= ({int, float} if kind == "FP32" else {int}):
        raise refusal
    try:
        with np.errstate(over="ignore"):
            return np.array(values, TYPES[kind]).reshape(shape)
    except OverflowError:
        raise refusal from None
