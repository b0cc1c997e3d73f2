"""What runs a model: the one thing that differs between a model folder, ONNX Runtime and OpenVINO."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from retinanet.errors import UserError
from retinanet.images.arrays import boxes_back, pad_arrays, resize_array
from retinanet.images.preprocess import Preprocess
from retinanet.inference.card import Card
from retinanet.spec import ModelSpec
from retinanet.types import Detections

Mode = Literal["latency", "throughput"]
Graph = Callable[[NDArray[Any], NDArray[np.int64]], Sequence[NDArray[Any]]]
INPUTS, OUTPUTS = ("images", "sizes"), ("boxes", "scores", "labels", "count")


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

    def pack(self, boxes: NDArray[Any], scores: NDArray[Any], labels: NDArray[Any]) -> Detections:
        """Arrays as detections of the kind that :meth:`run` returns."""


class ExportedModel:
    """A backend around the graph of an exported model; its detections hold numpy arrays.

    Args:
        card: what the file says about itself.
        graph: runs the graph: images (N, 3, H, W) and sizes (N, 2) -> boxes (N, D, 4), scores (N, D), labels (N, D) and
            count (N,). It may be called from any thread.
        runtime: its name.
        streams: how many calls of ``graph`` may profitably go on at once.
    """

    def __init__(self, card: Card, graph: Graph, *, runtime: str, streams: int) -> None:
        self.spec = card.spec
        self.streams = streams
        self.name = f"{runtime} {card.precision}"
        self.card = card
        self.graph = graph

    def prepare(self, image: NDArray[np.uint8], rule: Preprocess | None = None) -> Prepared:
        """See :class:`Backend`."""
        rule = rule or self.spec.preprocess
        size = (image.shape[0], image.shape[1])
        return Prepared(resize_array(rule, image), size, self.spec.preprocess.padded(*rule.size(*size)))

    def run(self, images: Sequence[Prepared]) -> list[Detections]:
        """See :class:`Backend`."""
        batch, sizes = pad_arrays(self.spec.preprocess, [image.pixels for image in images])
        found = []
        outputs = zip(*self.graph(batch, sizes), strict=True)
        for image, size, (boxes, scores, labels, count) in zip(images, sizes.tolist(), outputs, strict=True):
            if not np.isfinite(scores).all() or (labels[:count] >= len(self.spec.class_names)).any():
                raise UserError(
                    f"{self.name}: the model is damaged, or its class names belong to another model. Export it again"
                )
            back = boxes_back(boxes[:count], (size[0], size[1]), image.size)
            found.append(self.pack(back, scores[:count], labels[:count]))
        return found

    def pack(self, boxes: NDArray[Any], scores: NDArray[Any], labels: NDArray[Any]) -> Detections:
        """See :class:`Backend`; the arrays are copied, so that no output of a batch is kept alive by them."""
        return Detections(
            np.array(boxes, np.float32), np.array(scores, np.float32), np.array(labels, np.int64), self.spec.class_names
        )


def read_card(text: str, path: Path, *, raw: bool, outputs: Sequence[str]) -> tuple[Card, Sequence[str]]:
    """The card of a file, and the outputs of its graph to ask for.

    Args:
        text: the card.
        path: the file.
        raw: whether a graph that ends at the heads will do.
        outputs: names of what the graph has.

    Raises:
        UserError: it ends at the heads and must not, or it is damaged.
    """
    card = Card.from_json(text, path)
    if missing := set(() if card.raw else OUTPUTS) - set(outputs):
        raise UserError(f"{path} has no output {', '.join(sorted(missing))}. Export it again: retinanet export MODEL")
    if card.raw and not raw:
        raise UserError(
            f"{path} holds only the network's heads, without detections. To predict, export it without --raw"
        )
    return card, outputs if card.raw else OUTPUTS


def count_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def explain_missing_runtime(runtime: str, package: str) -> UserError:
    """What to say where a runtime is missing."""
    return UserError(
        f'{runtime} is not installed. Install what exported models need: pip install "retinanet[export]", or '
        f"{package} alone: pip install {package}"
    )


def explain_damage(path: Path, runtime: str, error: Exception) -> UserError:
    """What to say of a file that its runtime cannot read."""
    lines = [line.strip() for line in str(error).splitlines()]
    reason = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return UserError(
        f"{path} is damaged, or not a model that {runtime} can run ({reason[0] if reason else type(error).__name__}). "
        "Copy it again, or export it again: retinanet export MODEL"
    )
