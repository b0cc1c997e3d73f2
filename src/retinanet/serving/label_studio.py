"""The protocol of Label Studio's ML backends: pre-annotations for its tasks, images from where the operator allows."""

from __future__ import annotations

import asyncio
import http.client
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring
from fastapi import APIRouter, Request

from retinanet.errors import UserError, make_printable
from retinanet.exchange import to_label_studio
from retinanet.serving.bodies import Upload, parse_json
from retinanet.serving.limits import Refusal
from retinanet.serving.service import Service

TOKEN = "LABEL_STUDIO_TOKEN"
MOST_CONFIG = 200_000  # characters of a labelling configuration
KEPT = "/%:@!$&'()*+,;=?~"  # of an address; what else is not a letter or a number is escaped
UPLOADS, LOCAL_FILES = "/data/upload/", "/data/local-files/"  # how tasks name files of Label Studio


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any) -> None:
        """A server that may be asked could else send us to one that may not."""


@dataclass(frozen=True)
class ImageSource:
    """Where the images of tasks may come from; nothing else is ever read.

    Attributes:
        folder: holds what tasks call ``/data/upload/...`` or ``/data/local-files/?d=...``.
        host: of Label Studio, ``http://name:port``.
        token: for this host.
        seconds: that it may take.
        most: bytes of an image.
    """

    folder: Path | None = None
    host: str | None = None
    token: str | None = None
    seconds: float = 30.0
    most: int = 50_000_000

    def __post_init__(self) -> None:
        if self.folder is not None and not self.folder.is_dir():
            raise UserError(f"images: {self.folder} is no folder; give the one with the uploads of Label Studio")
        if self.host is not None:
            parts = urlsplit(self.host)
            if (
                parts.scheme not in ("http", "https")
                or not parts.netloc
                or "@" in parts.netloc
                or parts.path.strip("/")
            ):
                raise UserError(f"label_studio is an address such as http://localhost:8080, got {self.host!r}")
            object.__setattr__(self, "host", f"{parts.scheme}://{parts.netloc}".lower())

    def read(self, address: str) -> Upload:
        """The image of a task.

        Args:
            address: as the task has it.

        Raises:
            Refusal: it is elsewhere, missing or too large.
        """
        if any(ord(letter) < 32 for letter in address):
            raise Refusal(400, "the address of an image holds control characters")
        try:
            parts = urlsplit(address)
        except ValueError:
            raise Refusal(400, "the address of an image cannot be read") from None
        origin = f"{parts.scheme}://{parts.netloc}".lower()
        file = self._name_file(parts.path, parts.query)
        name = make_printable(file.rpartition("/")[2][:200]) or "image"
        if parts.scheme or parts.netloc:
            if self.host is None or origin != self.host:
                raise Refusal(
                    400, "an image lies on a host that this server was not told to read from (--label_studio)"
                )
        elif self.folder is not None:
            found = self._read_file(file)
            if found is not None:
                return Upload(name, found)
        if self.host is None:
            raise Refusal(400, f"the image {name} is not in the folder that this server reads from (--images)")
        query = f"?{parts.query}" if parts.query else ""
        path = parts.path if parts.path.startswith("/") else f"/{parts.path}"
        return Upload(name, self._fetch(f"{self.host}{quote(path, safe=KEPT)}{quote(query, safe=KEPT)}"))

    @staticmethod
    def _name_file(path: str, query: str) -> str:
        if path.startswith(LOCAL_FILES):
            return (parse_qs(query).get("d") or [""])[0]
        return unquote(path.removeprefix(UPLOADS))

    def _read_file(self, name: str) -> bytes | None:
        """A file inside the folder, links followed; None where there is none."""
        assert self.folder is not None
        home = os.path.realpath(self.folder)
        try:
            path = os.path.realpath(os.path.join(home, name.lstrip("/")))
            if os.path.commonpath([home, path]) != home or not os.path.isfile(path):
                return None
            if os.path.getsize(path) > self.most:
                raise Refusal(413, f"an image is at most {self.most:,} bytes")
            return Path(path).read_bytes()
        except (OSError, ValueError):
            return None

    def _fetch(self, url: str) -> bytes:
        request = urllib.request.Request(url, headers={"Authorization": f"Token {self.token}"} if self.token else {})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())
        try:
            with opener.open(request, timeout=self.seconds) as answer:
                content: bytes = answer.read(self.most + 1)
        except urllib.error.HTTPError as error:
            hint = f"; set {TOKEN}" if error.code in (401, 403) else ""
            raise Refusal(400, f"Label Studio answered {error.code} when it was asked for an image{hint}") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", type(error).__name__)
            raise Refusal(400, f"Label Studio cannot be reached for an image ({reason})") from None
        if len(content) > self.most:
            raise Refusal(413, f"an image is at most {self.most:,} bytes")
        return content


