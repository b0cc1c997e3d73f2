"""A tiny exported graph, many small images, and one local cluster of Ray for all tests."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retinanet.cluster.engine import connect

os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 gives its workers what other tests leave


@pytest.fixture(scope="session")
def peak_model(graphs, tmp_path_factory) -> Path:
    """A graph that finds the whole image as a box, and its middle with half the score."""
    folder = tmp_path_factory.mktemp("exported") / "peak"
    graphs.write(folder / "model.onnx", graphs.CARD.to_json())
    return folder


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder with 40 images of three sizes."""
    folder, dice = tmp_path / "images", random.Random(5)
    folder.mkdir()
    for number in range(40):
        height, width = [(48, 64), (33, 32), (100, 30)][number % 3]
        pixels = np.full((height, width, 3), dice.randrange(60, 256), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="session")
def ray():
    """Two cores of a local cluster."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    connect()
    yield ray
    ray.shutdown()
