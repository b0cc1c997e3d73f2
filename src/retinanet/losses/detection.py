"""The loss of a detector: match, then focal loss over all anchors and box loss over the positive ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from retinanet.anchors.atss import ATSS
from retinanet.anchors.coding import BoxCoder
from retinanet.anchors.geometry import paired_iou
from retinanet.anchors.lattice import AnchorLattice, Grids
from retinanet.anchors.matching import Matcher
from retinanet.errors import UserError
from retinanet.losses.box import SmoothL1
from retinanet.losses.focal import FocalLoss, expected_initial_loss
from retinanet.types import Assignment, RawOutput, Target


@dataclass(frozen=True)
class Losses:
    """The loss of a batch, ready for ``losses.total.backward()``.

    Attributes:
        classification: scalar, normalised.
        box: scalar, normalised and weighted.
        positives: positive anchors of this batch on this process.
    """

    classification: Tensor
    box: Tensor
    positives: int

    @property
    def total(self) -> Tensor:
        """Classification plus box loss."""
        return self.classification + self.box


@dataclass(frozen=True, kw_only=True)
class DetectionLoss:
    """Turns raw outputs and targets into losses (Lin et al., sections 3 and 4).

    The paper divides by the number of positive anchors "of an image" and leaves open what a batch does. Here both sums
    are divided once, by the positives of the whole batch over all processes, at least 1. So an object counts the
    same in a crowded image as in a sparse one, and the loss does not depend on how a batch is spread over devices.
    torchvision and yhenon's code divide the sums of each image by its own positives instead, and take the mean over
    images; detectron2 divides by a moving average of the positives, which a loop can pass as ``normaliser``.

    Args:
        matcher: which anchors answer for which box.
        classification: ``(raw, assignment) -> scalar``, the sum over the batch: :class:`FocalLoss` or
            :class:`~retinanet.losses.ohem.OHEM`.
        box: ``(deltas, anchors, boxes, coder) -> scalar``, the sum over the positives: see :mod:`retinanet.losses.box`.
        box_weight: factor on the box loss, at least 0.
        normaliser: whose positives divide the sums: of the whole ``batch`` or of each ``image``.
    """

    matcher: Matcher | ATSS = field(default_factory=Matcher)
    classification: Callable[[RawOutput, Assignment], Tensor] = field(default_factory=FocalLoss)
    box: Callable[[Tensor, Tensor, Tensor, BoxCoder], Tensor] = field(default_factory=SmoothL1)
    box_weight: float = 1.0
    normaliser: Literal["batch", "image"] = "batch"

    def __post_init__(self) -> None:
        if self.normaliser not in ("batch", "image"):
            raise UserError(f"normaliser is batch or image, got {self.normaliser!r}")
        if not 0 <= self.box_weight < math.inf:
            raise UserError(f"box_weight must be a number of at least 0, got {self.box_weight}")

    def assign(self, lattice: AnchorLattice, grids: Grids, targets: Sequence[Target]) -> Assignment:
        """Matches every image of a batch, on the CPU.

        Args:
            lattice: the anchors.
            grids: L grids (H_l, W_l).
            targets: one per image, on any device; images without boxes are fine.

        Returns:
            The assignment, on the CPU.
        """
        some = (Target.empty(), *targets)  # a batch may have no targets at all
        boxes, labels, ignore = (
            torch.cat([getattr(target, column).cpu() for target in some]) for column in ("boxes", "labels", "ignore")
        )
        per_image = torch.tensor([len(target) for target in targets], dtype=torch.int64)
        image = torch.arange(len(targets)).repeat_interleave(per_image)
        match = self.matcher(lattice, grids, boxes, ignore, image)
        index, per_level, order = _sort_by_level(lattice, grids, match.positive)
        ignored, ignored_per_level, _ = _sort_by_level(lattice, grids, match.ignored)
        box = match.box[order]
        return Assignment(index, labels[box], boxes[box], ignored, per_level, ignored_per_level)

    def assign_input(self, lattice: AnchorLattice, size: Sequence[int], targets: Sequence[Target]) -> Assignment:
        """As :meth:`assign`, over an input of a size (H, W)."""
        height, width = size
        return self.assign(lattice.over(height, width), lattice.grids(height, width), targets)

    def __call__(
        self,
        raw: RawOutput,
        targets: Sequence[Target],
        assignment: Assignment | None = None,
        normaliser: float | None = None,
    ) -> Losses:
        """The losses of a batch.

        Args:
            raw: what the network said about N images.
            targets: N targets, boxes in pixels of the network's input.
            assignment: from :meth:`assign`, where it is known already.
            normaliser: divides both sums, instead of this process's share of :meth:`count` over all processes. A loop
                that accumulates gives the sum of it over all its micro-batches and processes, and multiplies by the
                number of processes where their gradients are averaged.

        Raises:
            UserError: the number of targets is not that of the images, or a label is not below K.
        """
        images = len(raw.logits[0])
        if len(targets) != images:
            raise UserError(f"the network saw {images} images, but there are {len(targets)} targets: pass one each")
        if assignment is None:
            assignment = self.assign(raw.lattice, raw.grids, targets)
        check_labels(assignment.labels, raw.num_classes)
        assignment = assignment.to(raw.logits[0].device)
        divisor = _divisor(self.count(assignment, images), normaliser, raw.logits[0].device)
        if self.normaliser == "batch":
            parts = [(raw, assignment, 1)]
        else:
            ones = [(_image(raw, image), assignment.of_image(image)) for image in range(images)]
            parts = [(*one, max(one[1].num_positives, 1)) for one in ones]
        classification, box = zip(*(self._sums(one, part, share) for one, part, share in parts), strict=True)
        return Losses(
            classification=torch.stack(classification).sum() / divisor,
            box=self.box_weight * torch.stack(box).sum() / divisor,
            positives=assignment.num_positives,
        )

    def count(self, assignment: Assignment, images: int) -> int:
        """What a batch adds to the normaliser: its positives, or the images themselves where each has its own."""
        return assignment.num_positives if self.normaliser == "batch" else images

    def expect_initial(
        self, assignment: Assignment, lattice: AnchorLattice, grids: Grids, images: int, num_classes: int, prior: float
    ) -> tuple[float, float] | None:
        """The least and the highest classification loss, summed, of a network that says ``prior`` everywhere.

        They are one number (see :func:`~retinanet.losses.focal.expected_initial_loss`) unless positives have to give a
        quality. An untrained network moves the anchors a little, so that quality is between theirs and half of it. None
        unless the loss is focal, of whole batches.
        """
        focal, count = self.classification, assignment.num_positives
        if not isinstance(focal, FocalLoss) or self.normaliser == "image":
            return None
        negatives = (lattice.count(grids) * images - len(assignment.ignored)) * num_classes - count
        expect = partial(expected_initial_loss, prior, negatives, alpha=focal.alpha, gamma=focal.gamma)
        if not focal.quality:
            return expect(count), expect(count)
        quality = paired_iou(_anchors_of_positives(lattice, assignment), assignment.boxes)
        return expect(quality / 2), expect(quality)

    def _sums(self, raw: RawOutput, assignment: Assignment, share: int) -> tuple[Tensor, Tensor]:
        """Classification and box loss, summed, as shares; of the deltas only those of the positives are read."""
        anchors = _anchors_of_positives(raw.lattice, assignment)
        deltas = _deltas_of_positives(raw, assignment)
        if self._needs_quality(assignment):
            assignment = _judge_boxes(raw.coder, deltas, anchors, assignment)
        box = self.box(deltas, anchors, assignment.boxes, raw.coder)
        return self.classification(raw, assignment) / share, box / share

    def _needs_quality(self, assignment: Assignment) -> bool:
        return assignment.quality is None and getattr(self.classification, "quality", False)

    def add_quality(self, raw: RawOutput, assignment: Assignment) -> Assignment:
        """The assignment with the quality of every positive, on the device of ``raw``; as it is where none counts."""
        if not self._needs_quality(assignment):
            return assignment
        assignment = assignment.to(raw.logits[0].device)
        anchors = _anchors_of_positives(raw.lattice, assignment)
        return _judge_boxes(raw.coder, _deltas_of_positives(raw, assignment), anchors, assignment)


@torch.no_grad()
def _judge_boxes(coder: BoxCoder, deltas: Tensor, anchors: Tensor, assignment: Assignment) -> Assignment:
    """With the IoU of what the network found at each positive, deltas (P, 4) from anchors (P, 4), with its box."""
    return replace(assignment, quality=paired_iou(coder.decode(deltas, anchors), assignment.boxes).nan_to_num(0.0))


def _deltas_of_positives(raw: RawOutput, assignment: Assignment) -> Tensor:
    """(P, 4) in the type that the network gave."""
    coordinates = torch.arange(4, device=assignment.index.device)
    parts = []
    for deltas, (index, _) in zip(raw.deltas, assignment.positives_by_level(), strict=True):
        image, anchor, y, x = index.unbind(1)
        channels = anchor[:, None] * 4 + coordinates  # (P_l, 4)
        parts.append(deltas[image[:, None], channels, y[:, None], x[:, None]])
    return torch.cat(parts)


def _anchors_of_positives(lattice: AnchorLattice, assignment: Assignment) -> Tensor:
    """(P, 4) float32 xyxy."""
    counts = torch.tensor(assignment.positives_per_level, device=assignment.index.device)
    level = torch.arange(lattice.num_levels, device=counts.device).repeat_interleave(counts)
    _, anchor, y, x = assignment.index.unbind(1)
    return lattice.boxes_at(level, y, x, anchor)


def _sort_by_level(lattice: AnchorLattice, grids: Grids, anchor: Tensor) -> tuple[Tensor, tuple[int, ...], Tensor]:
    """Sorts the anchors of a batch by level, and within a level by image.

    Args:
        lattice: the anchors.
        grids: L grids.
        anchor: (n,) numbers of anchors as a match has them, ascending.

    Returns:
        Image, anchor of the cell, y and x (n, 4); how many there are of each level; the order (n,) that sorted them.
    """
    per_image = lattice.count(grids)
    image = torch.div(anchor, per_image, rounding_mode="floor")
    level, y, x, a = lattice.locate(anchor - image * per_image, grids)
    level, order = level.sort(stable=True)
    index = torch.stack([image, a, y, x], dim=1)[order]
    return index, tuple(torch.bincount(level, minlength=lattice.num_levels).tolist()), order


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Check that labels (P,) lie below K; one beyond would be the class of another anchor in the channels.

    Raises:
        UserError: one does not.
    """
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong):
        raise UserError(
            f"a box has the label {int(wrong[0])}, but the network has {num_classes} classes, 0 to {num_classes - 1}: "
            "build it with as many classes as the data has"
        )


def _image(raw: RawOutput, image: int) -> RawOutput:
    """The output for one image, as a batch of one."""
    logits, deltas = (tuple(level[image : image + 1] for level in levels) for levels in (raw.logits, raw.deltas))
    return replace(raw, logits=logits, deltas=deltas)


def _divisor(count: int, normaliser: float | None, device: torch.device) -> Tensor | float:
    """What to divide the sums of this process by: what is given, or else its share of the count of all processes.

    Distributed training averages gradients, so with its share each process adds up to the gradient of the batch.
    """
    if normaliser is not None:
        return normaliser
    if not (dist.is_available() and dist.is_initialized()):
        return max(count, 1)
    total = torch.tensor(float(count), device=device)
    dist.all_reduce(total)
    return total.clamp_(min=1) / dist.get_world_size()