class Labels(NamedTuple):
    """What a labelling configuration says: two tags, the field of a task with the image, and the labels."""

    control: str
    target: str
    field: str
    names: tuple[str, ...]


def read_config(text: str) -> Labels:
    """The rectangles of a labelling configuration.

    Raises:
        Refusal: it cannot be read, or has none on an image.
    """
    if len(text) > MOST_CONFIG:
        raise Refusal(413, f"a labelling configuration has at most {MOST_CONFIG:,} characters")
    try:
        root = fromstring(text)
    except (DefusedXmlException, SyntaxError, ValueError, RecursionError):
        raise Refusal(400, "the labelling configuration is not XML that can be read") from None
    images = {tag.get("name"): tag.get("value", "") for tag in root.iter("Image")}
    for tag in root.iter("RectangleLabels"):
        if (target := tag.get("toName")) in images and images[target].startswith("$"):
            names = tuple(str(label.get("alias") or label.get("value")) for label in tag.iter("Label"))
            return Labels(tag.get("name", ""), str(target), images[target][1:], names)
    raise Refusal(400, "the labelling configuration has no RectangleLabels on an Image; the model finds boxes")


def make_routes(service: Service, source: ImageSource) -> APIRouter:
    """The routes that Label Studio calls."""
    router = APIRouter(tags=["Label Studio"])
    last: dict[str, str] = {}  # the configuration of the last project that was set up

    @router.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "UP", "model_class": "RetinaNet"}

    @router.post("/setup")
    async def setup(request: Request) -> dict[str, str]:
        content = await service.in_thread(parse_json, await request.body())
        if isinstance(content.get("schema"), str):
            await service.in_thread(read_config, content["schema"])
            last["schema"] = content["schema"]
        return {"model_version": service.name}

    @router.post("/webhook")
    async def webhook() -> dict[str, str]:
        """The model does not learn from annotations; the call is only acknowledged."""
        return {}

    @router.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        """Boxes for the images of tasks, above the model's thresholds."""
        content = await service.in_thread(parse_json, await request.body())
        config = content.get("label_config") or last.get("schema")
        tasks = content.get("tasks")
        if not isinstance(config, str):
            raise Refusal(400, "label_config is missing, and no project was set up (/setup)")
        if not isinstance(tasks, list) or not 0 < len(tasks) <= service.limits.images:
            raise Refusal(400, f"tasks is a list of 1 to {service.limits.images} tasks")
        labels = await service.in_thread(read_config, config)
        wanted = [name for name in service.class_names if name in labels.names or not labels.names]
        results = []
        with service.network.reserve(len(tasks) - 1):
            for task in tasks:
                try:
                    upload = await asyncio.to_thread(source.read, _get_address(task, labels.field))
                    found = await service.find(upload)
                except UserError as error:
                    if len(tasks) == 1:
                        raise
                    failed = {"result": [], "score": 0.0, "model_version": service.name, "error": str(error)}
                    results.append(failed)
                    continue
                rows = service.select(found.detections, None, wanted)
                names = labels.control, labels.target
                results.append(to_label_studio(rows, found.size, *names, service.name))
        if all("error" in result for result in results):
            raise Refusal(400, f"none of {len(results)} images can be used: {results[0]['error']}")
        return {"results": results}

    return router


def _get_address(task: Any, field: str) -> str:
    data = task.get("data") if isinstance(task, dict) else None
    address = data.get(field) if isinstance(data, dict) else None
    if not isinstance(address, str) or not address:
        raise Refusal(400, f"a task has no image in its field {field[:100]!r}")
    return address
