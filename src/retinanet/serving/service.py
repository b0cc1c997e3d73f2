"""The model behind the routes: from the bytes of images to what was found in them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from retinanet.errors import UserError, suggest
from retinanet.images.io import decode_pixels
from retinanet.inference.backend import Prepared, count_cores
from retinanet.inference.exported import ExportedModel
from retinanet.inference.predictor import Predictor
from retinanet.serving.bodies import Upload
from retinanet.serving.limits import Limits, Refusal
from retinanet.serving.metrics import Metrics
from retinanet.serving.network import NetworkQueue
from retinanet.types import Detections

T = TypeVar("T")


class Found(NamedTuple):
    """What was found in one image, and what it cost.

    Attributes:
        size: (height, width) of the upright image.
        detections: all that the model reports, boxes in its pixels.
        milliseconds: ``read`` (decoding and resizing), ``queue`` (waiting) and ``network``.
    """

    size: tuple[int, int]
    detections: Detections
    milliseconds: dict[str, float]


class Service:
    """A predictor for many clients at once.

    Args:
        predictor: the model.
        name: of the model, for clients.
        limits: how much is taken.
    """

    def __init__(self, predictor: Predictor, name: str, limits: Limits) -> None:
        self.predictor = predictor
        self.name = name
        self.limits = limits
        self.metrics = Metrics()
        report = self.metrics.observe_call
        self.network = NetworkQueue(
            predictor.backend, batch_size=predictor.batch_size, places=limits.queue, report=report
        )
        self.metrics.watch_queue(lambda: self.network.taken)
        self._readers = ThreadPoolExecutor(count_cores())  # a decoded image lives in one of these only

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names."""
        return self.predictor.class_names

    def close(self) -> None:
        """Finish what waits, and stop."""
        self._readers.shutdown(wait=True, cancel_futures=True)
        self.network.close()

    async def in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        """What a function returns that would hold up other requests."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, partial(function, *arguments))

    def read_pixels(self, upload: Upload) -> Any:
        """An image as (H, W, 3) uint8 RGB, upright.

        Raises:
            UserError: it is not an image, damaged or too large.
        """
        return decode_pixels(upload.content, upload.name, max_pixels=self.limits.pixels)

    async def find(self, upload: Upload) -> Found:
        """What is in an image; its place in the queue is taken.

        Raises:
            UserError: it is not an image, damaged or too large.
        """
        began = time.perf_counter()
        try:
            if self.predictor.tiling is None:
                read, image = await self.in_thread(self._prepare, upload)
                size = image.size
                outcome = await asyncio.wrap_future(self.network.submit(image))
                detections, network = outcome
            else:  # windows are read while others are in the network
                outcome = await asyncio.wrap_future(self.network.submit_call(partial(self._find_tiled, upload)))
                read, size, detections = outcome.result
                network = outcome.seconds - read
        except UserError:
            self.metrics.images.labels("error").inc()
            raise
        self.metrics.images.labels("detected").inc()
        waited = max(0.0, time.perf_counter() - began - read - network)
        seconds = {"read": read, "queue": waited, "network": network}
        return Found(size, detections, {name: round(value * 1000, 3) for name, value in seconds.items()})

    async def find_all(self, uploads: Sequence[Upload]) -> list[Found | UserError]:
        """What is in each of several images, or what is wrong with it."""
        with self.network.reserve(len(uploads) - 1):  # the request has a place itself
            results = await asyncio.gather(*map(self.find, uploads), return_exceptions=True)
        for result in results:
            if isinstance(result, Refusal) or (isinstance(result, BaseException) and not isinstance(result, UserError)):
                raise result
        return results  # type: ignore[return-value]

    async def explain(self, uploads: Sequence[Upload], point: tuple[float, float]) -> list[dict[str, Any]]:
        """The best candidates at a point of one image, each with the gate where it ended.

        Raises:
            UserError: it is not an image, the point is not in it, or an exported model has no candidates to show.
        """
        if self.is_exported:
            raise Refusal(
                409,
                "an exported model holds detections only; to see what became of candidates, serve the model folder "
                "that it was exported from: retinanet serve FOLDER",
            )
        pixels = await self.in_thread(self.read_pixels, uploads[0])
        height, width = pixels.shape[:2]
        if point[0] > width or point[1] > height:
            raise Refusal(400, f"the point is outside the image, which has {width} x {height} pixels")
        from retinanet.serving.explain import explain_point  # which needs torch

        call = partial(explain_point, self.predictor.backend, pixels, point)  # type: ignore[arg-type]
        result: list[dict[str, Any]] = (await asyncio.wrap_future(self.network.submit_call(call))).result
        return result

    def choose_classes(self, text: str | None) -> tuple[str, ...]:
        """The classes that a request asks for, separated by commas; all where it asks for none.

        Raises:
            Refusal: there is no such class.
        """
        if text is None:
            return self.class_names
        wanted = [name.strip() for name in text.split(",")] if text not in self.class_names else [text]
        for name in wanted:
            if name not in self.class_names:
                raise Refusal(400, f"classes: the model has no class {name[:100]!r}{suggest(name, self.class_names)}")
        return tuple(wanted)

    def select(self, detections: Detections, score: float | None, classes: Sequence[str]) -> list[dict[str, Any]]:
        """The detections to show, as plain dicts."""
        least: float | Mapping[str, float] = self.predictor.thresholds if score is None else score
        return [row for row in detections.above(least).to_dicts() if row["name"] in classes]

    def describe(self) -> dict[str, Any]:
        """What a client may know of the model."""
        rule = self.predictor.backend.spec.postprocess
        return {
            "name": self.name,
            "backend": self.predictor.backend.name,
            "classes": list(self.class_names),
            "thresholds": dict(self.predictor.thresholds),
            "score": rule.score,
            "max_detections": rule.max_detections,
            "explain": not self.is_exported,
            "limits": self.limits.to_dict(),
        }

    @property
    def is_exported(self) -> bool:
        """Whether the model is an exported graph; else it is a model folder, in torch."""
        return isinstance(self.predictor.backend, ExportedModel)

    def _prepare(self, upload: Upload) -> tuple[float, Prepared]:
        began = time.perf_counter()
        image = self.predictor.backend.prepare(self.read_pixels(upload))
        return time.perf_counter() - began, image

    def _find_tiled(self, upload: Upload) -> tuple[float, tuple[int, int], Detections]:
        began = time.perf_counter()
        pixels = self.read_pixels(upload)
        read = time.perf_counter() - began
        return read, pixels.shape[:2], self.predictor(pixels)


def name_model(model: str) -> str:
    """What clients call a model: the name of its folder, without the path to it."""
    path = Path(model).resolve()
    return (path.parent if path.is_file() else path).name or "model"
