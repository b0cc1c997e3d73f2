"""The routes of the server."""

from __future__ import annotations

import importlib.resources
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from retinanet import __version__
from retinanet.errors import UserError, suggest
from retinanet.serving import v2
from retinanet.serving.bodies import read_images
from retinanet.serving.guard import SHOW, Access, Guard, answer_error
from retinanet.serving.label_studio import ImageSource, make_routes
from retinanet.serving.limits import Refusal
from retinanet.serving.service import Service

PAGE_POLICY = (  # of the page: nothing is loaded from anywhere, nothing is sent to another server
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
IMAGES = {  # how OpenAPI describes a body with images
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"images": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


def make_app(service: Service, access: Access, source: ImageSource | None = None) -> FastAPI:
    """The server as an ASGI application.

    Args:
        service: the model.
        access: who may ask.
        source: where the images of Label Studio's tasks may come from; by default from nowhere.
    """

    @asynccontextmanager
    async def finish(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    # FastAPI's own /docs loads its scripts from another host.
    app = FastAPIOffline(
        redoc_url=None, redirect_slashes=False, title="RetinaNet", version=__version__, lifespan=finish
    )
    for routes in (_make_routes(service), v2.make_routes(service), make_routes(service, source or ImageSource())):
        app.include_router(routes)
    app.add_middleware(
        Guard, access=access, limits=service.limits, metrics=service.metrics, reserve=service.network.reserve
    )
    app.add_exception_handler(UserError, _explain)
    app.add_exception_handler(RequestValidationError, _explain_parameter)
    app.add_exception_handler(HTTPException, _explain_http)
    app.add_exception_handler(ClientDisconnect, lambda request, error: Response(status_code=499))
    app.add_exception_handler(
        Exception, lambda request, error: answer_error(500, "the server made a mistake; its log says which")
    )
    return app


def _make_routes(service: Service) -> APIRouter:
    router, checked = APIRouter(tags=["Detection"]), [Depends(_check_parameters)]
    html = importlib.resources.files("retinanet.serving").joinpath("page.html").read_text(encoding="utf-8")

    @router.get("/", include_in_schema=False)
    async def page() -> Response:
        headers = {**SHOW, "Content-Security-Policy": PAGE_POLICY, "Referrer-Policy": "no-referrer"}
        return Response(html, media_type="text/html", headers=headers)

    @router.get("/model")
    async def model() -> dict[str, Any]:
        """What the model knows, and how much the server takes."""
        return service.describe()

    @router.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(service.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.post("/detect", openapi_extra=IMAGES, dependencies=checked)
    async def detect(
        request: Request,
        score: Annotated[float | None, Query(ge=0, le=1, allow_inf_nan=False)] = None,
        classes: str | None = None,
    ) -> Response:
        """Find objects in one image or in several; boxes are x1, y1, x2, y2 in pixels of the upright original.

        `score` is the least score of what is shown, by default the model's threshold for each class; `classes` are
        names, separated by commas.
        """
        wanted = service.choose_classes(classes)
        uploads = await read_images(request, service.limits.images)
        entries: list[dict[str, Any]] = []
        results = await service.find_all(uploads)
        for upload, result in zip(uploads, results, strict=True):
            if isinstance(result, UserError):
                entries.append({"name": upload.name, "error": str(result)})
                continue
            (height, width), detections, milliseconds = result
            entry = {"name": upload.name, "width": width, "height": height}
            shown = service.select(detections, score, wanted)
            entries.append({**entry, "detections": shown, "milliseconds": milliseconds})
        if all("error" in entry for entry in entries):
            raise Refusal(
                400,
                entries[0]["error"]
                if len(entries) == 1
                else f"none of {len(entries)} images can be read: {entries[0]['error']}",
            )
        return JSONResponse({"model": service.name, "images": entries}, headers=SHOW)

    @router.post("/explain", openapi_extra=IMAGES, dependencies=checked)
    async def explain(
        request: Request,
        x: Annotated[float, Query(ge=0, allow_inf_nan=False)],
        y: Annotated[float, Query(ge=0, allow_inf_nan=False)],
    ) -> Response:
        """What the model had at a point of one image, and the gate where each candidate ended; model folders only."""
        candidates = await service.explain(await read_images(request, 1), (x, y))
        return JSONResponse({"candidates": candidates}, headers=SHOW)

    return router


async def _check_parameters(request: Request) -> None:
    """Refuse parameters that a route does not have: a threshold under a misspelt name would be lost silently."""
    known = [parameter.name for parameter in request.scope["route"].dependant.query_params]
    for name in request.query_params:
        if name not in known:
            raise Refusal(400, f"{request.url.path} has no parameter {name[:100]!r}{suggest(name[:100], known)}")


async def _explain(request: Request, error: Exception) -> Response:
    if isinstance(error, Refusal):
        return answer_error(error.status, str(error), error.headers)
    return answer_error(400, str(error))


async def _explain_parameter(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return answer_error(400, f"{first['loc'][-1]}: {first['msg']}")


async def _explain_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = f"there is no {request.method} {request.url.path[:200]}; /docs lists what there is"
    return answer_error(error.status_code, detail if error.status_code in (404, 405) else error.detail, error.headers)
