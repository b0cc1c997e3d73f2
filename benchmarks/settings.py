"""What the tables of trainings have in common: one setting, several seeds, a row for each variant, runs that resume."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retinanet import evaluate, train
from retinanet.data.dataset import splits
from retinanet.data.transforms import Augment
from retinanet.training.config import ImageConfig, OptimConfig, RunConfig

COLUMNS = ("AP", "AP50", "AP75")


@dataclass(frozen=True)
class Setting:
    """Data, sizes and schedule that all rows of a table share; the last epoch is measured, nothing is chosen on test.

    Attributes:
        data: annotated images with a split ``test`` and one of ``trainval`` and ``train``, which is trained on.
        backbone: ImageNet weights of the preset's backbone, with timm's names.
        output: folder of the runs; those that are complete are not run again, others go on where they stopped.
        seeds: of each row.
        model: preset.
        short: pixels of the short side.
        long: most pixels of the long side.
        epochs: of each run.
        depth: hidden convolutions of each tower, where a row does not say.
    """

    data: Path
    backbone: Path
    output: Path
    seeds: tuple[int, ...]
    model: str
    short: int
    long: int
    epochs: int
    depth: int

    @property
    def splits(self) -> tuple[str, str]:
        """What is trained on and what is measured on."""
        return "trainval" if "trainval" in splits(self.data) else "train", "test"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser, output: str) -> None:
        """The options that make a setting; its defaults are those of the published tables."""
        parser.add_argument("data", type=Path)
        parser.add_argument("backbone", type=Path)
        parser.add_argument("--output", type=Path, default=Path(output))
        parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
        parser.add_argument("--model", default="lite")
        parser.add_argument("--short", type=int, default=384)
        parser.add_argument("--long", type=int, default=512)
        parser.add_argument("--epochs", type=int, default=12)
        parser.add_argument("--depth", type=int, default=4)

    @classmethod
    def of(cls, options: argparse.Namespace) -> Setting:
        """From what :meth:`add_arguments` made."""
        names = ("data", "backbone", "output", "model", "short", "long", "epochs", "depth")
        return cls(seeds=tuple(options.seeds), **{name: getattr(options, name) for name in names})

    def folder(self, name: str, seed: int) -> Path:
        """Of one run."""
        size = f"{self.data.name}-{self.model}-{self.short}-{self.long}-{self.epochs}-{self.depth}"
        return self.output / size / name.replace(" ", "-").replace("/", "-") / f"seed{seed}"

    def measure(self, name: str, seed: int, options: Mapping[str, Any]) -> dict[str, float]:
        """Train a row with one seed and measure it; AP of classes under their names.

        Args:
            name: of the row.
            seed: of everything random.
            options: of ``train``, where they differ from the default recipe with flips.
        """
        folder = self.folder(name, seed)
        result = folder / "result.json"
        if result.exists():
            return dict(json.loads(result.read_text()))
        chosen = {
            "augment": Augment(hflip=0.5, vflip=0.5),
            "optim": OptimConfig(warmup=50),
            "model": self.model,
            **options,
            "architecture": {"depth": self.depth, **options.get("architecture", {})},
        }
        train_split, test_split = self.splits
        train(
            str(self.data),
            str(folder),
            weights=str(self.backbone),
            epochs=self.epochs,
            seed=seed,
            train_split=train_split,
            val_split=test_split,
            image=ImageConfig(short=self.short, long=self.long),
            run=RunConfig(workers=0, evaluate_every=self.epochs, save_every=50),
            resume=(folder / "state.pt").exists(),
            **chosen,
        )
        metrics = evaluate(str(folder / "last"), str(self.data), split=test_split).metrics
        values = {"AP": metrics.ap, "AP50": metrics.ap50, "AP75": metrics.ap75}
        values |= {entry.name: entry.ap for entry in metrics.classes}
        result.write_text(json.dumps(values, indent=1) + "\n")
        return values

    def measure_all(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        """Every row with every seed, all rows of a seed before the next seed; prints the table after each run."""
        done: dict[str, list[dict[str, float]]] = {name: [] for name in rows}
        for seed in self.seeds:
            for name, options in rows.items():
                done[name].append(self.measure(name, seed, options))
                print(format_table(done), flush=True)


def format_table(done: Mapping[str, list[dict[str, float]]]) -> str:
    """Rows as Markdown: the mean of the seeds, and the spread of AP (highest less lowest) where there are several."""
    some = next(values[0] for values in done.values() if values)
    columns = [*COLUMNS, *(name for name in some if name not in COLUMNS)]
    lines = ["| | " + " | ".join([*columns, "seeds", "spread of AP"]) + " |", "|---" * (len(columns) + 3) + "|"]
    for name, values in done.items():
        if values:
            means = [f"{statistics.mean(value[column] for value in values):.4f}" for column in columns]
            spread = max(value["AP"] for value in values) - min(value["AP"] for value in values)
            lines.append(f"| {name} | " + " | ".join([*means, str(len(values)), f"{spread:.4f}"]) + " |")
    return "\n".join([*lines, ""])
