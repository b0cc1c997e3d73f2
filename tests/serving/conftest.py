"""A server around a tiny exported graph, run in a thread of the test process, and a way to start others."""

import io
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from retinanet.inference.predictor import Predictor
from retinanet.serving.app import make_app
from retinanet.serving.guard import Access
from retinanet.serving.limits import Limits
from retinanet.serving.serve import listen, make_server
from retinanet.serving.service import Service

LIMITS = Limits(bytes=200_000, pixels=500_000, seconds=10.0, images=4, queue=8)


@pytest.fixture(scope="session")
def peak_model(graphs, tmp_path_factory) -> Path:
    """A graph that finds the whole image as a box, spot (threshold 0.2), and its middle, half (0.3). Read only."""
    folder = tmp_path_factory.mktemp("served") / "peak"
    graphs.write(folder / "model.onnx", graphs.CARD.to_json())
    return folder


@contextmanager
def run_server(predictor, name="peak", *, limits=LIMITS, access=None, source=None):
    """A server on a free port; yields a client."""
    service = Service(predictor, name, limits)
    listener = listen("127.0.0.1", 0)
    server = make_server(make_app(service, access or Access(hosts=("127.0.0.1", "localhost")), source), limits.seconds)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    port = listener.getsockname()[1]
    try:
        deadline = time.monotonic() + 30
        while not server.started and time.monotonic() < deadline:
            thread.join(0.01)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
            client.service, client.port = service, port
            yield client
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def start():
    """``run_server``."""
    return run_server


@pytest.fixture(scope="session")
def client(peak_model):
    """A client of a server with the tiny model."""
    with run_server(Predictor.load(peak_model, mode="throughput")) as client:
        yield client


@pytest.fixture(scope="session")
def picture():
    """Makes the bytes of an image file: ``picture(width, height, brightest)``."""

    def encode(width=40, height=32, brightest=255, form="PNG", **options):
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[: height // 2] = brightest
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, form, **options)
        return stream.getvalue()

    return encode
