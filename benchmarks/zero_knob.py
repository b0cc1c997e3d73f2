r"""Training without any option but a budget, beside a small grid of what one would try by hand.

For each data set a plan is made once for the budget; it is trained with several seeds. The rows of the grid change one
thing of it and see as many pixels: smaller and larger images for more and fewer epochs, and the preset's anchors where
the plan has others. The checkpoint is the best on the
validation split, or a hold-out of it; the figures are those of the test split.

    OMP_NUM_THREADS=1 python benchmarks/zero_knob.py OUTPUT --weights FILE.safetensors \
        [--data NAME=FOLDER ...] [--budget 8m] [--seeds 0 1] [--only NAME ...] [--plans]

Three data sets are rendered, sparse, dense and tiny; ``--data`` adds others. Runs that are complete are not repeated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from retinanet import evaluate, plan, train
from retinanet.data.synthetic import render_scenes
from retinanet.training.config import ImageConfig, RunConfig
from tile_training import render

SCENES = {
    "sparse": {"train": 160, "val": 32, "test": 48, "size": (480, 640), "objects": 3},
    "dense": {"train": 16, "val": 2, "test": 6, "size": (1024, 1024), "objects": 1500},
}
TINY_SIDE = 4000  # least side of the images, in which objects have 12 pixels
COLUMNS = ("AP", "AP50", "AP75")


def make_data(folder: Path, extra: Mapping[str, Path]) -> dict[str, Path]:
    """The data sets by name; those that are rendered are, unless they exist."""
    for name, options in SCENES.items():
        render_scenes(folder / name, **options)
    if not (folder / "tiny").exists():
        render(folder / "tiny", 0, TINY_SIDE)
    return {**extra, **{name: folder / name for name in (*SCENES, "tiny")}}


def list_grid(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Options of ``train`` for each row, beside those of the plan whose values these are."""
    short, long, epochs = values["image"]["short"], values["image"]["long"], values["epochs"]
    rows: dict[str, dict[str, Any]] = {"the plan": {}}
    for name, factor in (("smaller images", 0.75), ("larger images", 4 / 3)):
        side = round(short * factor / 32) * 32
        size = ImageConfig(short=side, long=max(side, round(long * factor / 32) * 32))
        rows[name] = {"image": size, "epochs": max(1, round(epochs * (short / side) ** 2))}
    if "anchors" in values.get("architecture", {}):
        rows["the preset's anchors"] = {"architecture": {"anchors": {}}}
    return rows


def measure(
    data: Path, folder: Path, file: Path, weights: str, seed: int, options: Mapping[str, Any]
) -> dict[str, float]:
    """Train and evaluate one row with one seed."""
    result = folder / "result.json"
    if not result.exists():
        train(
            str(data),
            str(folder),
            weights=weights,
            plan=str(file),
            seed=seed,
            run=RunConfig(accelerator="cpu", workers=0, save_every=50),
            resume=(folder / "state.pt").exists(),
            **options,
        )
        metrics = evaluate(str(folder), str(data), split="test").metrics
        values = {"AP": metrics.ap, "AP50": metrics.ap50, "AP75": metrics.ap75}
        result.write_text(json.dumps(values, indent=1) + "\n")
    return dict(json.loads(result.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", nargs="*", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--budget", default="8m", help="of plans that do not exist yet")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", help="names of the data sets to train on")
    parser.add_argument("--plans", action="store_true", help="make the plans, train nothing")
    options = parser.parse_args()
    extra = {name: Path(folder) for name, _, folder in (entry.partition("=") for entry in options.data)}
    sets = make_data(options.output / "data", extra)
    for name in options.only or sets:
        file = options.output / f"{name}.yaml"
        if not file.exists():
            made = plan(str(sets[name]), budget=options.budget, write=str(file), run=RunConfig(workers=0))
            print(made.to_yaml(), flush=True)
        if options.plans:
            continue
        rows = list_grid(yaml.safe_load(file.read_text()))
        for seed in options.seeds:
            for row, changes in rows.items():
                if seed == options.seeds[0] or not changes:  # the grid with one seed
                    folder = options.output / name / row.replace(" ", "-").replace("'", "") / f"seed{seed}"
                    found = measure(sets[name], folder, file, options.weights, seed, changes)
                    figures = " | ".join(f"{found[column]:.4f}" for column in COLUMNS)
                    print(f"| {name} | {row} | {seed} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
