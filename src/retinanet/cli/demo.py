"""``retinanet demo``: what a user does with data of their own, on a data set that the package renders."""

from __future__ import annotations

import time
from pathlib import Path

from retinanet.data.dataset import load_dataset
from retinanet.data.synthetic import render_scenes
from retinanet.data.transforms import Augment
from retinanet.errors import UserError
from retinanet.evaluation.evaluate import evaluate
from retinanet.evaluation.matching import match_image
from retinanet.inference.predictor import Predictor
from retinanet.plotting.draw import contact_sheet, draw_comparison
from retinanet.prediction import predict
from retinanet.training.config import ImageConfig, OptimConfig, RunConfig
from retinanet.training.run import train
from retinanet.types import Sample

# What learns from random weights in two minutes on two cores: small objects need small anchors, narrow towers need
# group norm, because the paper's initialisation fades out in them.
ARCHITECTURE = {
    "backbone": "resnet10t",
    "channels": 64,
    "depth": 2,
    "head_norm": "group",
    "anchors": {"sizes": [16, 32, 64, 128, 256]},
}


def demo(output: str = "runs/demo", *, epochs: int = 6, seed: int = 0) -> float:
    """Render scenes, train a small RetinaNet from random weights, evaluate it, and predict on new scenes.

    Args:
        output: a new folder; its subfolders are data, model (the run), test and predictions.
        epochs: passes over the training scenes.
        seed: of the scenes, the weights and the augmentation.

    Returns:
        AP on the held-out test scenes.

    Raises:
        UserError: the output folder is not empty.
    """
    began = time.perf_counter()
    folder = Path(output)
    model = folder / "model"
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--output {folder} is not empty. Remove it or choose another --output")
    data = render_scenes(folder / "data", seed=seed)
    _tell(began, f"scenes rendered, a COCO data set: {data}")
    train(
        str(data),
        str(model),
        model="resnet18",
        weights="none",
        epochs=epochs,
        batch_size=4,
        seed=seed,
        architecture=ARCHITECTURE,
        image=ImageConfig(short=256, long=320),
        augment=Augment(hflip=0.5, vflip=0.5),
        optim=OptimConfig(lr=1e-3, lr_batch=4, warmup=30),
        run=RunConfig(evaluate_every=3, workers=0),
    )
    report = evaluate(model, data, split="test", output=folder / "test")
    print(report)
    _tell(began, f"AP on held-out scenes: {report.metrics.ap:.3f}")
    predict(str(model), [str(data / "test")], output=str(folder / "predictions"), overwrite=True)
    _compare(model, data)
    for what, where in (
        ("the model", model),
        ("the curves", model / "curves.png"),
        ("annotated pictures", folder / "predictions" / "pictures"),
        ("hits, misses and false alarms", folder / "comparison.png"),
    ):
        print(f"{what}: {where}")
    _tell(began, "done")
    return report.metrics.ap


def _compare(model: Path, data: Path) -> None:
    """One sheet with the six most crowded test scenes."""
    dataset = load_dataset(data, "test")
    predictor = Predictor.load(model)
    order = sorted(range(len(dataset)), key=lambda index: -len(dataset.samples[index].target))[:6]
    samples: list[Sample] = [dataset[index] for index in order]
    pictures = []
    for sample in samples:
        assert sample.image is not None
        shown = predictor(sample.image).above(predictor.thresholds)
        judged = match_image(shown, sample.target)
        pictures.append(draw_comparison(sample.image, shown, sample.target, *judged, zoom=2))
    contact_sheet(pictures, columns=3, width=2000).save(model.with_name("comparison.png"))


def _tell(began: float, text: str) -> None:
    print(f"[{time.perf_counter() - began:4.0f} s] {text}", flush=True)
