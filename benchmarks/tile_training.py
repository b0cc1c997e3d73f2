"""Training on windows against training on whole images, for small objects in large images.

Renders a data set of large images with small objects (discs and squares of about 12 pixels among specks of their
colours), trains ``lite`` twice with the same options, once on whole images and once on windows, and evaluates both on
whole test images. In each of as many steps both see as many pixels: four windows, or one image resized to twice the
side of a window.

    python benchmarks/tile_training.py OUTPUT --weights FILE.safetensors [--tile 384] [--steps 60]
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image, ImageDraw, ImageFilter

from retinanet import evaluate, load_dataset, train
from retinanet.data.windows import WindowDataset, choose_overlap, count_drawn
from retinanet.images.tiling import Tiling
from retinanet.model.postprocess import Postprocess
from retinanet.training.config import ImageConfig, OptimConfig, RunConfig

SPLITS = {"train": 6, "val": 1, "test": 2}
CLASSES = ("disc", "square")


def render(folder: Path, seed: int, side: int = 2000) -> None:
    """Write the data set as COCO: TIFF images of ``side`` to 1.3 times that, 60 to 120 objects each, in clusters."""
    dice = np.random.default_rng(seed)
    for split, count in SPLITS.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for number in range(1, count + 1):
            height, width = (int(length) for length in dice.integers(side, side * 13 // 10 + 1, 2))
            picture, boxes = draw_image(height, width, dice)
            name = f"{number:03d}.tif"
            write_tiff(folder / split / name, np.asarray(picture))
            images.append({"id": number, "file_name": name, "height": height, "width": width})
            for label, (x1, y1, x2, y2) in boxes:
                box = [x1, y1, x2 - x1, y2 - y1]
                place = {"id": len(annotations) + 1, "image_id": number, "category_id": label + 1, "iscrowd": 0}
                annotations.append({**place, "bbox": box, "area": box[2] * box[3]})
        categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
        document = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))


def write_tiff(path: Path, pixels: np.ndarray) -> None:
    """Write pixels (H, W, 3) in tiles, which can be read in parts."""
    profile = {"driver": "GTiff", "tiled": True, "compress": "deflate", "photometric": "rgb", "dtype": "uint8"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", count=3, height=len(pixels), width=pixels.shape[1], **profile) as file:
            file.write(pixels.transpose(2, 0, 1))


def draw_image(
    height: int, width: int, dice: np.random.Generator
) -> tuple[Image.Image, list[tuple[int, tuple[int, int, int, int]]]]:
    """One image, and the class and box of each object."""
    ground = dice.normal(128, 18, (height // 40 + 1, width // 40 + 1, 3)).clip(0, 255).astype(np.uint8)
    picture = Image.fromarray(ground).resize((width, height), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    for _ in range(1500):  # specks that are no objects
        x, y, side = dice.integers(0, width), dice.integers(0, height), int(dice.integers(2, 5))
        pen.rectangle((int(x), int(y), int(x) + side, int(y) + side), fill=colour(dice))
    boxes: list[tuple[int, tuple[int, int, int, int]]] = []
    taken = np.zeros((height // 16 + 1, width // 16 + 1), bool)
    centres = dice.uniform(0.1, 0.9, (6, 2)) * (width, height)
    for _ in range(int(dice.integers(60, 121))):
        x, y = (centres[dice.integers(6)] + dice.normal(0, 220, 2)).astype(int).tolist()
        side, label = int(dice.integers(10, 15)), int(dice.integers(2))
        cells = (slice(y // 16, (y + side) // 16 + 1), slice(x // 16, (x + side) // 16 + 1))
        if not (0 <= x < width - side and 0 <= y < height - side) or taken[cells].any():
            continue
        taken[cells] = True
        (pen.ellipse if label == 0 else pen.rectangle)((x, y, x + side - 1, y + side - 1), fill=colour(dice))
        boxes.append((label, (x, y, x + side, y + side)))
    return picture.filter(ImageFilter.GaussianBlur(0.6)), boxes


def colour(dice: np.random.Generator) -> tuple[int, int, int]:
    """Bright or dark."""
    bright = dice.random() < 0.5
    red, green, blue = dice.integers(190, 250, 3) if bright else dice.integers(5, 60, 3)
    return int(red), int(green), int(blue)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--tile", type=int, default=384)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--side", type=int, default=2000, help="least side of the images")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    data = options.output / "data"
    if not data.exists():
        render(data, options.seed, options.side)
    images = load_dataset(data, "train")
    windows = WindowDataset(images, Tiling(options.tile, choose_overlap(images, options.tile)))
    print(windows.summary())
    lengths = {"whole images": len(images), "windows": sum(count_drawn(windows))}
    sizes = {
        "whole images": ImageConfig(short=2 * options.tile, long=2 * options.tile),
        "windows": ImageConfig(tile=options.tile),
    }
    batches = {"whole images": 1, "windows": 4}
    for name, length in lengths.items():
        folder, begin = options.output / name.replace(" ", "-"), time.perf_counter()
        batch = batches[name]
        epochs = max(1, round(options.steps / -(-length // batch)))
        result = train(
            str(data),
            str(folder),
            model="lite",
            weights=options.weights,
            epochs=epochs,
            batch_size=batch,
            seed=options.seed,
            architecture={"depth": 2, "anchors": {"sizes": [12, 24, 48, 96, 192]}},
            image=sizes[name],
            optim=OptimConfig(warmup=10, ema=0.9, lr=1e-3, lr_batch=batch),
            postprocess=Postprocess(max_detections=300),
            run=RunConfig(accelerator="cpu", precision="32", workers=0, evaluate_every=epochs, save_every=10_000),
        )
        trained = time.perf_counter() - begin
        found = evaluate(folder, data, split="test")
        print(
            f"{name:<14} steps {result.steps:>4}  inputs {result.steps * batch:>5}  epochs {epochs:>3}  "
            f"AP {found.metrics.ap:.4f}  AP50 {found.metrics.ap50:.4f}  seconds {trained:.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
