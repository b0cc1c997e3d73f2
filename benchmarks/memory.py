"""Is the memory that a plan predicts what a training takes? Peaks of processes that train a few steps.

    python benchmarks/memory.py [--rows lite,384,8 resnet18,320,8 resnet50,384,4]

A row is a preset, the side of square images and the images of a batch. Each training is a process of its own, three
steps and an evaluation on images of noise; its peak is what the kernel says of it at the end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from retinanet import ImageConfig, RunConfig, train
from retinanet.deploy.measure import describe_machine, measure_peak
from retinanet.model.presets import preset
from retinanet.planning.machine import GB
from retinanet.planning.memory import predict_memory

CLASSES, STEPS = 3, 3
ROWS = [
    "lite,256,8",
    "lite,384,8",
    "lite,512,8",
    "resnet18,320,8",
    "resnet18,512,8",
    "resnet50,320,4",
    "resnet50,384,8",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", nargs="+", default=ROWS)
    parser.add_argument("--child", action="store_true")
    options = parser.parse_args()
    if not options.child:
        print(
            f"{describe_machine()}\n\n| preset, side, images | predicted GB | measured GB | ratio |\n|---|---|---|---|"
        )
    for row in options.rows:
        name, side, images = row.split(",")
        if options.child:
            print(train_a_little(name, int(side), int(images)))
            continue
        words = [sys.executable, __file__, "--child", "--rows", row]
        lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
        need = predict_memory(preset(name), CLASSES, (int(side), int(side)), int(images)).peak / GB
        measured = float(lines[-1]) / 1000
        print(f"| {row.replace(',', ', ')} | {need:.2f} | {measured:.2f} | {need / measured:.2f} |", flush=True)


def train_a_little(name: str, side: int, images: int) -> float:
    """Train in this process; returns its peak in MB."""
    with tempfile.TemporaryDirectory() as folder:
        data = make_noise(Path(folder) / "data", side, images * STEPS)
        train(
            str(data),
            f"{folder}/run",
            model=name,
            weights="none",
            epochs=1,
            batch_size=images,
            plan="none",
            architecture={"norm": "frozen"},
            image=ImageConfig(short=side, long=side),
            run=RunConfig(workers=0, accelerator="cpu", precision="32"),
        )
    return measure_peak()


def make_noise(folder: Path, side: int, count: int) -> Path:
    """Images with eight boxes each, as COCO; the last one is also the validation split."""
    rng = np.random.default_rng(0)
    (folder / "annotations").mkdir(parents=True)
    for split, numbers in (("train", range(count)), ("val", range(count - 1, count))):
        (folder / split).mkdir()
        names = {number: f"{number}.png" for number in numbers}
        for name in names.values():
            Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(folder / split / name)
        corners = rng.integers(0, side // 2, (len(names) * 8, 2)).tolist()
        boxes = [
            {"id": row, "image_id": numbers[row // 8], "category_id": row % CLASSES + 1, "bbox": [*corner, 40, 40]}
            for row, corner in enumerate(corners)
        ]
        content = {
            "images": [{"id": n, "file_name": name, "width": side, "height": side} for n, name in names.items()],
            "annotations": [{**box, "area": 1600, "iscrowd": 0} for box in boxes],
            "categories": [{"id": number + 1, "name": f"kind {number}"} for number in range(CLASSES)],
        }
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


if __name__ == "__main__":
    main()
