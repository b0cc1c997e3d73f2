"""Blood cells (BCCD): train the ``lite`` preset with three seeds on ``trainval``, measure it on ``test``.

The model measured is that of the last epoch: nothing is chosen on the test split. A seed whose run folder is complete
is not trained again. Good and bad detections of the first seed are drawn.

    python benchmarks/bccd.py DATA BACKBONE.safetensors [--output runs/bccd] [--seeds 0 1 2]

DATA is the Pascal VOC folder of the BCCD data set, BACKBONE the ImageNet weights of timm's tf_efficientnet_lite0.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path

from retinanet import Predictor, evaluate, load_dataset, train
from retinanet.data.transforms import Augment
from retinanet.evaluation.matching import match_image
from retinanet.plotting.draw import contact_sheet, draw_comparison
from retinanet.training.config import ImageConfig, OptimConfig, RunConfig


def train_seed(data: str, backbone: str, folder: Path, seed: int) -> None:
    """One run of 12 epochs."""
    train(
        data,
        str(folder),
        model="lite",
        weights=backbone,
        epochs=12,
        seed=seed,
        train_split="trainval",
        val_split="test",
        image=ImageConfig(short=384, long=512),
        augment=Augment(hflip=0.5, vflip=0.5),
        optim=OptimConfig(warmup=50),
        run=RunConfig(workers=1, evaluate_every=4),
    )


def draw(model: Path, data: str, folder: Path) -> None:
    """Sheets with the six test images of fewest and of most mistakes."""
    dataset, predictor = load_dataset(data, "test"), Predictor.load(model)
    ranked = []
    for index in range(len(dataset)):
        sample = dataset[index]
        detections = predictor(sample.image).above(0.3)
        judged = match_image(detections, sample.target)
        ranked.append((len(judged[1]) + len(judged[2]), index, sample, detections, judged))
    ranked.sort(key=lambda row: row[:2])
    for name, rows in (("good", ranked[:6]), ("bad", ranked[-6:])):
        pictures = [draw_comparison(s.image, detections, s.target, *judged) for _, _, s, detections, judged in rows]
        contact_sheet(pictures, columns=3, width=1600).save(folder / f"bccd-{name}.jpg", quality=85)
        print(f"{name}: " + ", ".join(f"{sample.path.stem} ({mistakes})" for mistakes, _, sample, *_ in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data")
    parser.add_argument("backbone")
    parser.add_argument("--output", type=Path, default=Path("runs/bccd"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    reports = []
    for seed in options.seeds:
        folder = options.output / f"seed{seed}"
        if not (folder / "curves.png").exists():
            train_seed(options.data, options.backbone, folder, seed)
        reports.append(evaluate(folder / "last", options.data, split="test", output=folder / "test", overwrite=True))
    print(f"{'seed':<6}{'AP':>8}{'AP50':>8}{'AP75':>8}" + "".join(f"{c.name:>12}" for c in reports[0].metrics.classes))
    rows = [(m.ap, m.ap50, m.ap75, *(c.ap for c in m.classes)) for m in (report.metrics for report in reports)]
    means = [statistics.mean(column) for column in zip(*rows, strict=True)]
    for seed, row in [*zip(options.seeds, rows, strict=True), ("mean", means)]:
        print(f"{seed!s:<6}" + "".join(f"{value:>8.4f}" for value in row[:3]) + "".join(f"{v:>12.4f}" for v in row[3:]))
    first = options.output / f"seed{options.seeds[0]}"
    draw(first / "last", options.data, options.output)
    shutil.copy(first / "curves.png", options.output / "bccd-curves.png")
    (options.output / "bccd.json").write_text(json.dumps([report.to_dict() for report in reports], indent=1) + "\n")


if __name__ == "__main__":
    main()
