"""The windows of a data set of large images, as a data set: what the network sees in training and evaluation.

Windows and overlap are those of prediction. What becomes of an object that the border of a window cuts follows from
how prediction joins windows (:mod:`retinanet.inference.merge`):

* An object smaller than the overlap is whole in a window, and whole boxes suppress the fragments that lie in them. So
  nothing has to be found of a part, and a small part looks like anything: below half of the area it is an ignore
  region, neither object nor background.
* A larger object may be whole nowhere, and its fragments are joined into one box. So each part of at least half of it
  is an object with the box that is visible.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from retinanet.data.check import describe_wrong_size
from retinanet.data.dataset import DetectionDataset
from retinanet.data.mixing import cut_target
from retinanet.errors import UserError
from retinanet.images.tiling import Tiling, Window
from retinanet.images.windows import ImageWindows
from retinanet.types import Sample

EMPTY = 0.5  # windows without objects that an epoch has, per window with objects
NEARLY_ALL = 0.99  # share of the objects that are smaller than the overlap
LEAST_OVERLAP = 64


class WindowDataset(DetectionDataset):
    """The windows of all images of a data set. An item is a ``Sample`` with the pixels of the window read.

    The windows with objects come first, then those without; within each part the windows of an image lie side by side.
    A sample has the path and the id of its image; its size, boxes and areas are those of the window.

    Args:
        whole: the images.
        tiling: how they are cut.

    Attributes:
        whole: the images.
        tiling: how they are cut.
        places: of each window, the index of its image in ``whole`` and where it lies in it.
        occupied: how many windows have objects.
    """

    def __init__(self, whole: DetectionDataset, tiling: Tiling) -> None:
        every = [
            (index, window, _cut(sample, window))
            for index, sample in enumerate(whole.samples)
            for window in tiling.windows(sample.size)
        ]
        every.sort(key=lambda entry: not _has_object(entry[2]))  # stable
        super().__init__(**{**vars(whole), "samples": [sample for _, _, sample in every]})
        self.whole = whole
        self.tiling = tiling
        self.places: list[tuple[int, Window]] = [(index, window) for index, window, _ in every]
        self.occupied = sum(map(_has_object, self.samples))
        self._decoded: tuple[Path, ImageWindows] | None = None

    @property
    def in_order(self) -> list[int]:
        """The windows image by image, row by row: so read, an image that cannot be read in parts is decoded once."""
        return sorted(range(len(self)), key=self.places.__getitem__)

    def by_image(self) -> Iterator[tuple[int, list[int]]]:
        """The index of each image, and its windows row by row."""
        for index, group in groupby(self.in_order, key=lambda window: self.places[window][0]):
            yield index, list(group)

    def __getitem__(self, index: int) -> Sample:
        """The sample with the pixels of its window.

        Raises:
            UserError: the image cannot be read, or is not of the annotated size.
        """
        image, window = self.places[index]
        with self._open(self.whole.samples[image]) as windows:
            pixels = windows.read(*window)
        return replace(self.samples[index], image=torch.from_numpy(pixels).permute(2, 0, 1).contiguous())  # (3, h, w)

    def check_image(self, image: int) -> None:
        """Read an image of ``whole`` once.

        Raises:
            UserError: it cannot be read, or is not of the annotated size.
        """
        sample = self.whole.samples[image]
        with self._open(sample) as windows:
            for window in () if windows.whole else replace(self.tiling, overlap=0).windows(sample.size):
                windows.read(*window)

    def _open(self, sample: Sample) -> ImageWindows:
        """An image; the last one that was decoded at once is kept, because its other windows often come next."""
        path, windows = self._decoded or (None, None)  # read at once: another thread may replace it
        if windows is None or path != sample.path:
            windows = ImageWindows(self.whole.find_image(sample))
            if windows.whole:  # a file that is read in parts must not stay open: its handle is for one process
                self._decoded = sample.path, windows
        if windows.size != sample.size:
            raise UserError(describe_wrong_size(sample, windows.size))
        return windows

    def summary(self) -> str:
        """What the set holds, in one line; further lines say how it is cut and what was left out of it."""
        first, *rest = self.whole.summary().split("\n")
        cut = sum(self.tiling.cuts(sample.size) for sample in self.whole.samples)
        tile, overlap = self.tiling.tile, self.tiling.overlap
        text = (
            f"  in {len(self)} windows of {tile} x {tile} pixels that share {overlap} ({len(self) - self.occupied} "
            f"without objects); {cut} images are larger than a window"
        )
        return "\n".join([first, text, *rest])

    def __getstate__(self) -> dict[str, Any]:
        """Without the pixels of the last image."""
        return {**super().__getstate__(), "_decoded": None}


def _has_object(sample: Sample) -> bool:
    return not bool(sample.target.ignore.all())


def _cut(sample: Sample, window: Window) -> Sample:
    """What a window shows of an annotated image, without pixels."""
    target, visible = cut_target(sample.target, window)
    y, x = window[:2]
    moved = replace(target, boxes=target.boxes - torch.tensor([x, y, x, y], dtype=target.boxes.dtype))
    kept = visible > 0
    size = window[2] - y, window[3] - x
    return replace(sample, size=size, target=moved.select(kept), areas=(sample.areas * visible)[kept])


def count_drawn(dataset: DetectionDataset) -> tuple[int, int]:
    """How many samples of a data set are in every epoch, and for how many of the others an epoch has room.

    Of windows without objects there is at most ``EMPTY`` per window with objects: the others show mostly background as
    well, and on large images with few objects nearly all of the time would go into windows that teach little.
    """
    if not isinstance(dataset, WindowDataset):
        return len(dataset), 0
    return dataset.occupied, min(len(dataset) - dataset.occupied, max(1, round(EMPTY * dataset.occupied)))


def choose_overlap(dataset: DetectionDataset, tile: int) -> int:
    """The overlap by which nearly all objects are whole in a window: at least 64 pixels and less than half the tile."""
    sides = [sample.target.boxes[~sample.target.ignore] for sample in dataset.samples]
    longest = torch.cat([(boxes[:, 2:] - boxes[:, :2]).amax(dim=1) for boxes in sides])
    rank = max(1, round(NEARLY_ALL * len(longest)))
    usual = float(longest.kthvalue(rank).values) if len(longest) else 0.0
    return min(max(LEAST_OVERLAP, int(usual) + 1), (tile - 1) // 2)
