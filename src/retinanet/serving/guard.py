"""What every request passes before it reaches a route: who may ask, how much, and for how long."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from retinanet.errors import make_printable
from retinanet.serving.limits import Limits, Refusal
from retinanet.serving.metrics import Metrics

OPEN = (
    "/health",
    "/v2/health/live",
    "/v2/health/ready",
)  # answered without a token: whoever restarts servers asks them
BODIES = 8  # as many of the largest size are held in memory at once, and any number of smaller ones
SHOW = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


def answer_error(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An answer that says in a sentence what is wrong."""
    return JSONResponse({"error": make_printable(message)}, status, {**SHOW, **(headers or {})})


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Attributes:
        token: what a request has to show, as ``Authorization: Bearer TOKEN`` or as the password of ``Basic``, which
            browsers and Label Studio send; None lets everybody in.
        hosts: the names by which the server may be called; empty for any. A page of another name that resolves to this
            machine (DNS rebinding) calls it by that name.
    """

    token: str | None = None
    hosts: Collection[str] = ()

    def check(self, path: str, headers: Headers) -> None:
        """Let a request in.

        Raises:
            Refusal: it may not.
        """
        host = headers.get("host", "")
        if self.hosts and _split(f"//{host}").hostname not in self.hosts:
            raise Refusal(421, "this server answers to localhost only; to offer it to others, start it with --host")
        origin = headers.get("origin")
        if origin is not None and _split(origin).netloc != host:
            raise Refusal(403, "a page of another site may not use this server")
        if self.token is not None and path not in OPEN and not self._is_shown(headers.get("authorization", "")):
            refusal = Refusal(401, "this server wants a token: send the header Authorization: Bearer TOKEN")
            # Basic alone: where Bearer stands beside it, browsers show the error and ask for nothing.
            refusal.headers = {"WWW-Authenticate": 'Basic realm="retinanet, the token as password", charset="UTF-8"'}
            raise refusal

    def _is_shown(self, header: str) -> bool:
        kind, _, value = header.partition(" ")
        given = value.strip().encode("utf-8", "surrogateescape")
        if kind.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif kind.lower() != "bearer":
            return False
        return hmac.compare_digest(given, (self.token or "").encode())


def _split(url: str) -> SplitResult:
    """The parts of an address; empty ones where it is none."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


class Guard:
    """Checks, limits, times and counts every request.

    Args:
        app: what answers.
        access: who may ask.
        limits: how much.
        metrics: where requests are counted.
        reserve: takes a place in the queue for a request with a body, before anything of it is read.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        access: Access,
        limits: Limits,
        metrics: Metrics,
        reserve: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._app = app
        self._access = access
        self._limits = limits
        self._metrics = metrics
        self._reserve = reserve
        self._held = 0  # bytes of the bodies of all requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; see https://asgi.readthedocs.io."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began, exchange = time.perf_counter(), _Exchange(receive, send, self._hold)
        try:
            await self._answer(scope, exchange)
        except Refusal as refusal:
            if not exchange.status:  # else its head is gone
                answer = answer_error(refusal.status, str(refusal), refusal.headers)
                await answer(scope, receive, exchange.send)
        except Exception:  # answered with 500 by who is outside
            exchange.status = 500
            raise
        finally:
            self._held -= exchange.taken
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(route, str(exchange.status)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - began)

    def _hold(self, size: int, of_request: int) -> None:
        """Count bytes of a body.

        Raises:
            Refusal: there are too many, of this request or of all.
        """
        self._held += size
        if of_request > self._limits.bytes:
            raise too_long(self._limits.bytes)
        if self._held > BODIES * self._limits.bytes:
            raise Refusal(503, "the server holds too many large bodies; try again in a second", wait=1)

    async def _answer(self, scope: Scope, exchange: _Exchange) -> None:
        headers = Headers(scope=scope)
        self._access.check(scope["path"], headers)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._limits.bytes:
            raise too_long(self._limits.bytes)
        if headers.get("content-encoding", "identity") != "identity":  # what is small may unpack to anything
            raise Refusal(415, "compressed bodies are not taken; send the body as it is, without Content-Encoding")
        with self._reserve() if scope["method"] == "POST" else nullcontext():
            try:
                async with asyncio.timeout(self._limits.seconds):
                    await self._app(scope, exchange.receive, exchange.send)
            except TimeoutError:
                if exchange.reading:
                    raise Refusal(408, f"the body did not come within {self._limits.seconds:g} s") from None
                raise Refusal(503, f"no answer within {self._limits.seconds:g} s; try again later", wait=1) from None


def too_long(limit: int) -> Refusal:
    """What to say to a body over the limit."""
    return Refusal(413, f"the body of a request is at most {limit:,} bytes; send fewer or smaller images")


class _Exchange:
    """The two ends of a request: its body is counted, and the status of its answer noted."""

    def __init__(self, receive: Receive, send: Send, hold: Callable[[int, int], None]) -> None:
        self._receive = receive
        self._send = send
        self._hold = hold
        self.taken = 0
        self.reading = False
        self.status: int = 0

    async def receive(self) -> Message:
        self.reading = True
        message = await self._receive()
        self.reading = bool(message.get("more_body"))
        size = len(message.get("body", b""))
        self.taken += size
        self._hold(size, self.taken)
        return message

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)
