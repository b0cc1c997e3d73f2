r"""Does ``suggest`` save annotations? Images are added to a training set by it and at random, and AP is measured.

A model learns from a few images of the split ``train`` at first. Each round adds as many, chosen by ``suggest`` or at
random, and trains on from the model of the round before for as many steps. The last model of a round is measured on the
split ``test``; nothing is chosen by it. Rounds that are complete are not repeated.

    OMP_NUM_THREADS=1 python benchmarks/suggest.py OUTPUT --data FOLDER --weights FILE.safetensors \
        [--seeds 0 1 2] [--start 20] [--add 20] [--rounds 3] [--steps 60] [--first 120] [--short 192] [--long 256]
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from retinanet import evaluate, load_dataset, suggest, train
from retinanet.curation.folds import make_coco
from retinanet.data.dataset import DetectionDataset
from retinanet.files import write_atomically
from retinanet.training.config import ImageConfig, OptimConfig, RunConfig

METHODS = ("suggest", "random")
VALIDATED = 4  # images that a run is validated on, which nothing depends on


def learn(
    dataset: DetectionDataset, rows: Sequence[int], folder: Path, model: str, steps: int, options: argparse.Namespace
) -> float:
    """Train on some images, and the AP on the test split."""
    result = folder / "result.json"
    if not result.exists():
        data, batch = folder / "data", 8
        for name, chosen in (("train", rows), ("val", rows[:VALIDATED])):
            samples = [dataset.samples[row] for row in chosen]
            write_atomically(data / "annotations" / f"instances_{name}.json", make_coco(samples, dataset.class_names))
        epochs = max(1, round(steps * batch / len(rows)))
        preset = {"weights": options.weights, "architecture": {"depth": 2}} if model == "lite" else {}
        train(
            str(data),
            str(folder / "run"),
            plan=None if model == "lite" else "none",  # the first model has anchors that fit, the others keep them
            model=model,
            epochs=epochs,
            batch_size=batch,
            seed=0,
            image=ImageConfig(short=options.short, long=options.long),
            optim=OptimConfig(warmup=10),
            run=RunConfig(accelerator="cpu", workers=0, evaluate_every=epochs),
            resume=(folder / "run" / "state.pt").exists(),
            **preset,
        )
        metrics = evaluate(str(folder / "run" / "last"), options.data, split="test").metrics
        result.write_text(json.dumps({"images": len(rows), "AP": metrics.ap, "AP50": metrics.ap50}) + "\n")
        (folder / "run" / "state.pt").unlink(missing_ok=True)
    return float(json.loads(result.read_text())["AP"])


def add(dataset: DetectionDataset, rows: list[int], folder: Path, method: str, seed: int, count: int) -> list[int]:
    """The rows with as many more."""
    others = [row for row in range(len(dataset)) if row not in rows]
    if method == "random":
        return rows + random.Random(f"{seed}/{len(rows)}").sample(others, count)
    chosen = suggest(
        str(folder / "run" / "last"),
        [str(dataset.samples[row].path) for row in others],
        data=str(folder / "data"),
        output=str(folder / "next.csv"),
        count=count,
        overwrite=True,
    ).chosen
    row_of = {dataset.samples[row].path: row for row in others}
    return rows + [row_of[one.look.path] for one in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    for name, default in (("start", 20), ("add", 20), ("rounds", 3), ("steps", 60), ("first", 120)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--short", type=int, default=192)
    parser.add_argument("--long", type=int, default=256)
    options = parser.parse_args()
    dataset = load_dataset(options.data, "train")
    table: dict[tuple[str, int], list[float]] = {}
    for seed in options.seeds:
        begun = random.Random(seed).sample(range(len(dataset)), options.start)
        start = options.output / f"seed{seed}" / "start"
        learn(dataset, begun, start, "lite", options.first, options)
        for method in METHODS:
            rows, before = begun, start
            for number in range(options.rounds):
                folder = options.output / f"seed{seed}" / method / f"round{number + 1}"
                file = folder / "rows.json"
                if not file.exists():
                    chosen = add(dataset, rows, before, method, seed, options.add)
                    folder.mkdir(parents=True, exist_ok=True)
                    file.write_text(json.dumps(chosen) + "\n")
                rows = json.loads(file.read_text())
                ap = learn(dataset, rows, folder, str(before / "run" / "last"), options.steps, options)
                objects = sum(len(dataset.samples[row].target) for row in rows)
                table.setdefault((method, len(rows)), []).append(ap)
                print(f"| {seed} | {method} | {len(rows)} | {objects} | {ap:.4f} |", flush=True)
                before = folder
    for (method, images), values in sorted(table.items()):
        print(f"{method}, {images} images: AP {np.mean(values):.4f} over {len(values)} seeds", flush=True)


if __name__ == "__main__":
    main()
