"""Tiled inference: the test images of a data set as one mosaic, predicted tile by tile, against the separate images.

All images of the split are laid out on one TIFF file (tiled, deflate). Detections of the mosaic go to the image that
holds their centre, are cut to it and measured with the same evaluator. AP is printed for the separate images and for
each setting, next to the seconds and by how much the peak memory of the process has grown.

    python benchmarks/tiles.py MODEL DATA [--split test] [--columns 12] [--gap 29 0] [--fill 127]
        [--windows 640x480/128 640x640/256 1024x1024/128]

With ``--gap 0`` the images touch, so that objects cut by the border of one image have strangers as neighbours; a gap
in the grey that the network takes for padding leaves only what tiling itself does.
"""

from __future__ import annotations

import argparse
import logging
import resource
import statistics
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import rasterio
import torch

from retinanet import Predictor, load_dataset
from retinanet.data.dataset import DetectionDataset
from retinanet.evaluation.coco import coco_metrics
from retinanet.types import Detections

Cells = list[tuple[int, int, int, int]]  # y, x, height, width of each image on the mosaic


def mosaic(dataset: DetectionDataset, path: Path, columns: int, gap: int, fill: int) -> Cells:
    """Write all images of a data set side by side; where each of them lies."""
    heights, widths = zip(*(sample.size for sample in dataset.samples), strict=True)
    high, wide = max(heights) + gap, max(widths) + gap
    rows = -(-len(dataset) // columns)
    canvas = np.full((3, rows * high, columns * wide), fill, np.uint8)
    cells = []
    for index in range(len(dataset)):
        image = dataset[index].image
        assert image is not None
        y, x = index // columns * high + gap // 2, index % columns * wide + gap // 2
        canvas[:, y : y + image.shape[1], x : x + image.shape[2]] = image.numpy()
        cells.append((y, x, int(image.shape[1]), int(image.shape[2])))
    profile = {"driver": "GTiff", "tiled": True, "compress": "deflate", "photometric": "rgb", "dtype": "uint8"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", count=3, height=canvas.shape[1], width=canvas.shape[2], **profile) as file:
            file.write(canvas)
    return cells


def cut_back(detections: Detections, cells: Cells) -> list[Detections]:
    """The detections of each image in its own pixels, by the centre of their boxes."""
    boxes = torch.as_tensor(detections.boxes)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    parts = []
    for y, x, height, width in cells:
        inside = (centre >= torch.tensor([x, y])) & (centre < torch.tensor([x + width, y + height]))
        rows = inside.all(dim=1).nonzero()[:, 0]
        limit = torch.tensor([width, height, width, height])
        own = (boxes[rows] - torch.tensor([x, y, x, y])).clamp(min=0).minimum(limit)
        parts.append(replace(detections, boxes=own, scores=detections.scores[rows], labels=detections.labels[rows]))
    return parts


def peak() -> float:
    """Peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--split", default="test")
    parser.add_argument("--columns", type=int, default=12)
    parser.add_argument("--gap", type=int, nargs="+", default=[29, 0])
    parser.add_argument("--fill", type=int, default=127)
    windows = ["640x480/128", "640x640/256", "1024x1024/128"]
    parser.add_argument("--windows", nargs="+", default=windows, help="WIDTHxHEIGHT/OVERLAP")
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    dataset, predictor = load_dataset(options.data, options.split), Predictor.load(options.model)
    rule, names = predictor.backend.spec.preprocess, dataset.class_names
    scale = statistics.median(rule.size(*sample.size)[0] / sample.size[0] for sample in dataset.samples)
    begin = time.perf_counter()
    alone = coco_metrics(dataset.samples, [predictor(sample.path) for sample in dataset.samples], names)
    print(f"{'':<44}{'AP':>8}{'loss':>8}{'AP50':>8}{'boxes':>8}{'s':>8}{'+ MB':>8}")
    seconds = time.perf_counter() - begin
    print(f"{'separate images':<44}{alone.ap:>8.4f}{'':>8}{alone.ap50:>8.4f}{alone.detections:>8}{seconds:>8.1f}")
    with tempfile.TemporaryDirectory() as scratch:
        for gap in options.gap:
            path = Path(scratch) / f"mosaic-{gap}.tif"
            cells = mosaic(dataset, path, options.columns, gap, options.fill)
            for window in options.windows:
                width, height, overlap = map(int, window.replace("/", "x").split("x"))
                for merge in ("nms", "nmm"):
                    before, begin = peak(), time.perf_counter()
                    detections = predictor.tiled(path, tile=(height, width), overlap=overlap, merge=merge, scale=scale)
                    seconds = time.perf_counter() - begin
                    own = coco_metrics(dataset.samples, cut_back(detections, cells), names)
                    name = f"gap {gap}, {window}, scale {scale:.3g}, {merge}"
                    numbers = f"{own.ap:>8.4f}{alone.ap - own.ap:>8.4f}{own.ap50:>8.4f}{own.detections:>8}"
                    print(f"{name:<44}{numbers}{seconds:>8.1f}{peak() - before:>8.0f}", flush=True)


if __name__ == "__main__":
    main()
