"""The Open Inference Protocol V2, which KServe and Triton speak: the tensors of the exported graph over HTTP."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from starlette.responses import Response

from retinanet import __version__
from retinanet.inference.exported import INPUTS, OUTPUTS, ExportedModel
from retinanet.serving.limits import Refusal
from retinanet.serving.service import Service
from retinanet.serving.tensors import LENGTH_HEADER, read_tensors, split_body, write_tensors

VERSION = "1"  # the only one of a model


def make_routes(service: Service) -> APIRouter:
    """The routes under ``/v2``."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol V2"])

    @router.get("")
    async def server() -> dict[str, Any]:
        return {"name": "retinanet", "version": __version__, "extensions": ["binary_tensor_data"]}

    @router.get("/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @router.get("/health/ready")
    async def ready() -> dict[str, bool]:
        return {"ready": True}

    @router.get("/models/{name}")
    @router.get("/models/{name}/versions/{version}")
    async def model(name: str, version: str = VERSION) -> dict[str, Any]:
        _check_name(service, name, version)
        return describe(service)

    @router.get("/models/{name}/ready")
    @router.get("/models/{name}/versions/{version}/ready")
    async def model_ready(name: str, version: str = VERSION) -> dict[str, bool]:
        _check_name(service, name, version)
        return {"ready": True}

    @router.post("/models/{name}/infer")
    @router.post("/models/{name}/versions/{version}/infer")
    async def infer(request: Request, name: str, version: str = VERSION) -> Response:
        """Run the exported graph on resized and padded images."""
        _check_name(service, name, version)
        backend = _get_graph(service)
        body, length = await request.body(), request.headers.get(LENGTH_HEADER)
        content, images, sizes = await service.in_thread(_read_inputs, service, body, length)
        outcome = await asyncio.wrap_future(service.network.submit_call(partial(backend.graph, images, sizes)))
        kinds = (np.float32, np.float32, np.int64, np.int64)
        arrays = {key: np.asarray(one, kind) for key, one, kind in zip(OUTPUTS, outcome.result, kinds, strict=True)}
        answer = {"model_name": service.name, "model_version": VERSION}
        if isinstance(content.get("id"), str):
            answer["id"] = content["id"]
        answer_body, headers = await service.in_thread(write_tensors, answer, arrays, content)
        return Response(answer_body, headers=headers)

    return router


def describe(service: Service) -> dict[str, Any]:
    """The metadata of the model: its tensors; those of a model folder are those that its export would have."""
    kinds = {INPUTS[0]: (_image_type(service), [-1, 3, -1, -1]), INPUTS[1]: ("INT64", [-1, 2])}
    rows: list[tuple[str, list[int]]] = [
        ("FP32", [-1, -1, 4]),
        ("FP32", [-1, -1]),
        ("INT64", [-1, -1]),
        ("INT64", [-1]),
    ]
    return {
        "name": service.name,
        "versions": [VERSION],
        "platform": service.predictor.backend.name,
        "inputs": [{"name": name, "datatype": kind, "shape": shape} for name, (kind, shape) in kinds.items()],
        "outputs": [
            {"name": name, "datatype": kind, "shape": shape} for name, (kind, shape) in zip(OUTPUTS, rows, strict=True)
        ],
    }


def _image_type(service: Service) -> str:
    return "FP32" if service.predictor.backend.spec.preprocess.compat.resampling == "normalised" else "UINT8"


def _check_name(service: Service, name: str, version: str) -> None:
    if name != service.name or version != VERSION:
        raise Refusal(404, f"there is no such model; this server has {service.name}, version {VERSION}")


def _get_graph(service: Service) -> ExportedModel:
    backend = service.predictor.backend
    if not isinstance(backend, ExportedModel):
        raise Refusal(
            409,
            "the server runs a model folder, which has no graph with these tensors; export the model and serve that",
        )
    return backend


def _read_inputs(
    service: Service, body: bytes, length: str | None
) -> tuple[dict[str, Any], NDArray[Any], NDArray[np.int64]]:
    """The JSON of a request and its two tensors, of shapes and values that the graph takes."""
    content, binary = split_body(body, length)
    tensors = read_tensors(content, binary, {INPUTS[0]: _image_type(service), INPUTS[1]: "INT64"})
    images, sizes = (tensors[name] for name in INPUTS)
    rule = service.predictor.backend.spec.preprocess
    most = rule.padded(rule.long, rule.long)[0]
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[0] > service.limits.images:
        raise Refusal(400, f"images has the shape (N, 3, H, W), N at most {service.limits.images}")
    height, width = images.shape[2:]
    if height % rule.multiple or width % rule.multiple or max(height, width) > most:
        raise Refusal(400, f"height and width of images are multiples of {rule.multiple}, at most {most}")
    if images.dtype == np.float32 and not np.isfinite(images).all():
        raise Refusal(400, "images holds numbers that are not finite")
    if sizes.shape != (len(images), 2) or (sizes < 1).any() or (sizes > [height, width]).any():
        raise Refusal(400, "sizes has the shape (N, 2): height and width of each image without its padding")
    return content, np.ascontiguousarray(images), np.ascontiguousarray(sizes)
