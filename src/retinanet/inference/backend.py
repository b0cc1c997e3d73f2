"""What runs a model: the one thing that differs between a model folder and an exported model, in any runtime."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from retinanet.images.preprocess import Preprocess
from retinanet.spec import ModelSpec
from retinanet.types import Detections

Mode = Literal["latency", "throughput"]


@dataclass(frozen=True)
class Prepared:
    """One image, resized for the network.

    Attributes:
        pixels: as the backend wants them.
        size: (height, width) of the original; detections are in its pixels.
        input_size: (height, width) of the network's input when the image runs alone. A call of :meth:`Backend.run` has
            images of one input size, because more padding would change what is found.
    """

    pixels: Any
    size: tuple[int, int]
    input_size: tuple[int, int]


class Backend(Protocol):
    """A model that is ready to run.

    Attributes:
        spec: what the model is apart from its weights.
        streams: how many calls of :meth:`run` may profitably go on at once, in threads.
        name: for messages and tables, such as "OpenVINO int8".
    """

    spec: ModelSpec
    streams: int
    name: str

    def prepare(self, image: NDArray[np.uint8], rule: Preprocess | None = None) -> Prepared:
        """Resize one image (H, W, 3) uint8 RGB, by ``rule`` where one is given; may be called from any thread."""

    def run(self, images: Sequence[Prepared]) -> list[Detections]:
        """Detections of each image, boxes in pixels of the original; may be called from any thread."""


def count_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
