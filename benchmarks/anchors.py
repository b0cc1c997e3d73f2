"""Objects that the default anchors miss: train with them and with the proposed ones, the same seed and schedule.

Matching is the paper's, for which anchors matter most. The data are made here: bars of 48 x 6 and 6 x 48 pixels and
dots of 6 pixels on a textured background, images of 160 x 160. The anchors are chosen on the training split; the
validation split is measured after the last epoch.

    python benchmarks/anchors.py BACKBONE.safetensors [--output runs/anchors] [--epochs 30] [--larger]

BACKBONE holds the ImageNet weights of timm's tf_efficientnet_lite0.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from retinanet import load_dataset, train
from retinanet.analysis.anchors.audit import AnchorAudit, audit
from retinanet.analysis.anchors.propose import propose
from retinanet.anchors.lattice import AnchorLattice
from retinanet.data.transforms import Augment
from retinanet.images.preprocess import Preprocess
from retinanet.losses.config import CLASSIC
from retinanet.training.config import ImageConfig, OptimConfig, PostprocessConfig, RunConfig

SIDE = 160
KINDS = (("wide bar", 48, 6), ("tall bar", 6, 48), ("dot", 6, 6))


def paint(dice: np.random.Generator) -> tuple[Image.Image, list[tuple[int, list[int]]]]:
    """An image and its objects, (kind, xywh) each; none overlaps another."""
    noise = Image.fromarray(dice.integers(0, 256, (SIDE // 4, SIDE // 4, 3), dtype=np.uint8))
    ground = noise.resize((SIDE, SIDE), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(2))
    pixels = 0.6 * np.asarray(ground, dtype=float) + 40 + dice.normal(0, 10, (SIDE, SIDE, 3))
    taken = np.zeros((SIDE, SIDE), dtype=bool)
    objects = []
    for _ in range(12):
        kind = int(dice.integers(len(KINDS)))
        _, width, height = KINDS[kind]
        x, y = int(dice.integers(0, SIDE - width + 1)), int(dice.integers(0, SIDE - height + 1))
        if taken[max(0, y - 2) : y + height + 2, max(0, x - 2) : x + width + 2].any():
            continue
        taken[y : y + height, x : x + width] = True
        inside = pixels[y : y + height, x : x + width]
        inside += np.where(inside.mean() > 128, -1, 1) * dice.uniform(60, 110)
        objects.append((kind, [x, y, width, height]))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), objects


def make_data(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Write the splits as COCO."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for number, (split, count) in enumerate(counts.items()):
        (folder / split).mkdir(exist_ok=True)
        images, annotations = [], []
        for index in range(count):
            picture, objects = paint(np.random.default_rng((seed, number, index)))
            picture.save(folder / split / f"{index}.png")
            images.append({"id": index + 1, "file_name": f"{index}.png", "height": SIDE, "width": SIDE})
            for kind, box in objects:
                entry = {"id": len(annotations) + 1, "image_id": index + 1, "category_id": kind + 1, "iscrowd": 0}
                annotations.append({**entry, "bbox": box, "area": box[2] * box[3]})
        categories = [{"id": i + 1, "name": name} for i, (name, _, _) in enumerate(KINDS)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


def measure(data: Path, backbone: str, output: Path, audited: AnchorAudit, epochs: int) -> dict[str, object]:
    """One run with these anchors and this size of images."""
    start = time.perf_counter()
    lattice, size = audited.lattice, audited.preprocess
    train(
        str(data),
        str(output),
        model="lite",
        weights=backbone,
        epochs=epochs,
        architecture={"anchors": {key: getattr(lattice, key) for key in ("sizes", "ratios", "scales")}},
        image=ImageConfig(short=size.short, long=size.long),
        augment=Augment(hflip=0.5, vflip=0.5),
        loss=CLASSIC,
        postprocess=PostprocessConfig(vote=0.0),
        optim=OptimConfig(warmup=30, ema=0.99),
        run=RunConfig(workers=0, evaluate_every=epochs),
    )
    report = json.loads((output / "evaluation.json").read_text())
    return {
        "short": size.short,
        "covered at 0.5": round(1 - audited.below(0.5), 4),
        "reached at 0.4": round(1 - audited.below(0.4), 4),
        "positives share": audited.positives_share,
        "AP": report["ap"],
        "AP50": report["ap50"],
        "classes": report["classes"],
        "seconds": round(time.perf_counter() - start),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("backbone")
    parser.add_argument("--output", type=Path, default=Path("runs/anchors"))
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--larger", action="store_true", help="also with larger images")
    arguments = parser.parse_args()
    data = make_data(arguments.output / "data", {"train": 60, "val": 40})
    dataset = load_dataset(data, "train")
    now = {"lattice": AnchorLattice(), "preprocess": Preprocess(short=SIDE, long=SIDE)}
    audits = {"default": audit(dataset.samples, dataset.class_names, **now)}
    for name, most in (("proposed", 1.0), ("proposed, larger images", 4.0))[: 1 + arguments.larger]:
        proposal = propose(dataset.samples, dataset.class_names, most_pixels=most, **now)
        print(f"{name}\n{proposal.summary()}")
        audits[name] = proposal.after
        if proposal.after.preprocess != now["preprocess"]:
            size = {**now, "preprocess": proposal.after.preprocess}
            audits["default, larger images"] = audit(dataset.samples, dataset.class_names, **size)
    for name, audited in audits.items():
        folder = arguments.output / name.replace(", ", "-").replace(" ", "-")
        print(name, json.dumps(measure(data, arguments.backbone, folder, audited, arguments.epochs)), flush=True)


if __name__ == "__main__":
    main()
