"""``serve``: a model behind HTTP, with a page, until it is told to stop."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from retinanet.errors import UserError
from retinanet.inference.backend import Mode
from retinanet.inference.predictor import Predictor
from retinanet.options import explain_unknown_options
from retinanet.serving.limits import Limits
from retinanet.spec import exported_file

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from retinanet.serving.service import Service

LOOPBACK = ("127.0.0.1", "localhost", "::1")
TOKEN = "RETINANET_TOKEN"


@explain_unknown_options
def serve(
    model: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    batch_size: int = 8,
    queue: int = 64,
    max_bytes: int = 50_000_000,
    max_pixels: int = 50_000_000,
    max_images: int = 16,
    timeout: float = 30.0,
    device: str = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    mode: Mode | None = None,
    cache: str | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    images: str | None = None,
    label_studio: str | None = None,
    trust: bool = False,
    trust_code: bool = False,
) -> None:
    """Answer requests over HTTP until SIGINT or SIGTERM comes; what is in work then is finished.

    Args:
        model: exported model, which needs no torch; model folder, torchvision/NAME or a hub repository.
        host: address to listen on. 127.0.0.1 is for this machine only, 0.0.0.0 for everybody who reaches it.
        port: to listen on; 0 takes a free one and prints it.
        token: what requests have to show. The environment variable RETINANET_TOKEN is a better place for it, since
            other users of a machine see command lines.
        batch_size: images per forward pass, where they wait and their network input has one size.
        queue: images that may be in the server at once; what comes beyond is answered 503.
        max_bytes: of the body of a request.
        max_pixels: of an image.
        max_images: of a request.
        timeout: seconds from the head of a request to its answer, after which it is answered 408 or 503.
        device: auto, cpu, cuda, cuda:1, mps; an exported model runs on the CPU.
        precision: in which a model folder computes; bf16 where the device has it.
        mode: of an exported model; throughput, the default, gives a core to each image, latency all cores to one call.
        cache: of an OpenVINO model: folder in which its compiled graph is kept, so that the next start is shorter.
            OpenVINO does not check what it finds there: let nobody else write into it.
        tile: cut images into windows of this many pixels; by default the windows that the model was trained on, if it
            was. 0 shows images whole.
        overlap: pixels that neighbouring windows share; by default the model's, else 128.
        images: folder with the uploads of Label Studio, whose tasks may name files in it.
        label_studio: its address, such as http://localhost:8080; images of tasks are fetched from there and from
            nowhere else, with the token in the environment variable LABEL_STUDIO_TOKEN.
        trust: open a pt2 file; torch evaluates expressions in it, which can run code.
        trust_code: load a pt2 file with pickled or compiled parts as well, which runs code.

    Raises:
        UserError: no usable model, the port is in use, an option is out of its range, or the extra is not installed.
    """
    check_installed()
    limits = Limits(max_bytes, max_pixels, timeout, max_images, queue)
    secret = token if token is not None else os.environ.get(TOKEN) or None
    if secret is not None and (not secret or not secret.isascii() or not secret.isprintable() or " " in secret):
        raise UserError("a token is at least one character, of printable ASCII without spaces")
    with listen(host, port) as listener:
        # Takes half a second, while the model is compiled.
        threading.Thread(target=importlib.import_module, args=("retinanet.serving.app",)).start()
        mode = mode or ("throughput" if exported_file(model) else "latency")
        how: dict[str, Any] = {"device": device, "precision": precision, "trust": trust, "trust_code": trust_code}
        how |= {"mode": mode, "cache": cache, "tile": tile, "overlap": overlap}
        predictor = Predictor.load(model, batch_size=batch_size, **how)
        from retinanet.serving.app import make_app
        from retinanet.serving.guard import Access
        from retinanet.serving.label_studio import TOKEN as LABEL_STUDIO_TOKEN
        from retinanet.serving.label_studio import ImageSource
        from retinanet.serving.service import Service, name_model

        folder = None if images is None else Path(images)
        source = ImageSource(folder, label_studio, os.environ.get(LABEL_STUDIO_TOKEN), timeout, max_bytes)
        service = Service(predictor, name_model(model), limits)
        access = Access(secret, (*LOOPBACK, host) if is_loopback(host) else ())
        announce(service, host, listener.getsockname()[1], protected=secret is not None)
        with _quiet_signals():
            make_server(make_app(service, access, source), limits.seconds).run(sockets=[listener])


def announce(service: Service, host: str, port: int, *, protected: bool) -> None:
    """Say where the server is, and who can use it."""
    if not is_loopback(host):
        who = "whoever has the token" if protected else "everybody who reaches this machine"
        advice = "" if protected else f"; set a token: --token or {TOKEN}"
        print(f"listening on {host}: {who} can send images{advice}")
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    print(f"{service.name} ({service.predictor.backend.name}) at {url}; stop with Ctrl-C", flush=True)


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in LOOPBACK


def check_installed() -> None:
    """Check that the packages of the extra are there.

    Raises:
        UserError: one is missing.
    """
    for package in ("fastapi", "fastapi_offline", "prometheus_client", "python_multipart", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f'{package} is not installed. Install what serve needs: pip install "retinanet[serve]"')


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UserError: the port is in use or not allowed, or there is no such address.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"port is from 0 to 65535, got {port}")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(512)
        except BaseException:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot listen on {host} port {port} ({reason}). Choose another --port, 0 for a free one, or --host"
        ) from None
    return listener


def make_server(app: FastAPI, seconds: float) -> uvicorn.Server:
    """What speaks HTTP; it takes at most so many seconds to finish when it is told to stop."""
    import uvicorn

    config = uvicorn.Config(
        *(app,),
        http="h11",
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(seconds) + 5,
        limit_concurrency=2000,  # connections, the last line against a flood of them
        h11_max_incomplete_event_size=64 * 1024,  # of the head of a request
    )
    return uvicorn.Server(config)


@contextmanager
def _quiet_signals() -> Iterator[None]:
    """The signals that stop the server end nothing else: uvicorn raises them again once it has stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {one: signal.signal(one, lambda number, frame: None) for one in signals}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
