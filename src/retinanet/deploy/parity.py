"""Does the exported model find what the network finds?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from retinanet.anchors.geometry import iou
from retinanet.data.dataset import load_dataset
from retinanet.data.painting import paint
from retinanet.data.scenes import plan_scene
from retinanet.detector import Detector
from retinanet.errors import UserError
from retinanet.images.colours import picture_array
from retinanet.images.io import read_image, to_planes
from retinanet.images.preprocess import Preprocess
from retinanet.images.windows import ImageWindows
from retinanet.inference.exported import Graph
from retinanet.inference.paths import find_images
from retinanet.interop.comparison import largest_difference, make_batch, pair_detections, pair_differences
from retinanet.model.postprocess import Postprocess
from retinanet.spec import ModelSpec
from retinanet.types import Batch, Detections

T = TypeVar("T")
PIXELS, SCORE = 0.1, 1e-3  # fp32: how far a box and a score may be off
RAW = 0.01  # likewise for what the heads say
NEAR = 2.0  # pixels within which two boxes of a class are taken for the same
ROUNDING = 1e-3  # an overlap as near as this to the NMS threshold may fall on either side of it
SCENES = ((0, (256, 320)), (3, (400, 300)))  # index and size of the rendered ones; the second is a crowd
SURE, ALIKE = 0.3, 0.75  # the score and the IoU from which on lower precisions are compared


@dataclass(frozen=True)
class Comparison:
    """The exported model beside the network, over several batches.

    Attributes:
        batches: what was run, such as "2 x 3 x 320 x 416".
        detections: of the network, all batches together.
        matched: how many of them the exported model finds too: same class, nearest box.
        unmatched: how many only one of both finds, except where a rounding decides: a score at the threshold or at
            the cut after ``max_detections``, an overlap at the NMS threshold.
        pixels: largest difference of a coordinate of two that match.
        score: largest difference of their scores.
        certain: detections of the network with a score of at least 0.3.
        sure: the share of those that the exported model finds with the same class and an IoU of at least 0.75; NaN
            where there are none.
    """

    batches: tuple[str, ...]
    detections: int
    matched: int
    unmatched: int
    pixels: float
    score: float
    certain: int
    sure: float

    @property
    def equal(self) -> bool:
        """Whether both give the same detections, within the tolerances of fp32."""
        return self.unmatched == 0 and self.pixels <= PIXELS and self.score <= SCORE

    def __str__(self) -> str:
        nothing = "" if self.detections else "; nothing was found that could differ: pass --verify DATA"
        return (
            f"{self.matched} of {self.detections} detections match, {self.unmatched} only in one of both; largest "
            f"difference {self.pixels:.2g} px, score {self.score:.2g} ({', '.join(self.batches)}){nothing}"
        )

    def roughly(self) -> str:
        """For lower precision, where the faint detections always differ."""
        nothing = "" if self.certain else ": pass --verify DATA"
        share = "" if np.isnan(self.sure) else f"{self.sure:.1%} of the "
        return (
            f"{share}{self.certain} detections that score 0.3 and more are found with the same class and IoU 0.75"
            f"{nothing} ({', '.join(self.batches)})"
        )


def compare(detector: Detector, graph: Graph, batches: Sequence[Batch]) -> Comparison:
    """Run the network and the exported graph on the same batches.

    Args:
        detector: on the CPU, in fp32.
        graph: images (N, 3, H, W) and sizes (N, 2) -> boxes, scores, labels, count.
        batches: see :func:`proof_batches`.
    """
    total = matched = unmatched = 0
    differences = [(0.0, 0.0)]  # pixels and score, of those that match
    sure: list[bool] = []
    for batch in batches:
        with torch.inference_mode():
            wanted = detector.spec.postprocess(detector.raw(batch), batch.sizes, detector.spec.class_names)
        for ours, boxes, scores, labels, count in zip(wanted, *_run(graph, batch), strict=True):
            theirs = Detections(boxes[:count], scores[:count], labels[:count], detector.spec.class_names)
            pairs = pair_detections(ours, theirs, limit=NEAR)
            differences.append(pair_differences(ours, theirs, pairs))
            total, matched = total + len(ours), matched + len(pairs)
            unmatched += _unexplained(ours, theirs, {i for i, _ in pairs}, detector.spec.postprocess)
            unmatched += _unexplained(theirs, ours, {j for _, j in pairs}, detector.spec.postprocess)
            certain = ours.above(SURE)
            alike = (iou(certain.boxes, theirs.boxes) >= ALIKE) & (certain.labels[:, None] == theirs.labels)
            sure += alike.any(dim=1).tolist()
    pixels, score = (max(column) for column in zip(*differences, strict=True))
    share = float(np.mean(sure)) if sure else float("nan")
    return Comparison(_shapes(batches), total, matched, unmatched, pixels, score, len(sure), share)


@dataclass(frozen=True)
class RawComparison:
    """The heads of the exported model beside those of the network.

    Attributes:
        batches: what was run.
        logits: largest difference of a logit.
        deltas: largest difference of a delta.
        sure: share of the entries with a score of at least 0.3 that have it in both; NaN where there are none.
    """

    batches: tuple[str, ...]
    logits: float
    deltas: float
    sure: float

    @property
    def equal(self) -> bool:
        """Whether both say the same, to the tolerance of fp32."""
        return max(self.logits, self.deltas) <= RAW

    def __str__(self) -> str:
        return (
            f"largest difference of a logit {self.logits:.2g}, of a delta {self.deltas:.2g} ({', '.join(self.batches)})"
        )


def compare_raw(detector: Detector, graph: Graph, batches: Sequence[Batch]) -> RawComparison:
    """As :func:`compare`, for a graph that ends at the heads: L logits, then L deltas."""
    logits = deltas = 0.0
    certain = both = 0
    for batch in batches:
        with torch.inference_mode():
            raw = detector.raw(batch)
        outputs = _run(graph, batch)
        levels = len(raw.logits)
        logits = max(logits, largest_difference(raw.logits, outputs[:levels]))
        deltas = max(deltas, largest_difference(raw.deltas, outputs[levels:]))
        for mine, other in zip(raw.logits, outputs[:levels], strict=True):
            high = mine.sigmoid() >= SURE
            certain, both = certain + int(high.sum()), both + int((high & (other.sigmoid() >= SURE)).sum())
    return RawComparison(_shapes(batches), logits, deltas, both / certain if certain else float("nan"))


def proof_batches(preprocess: Preprocess, images: Sequence[Tensor] = ()) -> list[Batch]:
    """What an exported model is tried on: several sizes, one image and two of different sizes, an empty one, a crowd.

    Args:
        preprocess: of the model.
        images: (3, H, W) uint8 pictures of the kind that the model is for; without any, there are rendered ones.
    """
    scene, crowd = (to_planes(picture_array(paint(plan_scene(0, "proof", index, size)))) for index, size in SCENES)
    # Nothing but grain: on one grey, neighbouring cells tie, and rounding would decide which of them suppresses which.
    dice = torch.Generator().manual_seed(0)
    empty = torch.randint(96, 160, (3, 200, 300), dtype=torch.uint8, generator=dice)
    groups = [[empty], [scene, crowd], [crowd], *([image] for image in images[:2]), list(images[2:])]
    return [make_batch(preprocess, group) for group in groups if group]


def read_seen(spec: ModelSpec, number: int, path: Path) -> Tensor:
    """What a model sees of an image, (3, H, W) uint8: the image, or one of its windows by a number."""
    if spec.tiling is None:
        return read_image(path)
    with ImageWindows(path) as windows:
        places = spec.tiling.windows(windows.size)
        return torch.from_numpy(windows.read(*places[number % len(places)])).permute(2, 0, 1).contiguous()


def spread_images(data: str, most: int, split: str = "train") -> list[Path]:
    """Images of the kind that a model is for, spread evenly over a data set.

    Args:
        data: annotated images, or a folder of images.
        most: how many at most.
        split: the part of annotated images to take.

    Raises:
        UserError: there is no image.
    """
    if most < 1:
        raise UserError(f"--samples is at least 1, got {most}")
    if not Path(data).exists():
        raise UserError(f"there is no {data}: expected annotated images, or a folder of images")
    reason = ""
    try:
        paths = [sample.path for sample in load_dataset(data, split).samples]
    except UserError as error:
        try:
            paths = find_images([data])
        except UserError:
            paths, reason = [], f" ({error})"
    if not paths:
        raise UserError(f"there are no images in {data}: expected annotated images, or a folder of images{reason}")
    return spread_evenly(paths, most)


def spread_evenly(items: Sequence[T], most: int) -> list[T]:
    """At most so many of some items, from the first to the last, in their order."""
    return [items[i] for i in np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)]


def _run(graph: Graph, batch: Batch) -> list[Tensor]:
    outputs = graph(batch.images.contiguous().numpy(), batch.sizes.numpy())
    return [torch.from_numpy(np.array(output)) for output in outputs]


def _shapes(batches: Sequence[Batch]) -> tuple[str, ...]:
    return tuple(" x ".join(map(str, batch.images.shape)) for batch in batches)


def _unexplained(detections: Detections, other: Detections, matched: set[int], rule: Postprocess) -> int:
    """How many detections of ``detections`` have no partner in ``other`` although no rounding can have decided that."""
    cut = float(other.scores.min()) + SCORE if len(other) == rule.max_detections else 0.0
    # Asked so that NaN explains nothing.
    explained = (detections.scores <= cut) | ((detections.scores - rule.score).abs() <= SCORE)
    left = [i for i in range(len(detections)) if i not in matched and not explained[i]]
    overlaps = iou(detections.boxes[left], torch.cat([detections.boxes, other.boxes]))
    return len(left) - int(((overlaps - rule.nms).abs() <= ROUNDING).any(dim=1).sum())
