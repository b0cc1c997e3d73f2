"""What an annotation would teach a model: how unsure it is of an image, and how unlike the chosen ones the image is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retinanet.errors import UserError
from retinanet.evaluation.matching import overlap_boxes
from retinanet.inference.predictor import Predictor, to_array
from retinanet.inference.torch_backend import TorchBackend
from retinanet.types import Detections, Target

Floats = NDArray[np.float64]
COPY = 1e-4  # distance of the features of copies
SAME = 0.5  # IoU from which detections in an image and in its mirror image are one


@dataclass(frozen=True)
class Look:
    """What a model makes of one image.

    Attributes:
        path: the image.
        unsure: the entropies of the scores of its candidates in bits, added up: 1 is one candidate of score 0.5.
        disputed: how many of its objects the mirror image does not confirm: differences of the scores, and of the boxes
            (1 - IoU) by their score, added up.
        objects: how many objects it expects: the sum of the scores.
        feature: (C,) mean of the last map of the backbone, of length 1.
    """

    path: Path
    unsure: float
    disputed: float
    objects: float
    feature: Floats

    @property
    def value(self) -> float:
        """What annotating it would settle; in a crowd there is more to settle."""
        return self.unsure + self.disputed


def look_at_images(predictor: Predictor, paths: Iterable[Path]) -> Iterator[Look]:
    """Show a model each image beside its mirror image.

    Entropy is the oldest measure of what is worth annotating (Settles 2009; for detection Brust et al. 2019, who add it
    up over an image too); that a detection should move with the image is that of Yu et al. (2022, CALD).

    Args:
        predictor: of a model folder; images are shown whole.
        paths: of the images.

    Raises:
        UserError: an exported model, whose backbone cannot be looked into; or an image cannot be read.
    """
    backend = predictor.backend
    if not isinstance(backend, TorchBackend):
        raise UserError(f"suggest needs a model folder, to look into its backbone; this is {backend.name}")
    maps: list[Tensor] = []
    net: Any = backend.net
    handle = net.backbone.register_forward_hook(lambda _module, _inputs, output: maps.append(output[-1]))
    try:
        for path in paths:
            image = to_array(path)
            pair = [backend.prepare(pixels) for pixels in (image, np.ascontiguousarray(image[:, ::-1]))]
            found, mirrored = backend.run(pair)
            feature = maps.pop().float().mean((0, 2, 3)).double().cpu().numpy()  # (2, C, h, w) -> (C,)
            feature /= max(float(np.linalg.norm(feature)), 1e-12)
            scores = found.scores.double().numpy()
            disputed = measure_dispute(found, mirrored, image.shape[1])
            yield Look(path, float(_entropy(scores).sum()), disputed, float(scores.sum()), feature)
    finally:
        handle.remove()


def measure_dispute(found: Detections, mirrored: Detections, width: int) -> float:
    """How many objects an image and its mirror image, ``width`` pixels wide, do not agree on.

    Returns:
        For each detection that both have, the difference of the scores, and 1 - IoU times the lower one; for each that
        one has alone, its score.
    """
    back = mirrored.boxes.clone()
    back[:, 0], back[:, 2] = width - mirrored.boxes[:, 2], width - mirrored.boxes[:, 0]
    target = Target(back, mirrored.labels, torch.zeros(len(back), dtype=torch.bool))
    overlaps = overlap_boxes([found], [target], found.class_names)
    partner = overlaps.match(SAME)
    both = partner >= 0
    iou, other = overlaps.iou_with(partner), np.append(mirrored.scores.double().numpy(), 0.0)[partner]
    alone = float(mirrored.scores.sum()) - float(other[both].sum())
    other[~both] = 0.0
    return float((np.abs(overlaps.score - other) + (1 - iou) * np.minimum(overlaps.score, other)).sum()) + alone


def choose(values: Sequence[float], features: Floats, known: Floats, count: int) -> list[tuple[int, float]]:
    """Choose images that are worth much and unlike each other: the greedy k-centre rule, weighted by the values.

    One after the other, that image is taken whose value times distance to the nearest image that is known or chosen is
    the largest. Without values it is the rule of Sener and Savarese (2018, core-set). Near copies of what is chosen
    have a distance near 0 and come late, however unsure the model is of them; copies are not chosen at all.

    Args:
        values: N, at least 0.
        features: (N, C) of length 1.
        known: (M, C) of the annotated images, M may be 0.
        count: how many to choose at most.

    Returns:
        (row, distance when it was chosen, in [0, 2], 2 where nothing is known) of each, in the order chosen.
    """
    worth = np.asarray(values, np.float64) + 1e-6  # where the model is sure of everything, the distance decides
    near = np.full(len(worth), 2.0)
    for feature in known:
        near = np.minimum(near, np.linalg.norm(features - feature, axis=1))
    free = np.ones(len(worth), bool)
    chosen = []
    for _ in range(count):
        free &= near > COPY
        if not free.any():
            break
        row = int(np.argmax(np.where(free, worth * near, -1.0)))
        chosen.append((row, float(near[row])))
        free[row] = False
        near = np.minimum(near, np.linalg.norm(features - features[row], axis=1))
    return chosen


def _entropy(scores: Floats) -> Floats:
    """Of yes or no with these probabilities, in bits."""
    p = np.clip(scores, 1e-9, 1 - 1e-9)
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
