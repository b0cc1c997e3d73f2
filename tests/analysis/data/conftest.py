"""A small, clean, annotated scene, and how to write it in each of the four formats."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WIDTH, HEIGHT = 60, 40


@dataclass
class Shot:
    """One image; a box is [class, x1, y1, x2, y2] in pixels counted from 0."""

    name: str
    boxes: list = field(default_factory=list)


class Scene:
    """12 images to train on and 6 to validate on, a cat and a dog in each; all different."""

    def __init__(self):
        self.classes = ["cat", "dog"]
        self.splits = {}
        dice = random.Random(0)
        for split, count in (("train", 12), ("val", 6)):
            self.splits[split] = [
                Shot(f"{split}{number}.png", [a_box(dice, "cat", 3), a_box(dice, "dog", 31)]) for number in range(count)
            ]

    def write(self, form, root):
        """Write images and annotations; the folder."""
        for split, shots in self.splits.items():
            folder = {"voc": root / "JPEGImages", "yolo": root / "images" / split}.get(form, root / split)
            folder.mkdir(parents=True, exist_ok=True)
            for shot in shots:
                paint(folder / shot.name, shot.name)
            {"coco": self._coco, "voc": self._voc, "yolo": self._yolo, "csv": self._csv}[form](root, split, shots)
        return root

    def _coco(self, root, split, shots):
        rows = [(number, *box) for number, shot in enumerate(shots, 1) for box in shot.boxes]
        content = {
            "images": [
                {"id": number, "file_name": shot.name, "width": WIDTH, "height": HEIGHT}
                for number, shot in enumerate(shots, 1)
            ],
            "annotations": [
                {
                    "id": key,
                    "image_id": number,
                    "category_id": self.classes.index(name),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                }
                for key, (number, name, x1, y1, x2, y2) in enumerate(rows, 1)
            ],
            "categories": [{"id": label, "name": name} for label, name in enumerate(self.classes)],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"{split}.json").write_text(json.dumps(content))

    def _voc(self, root, split, shots):
        for folder in ("Annotations", "ImageSets/Main"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        stems = [Path(shot.name).stem for shot in shots]
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")
        for shot, stem in zip(shots, stems, strict=True):
            objects = "".join(
                f"<object><name>{name}</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax>"
                f"<ymax>{y2}</ymax></bndbox></object>\n"
                for name, x1, y1, x2, y2 in shot.boxes
            )
            size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
            text = f"<annotation><filename>{shot.name}</filename>{size}\n{objects}</annotation>"
            (root / "Annotations" / f"{stem}.xml").write_text(text)

    def _yolo(self, root, split, shots):
        (root / "labels" / split).mkdir(parents=True)
        names = ", ".join(self.classes)
        (root / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: [{names}]\n")
        for shot in shots:
            lines = [
                f"{self.classes.index(name)} {(x1 + x2) / 2 / WIDTH:.6f} {(y1 + y2) / 2 / HEIGHT:.6f} "
                f"{(x2 - x1) / WIDTH:.6f} {(y2 - y1) / HEIGHT:.6f}\n"
                for name, x1, y1, x2, y2 in shot.boxes
            ]
            (root / "labels" / split / shot.name).with_suffix(".txt").write_text("".join(lines))

    def _csv(self, root, split, shots):
        lines = [
            f"{split}/{shot.name},{','.join(map(str, box[1:]))},{box[0]}\n"
            for shot in shots
            for box in shot.boxes or [["", "", "", "", ""]]
        ]
        (root / f"{split}.csv").write_text("".join(lines))


def a_box(dice, name, left):
    """A box whose left side lies between ``left`` and 6 more; it touches no edge."""
    x, y = left + dice.randint(0, 6), dice.randint(3, 15)
    return [name, x, y, x + dice.randint(8, 19), y + dice.randint(8, 20)]


def paint(path, seed):
    """A picture of its own for every seed: large patches of random grey."""
    dice = np.random.default_rng(list(seed.encode()))
    patches = Image.fromarray(dice.integers(20, 235, (10, 12), dtype=np.uint8))
    patches.resize((WIDTH, HEIGHT), Image.Resampling.NEAREST).convert("RGB").save(path)


@pytest.fixture
def scene():
    """The clean scene, to be spoilt."""
    return Scene()
