"""Raw outputs, assignments, and the dense reference that every loss is compared with."""

from __future__ import annotations

import pytest
import torch

from retinanet.anchors.coding import BoxCoder
from retinanet.anchors.lattice import AnchorLattice
from retinanet.types import Assignment, RawOutput

LATTICE = AnchorLattice(strides=(8, 16), sizes=(16, 32), ratios=(0.5, 1.0, 2.0), scales=(1.0,))
GRIDS = ((6, 5), (3, 3))


def contiguous(tensor):
    return tensor.contiguous()


def channels_last(tensor):
    return tensor.contiguous(memory_format=torch.channels_last)


def width_first(tensor):
    return tensor.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0)


def with_gaps(tensor):
    room = torch.full((*tensor.shape[:3], tensor.shape[3] + 3), torch.nan, dtype=tensor.dtype)
    room[..., 1:-2] = tensor
    return room[..., 1:-2]


LAYOUTS = [contiguous, channels_last, width_first, with_gaps]


def _make_raw(images=2, classes=4, dtype=torch.float64, layout=contiguous, seed=0, grids=GRIDS, lattice=LATTICE):
    generator = torch.Generator().manual_seed(seed)

    def levels(channels, spread):
        shapes = [(images, lattice.num_anchors * channels, *grid) for grid in grids]
        values = [torch.randn(shape, generator=generator, dtype=torch.float64) * spread for shape in shapes]
        return tuple(layout(value.to(dtype)).requires_grad_() for value in values)

    return RawOutput(levels(classes, 4), levels(4, 0.5), lattice, BoxCoder())


def _make_assignment(raw, positives=7, ignored=9, seed=1):
    """Random anchors, positive with a random class or ignored."""
    generator = torch.Generator().manual_seed(seed)
    images = len(raw.logits[0])
    total = raw.lattice.count(raw.grids)
    rows = torch.randperm(images * total, generator=generator)[: positives + ignored]
    image, flat = rows // total, rows % total
    level, y, x, a = raw.lattice.locate(flat, raw.grids)
    labels = torch.randint(raw.num_classes, (positives + ignored,), generator=generator)
    boxes = raw.lattice.boxes(flat, raw.grids) + torch.tensor([-2.0, 1.0, 3.0, 4.0])
    index = torch.stack([image, a, y, x], dim=1)

    def part(rows):
        order = level[rows].argsort(stable=True)
        counts = tuple(torch.bincount(level[rows], minlength=raw.lattice.num_levels).tolist())
        return torch.arange(len(level))[rows][order], counts

    positive, positive_counts = part(slice(0, positives))
    ignore, ignored_counts = part(slice(positives, None))
    return Assignment(
        index[positive], labels[positive], boxes[positive], index[ignore], positive_counts, ignored_counts
    )


def _dense(raw, assignment):
    """For each level the targets (N, A*K, H, W) and which entries count, as a textbook would lay them out."""
    targets, counted = [], []
    rows = zip(raw.logits, assignment.positives_by_level(), assignment.ignored_by_level(), strict=True)
    for logits, (index, labels), ignored in rows:
        shape = (len(logits), raw.lattice.num_anchors, raw.num_classes, *logits.shape[2:])
        target, count = torch.zeros(shape), torch.ones(shape, dtype=torch.bool)
        for (n, a, y, x), label in zip(index.tolist(), labels.tolist(), strict=True):
            target[n, a, label, y, x] = 1
        for n, a, y, x in ignored.tolist():
            count[n, a, :, y, x] = False
        targets.append(target.flatten(1, 2))
        counted.append(count.flatten(1, 2))
    return targets, counted


@pytest.fixture
def make_raw():
    return _make_raw


@pytest.fixture
def make_assignment():
    return _make_assignment


@pytest.fixture
def dense():
    return _dense


@pytest.fixture(params=LAYOUTS, ids=lambda layout: layout.__name__)
def layout(request):
    return request.param


@pytest.fixture
def channels_last_layout():
    return channels_last
