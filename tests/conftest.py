"""One tiny data set and one tiny trained model, shared by the tests of training, evaluation, prediction and the CLI."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

CLASSES = {3: "disc", 7: "square"}  # category ids with gaps, as COCO has them
HEIGHT, WIDTH = 64, 80
COUNTS = {"train": 6, "val": 3, "test": 3}


def draw_scene(dice, objects):
    """A noisy picture and its objects, (category, xywh) each."""
    picture = Image.effect_noise((WIDTH, HEIGHT), 40).convert("RGB")
    pen = ImageDraw.Draw(picture)
    found = []
    for _ in range(objects):
        side, category = dice.randint(12, 30), dice.choice(list(CLASSES))
        x, y = dice.randint(0, WIDTH - side), dice.randint(0, HEIGHT - side)
        corners = (x, y, x + side - 1, y + side - 1)
        if category == 3:
            pen.ellipse(corners, fill=(220, 40, 40))
        else:
            pen.rectangle(corners, fill=(40, 60, 220))
        found.append((category, [x, y, side, side]))
    return picture, found


def write_split(folder, split, count, dice):
    """Images and COCO annotations; the second image has no objects, the first a crowd as well."""
    (folder / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for index in range(count):
        picture, found = draw_scene(dice, 0 if index == 1 else 3)
        name = f"{split}_{index}.png"
        picture.save(folder / split / name)
        images.append({"id": index + 10, "file_name": name, "height": HEIGHT, "width": WIDTH})
        for number, (category, bbox) in enumerate(found):
            crowd = int(index == 0 and number == 2)
            entry = {"image_id": index + 10, "category_id": category, "bbox": bbox, "area": bbox[2] * bbox[3]}
            annotations.append({"id": len(annotations) + 1, **entry, "iscrowd": crowd})
    categories = [{"id": key, "name": name} for key, name in CLASSES.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A COCO data set with the splits train (6 images), val (3) and test (3). Read only: see ``data_copy``."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    dice = random.Random(0)
    for split, count in COUNTS.items():
        write_split(folder, split, count, dice)
    return folder


@pytest.fixture
def data_copy(data, tmp_path) -> Path:
    """The data set, to be spoilt."""
    return Path(shutil.copytree(data, tmp_path / "shapes"))


@pytest.fixture(scope="session")
def tiny():
    """Options of ``train`` for a run of a second; options given are added, nested ones field by field."""
    from dataclasses import replace

    from retinanet.model.postprocess import Postprocess
    from retinanet.training.config import ImageConfig, OptimConfig, RunConfig

    whole = {
        "model": "resnet18",
        "weights": "none",
        "epochs": 2,
        "batch_size": 3,
        "architecture": {
            "backbone": "resnet10t",
            "channels": 32,
            "depth": 1,
            "anchors": {"sizes": [8, 16, 32, 64, 128]},
        },
        "image": ImageConfig(short=64, long=96),
        "optim": OptimConfig(warmup=1),
        # without a score threshold even an untrained model finds something
        "postprocess": Postprocess(score=0.0, topk=50, max_detections=20),
        "run": RunConfig(accelerator="cpu", precision="32", workers=0),
    }

    def options(**changes):
        merged = dict(whole)
        for key, change in changes.items():
            nested = isinstance(change, dict)
            if nested and key == "architecture":
                merged[key] = {**merged[key], **change}
            elif nested:
                merged[key] = replace(merged[key], **change)
            else:
                merged[key] = change
        return merged

    return options


@pytest.fixture(scope="session")
def trained(data, tiny, tmp_path_factory) -> Path:
    """The folder of a finished run of 2 epochs, 4 steps. Read only."""
    from retinanet.training.run import train

    folder = tmp_path_factory.mktemp("runs") / "first"
    train(str(data), str(folder), **tiny())
    return folder


@pytest.fixture(scope="session")
def tiny_words():
    """The same options as ``tiny``, as words of the command line."""
    text = (
        "--model resnet18 --weights none --epochs 2 --batch-size 3 --architecture.backbone resnet10t "
        "--architecture.channels 32 --architecture.depth 1 --architecture.anchors.sizes [8,16,32,64,128] "
        "--image.short 64 --image.long 96 --optim.warmup 1 --postprocess.score 0 --postprocess.topk 50 "
        "--postprocess.max_detections 20 --run.accelerator cpu --run.precision 32 --run.workers 0"
    )
    return text.split()


@pytest.fixture
def assembled(data, tiny, tmp_path):
    """Builds a ``Training`` and its log, as ``train`` does before it starts; the options are those of ``tiny``."""
    import torch

    from retinanet.data.dataset import training_datasets
    from retinanet.data.transforms import Augment
    from retinanet.training.config import LossConfig
    from retinanet.training.precision import build_fabric
    from retinanet.training.run import assemble
    from retinanet.training.start import build_detector

    def build(**changes):
        config = {
            "seed": 0,
            "output": str(tmp_path / "run"),
            "augment": Augment(),
            "loss": LossConfig(),
            **tiny(**changes),
        }
        torch.manual_seed(config["seed"])
        train_set, val_set = training_datasets(config.pop("data", data))
        detector = build_detector(
            config["model"],
            config["weights"],
            train_set,
            config["architecture"],
            config["image"],
            config["postprocess"],
        )
        (tmp_path / "run").mkdir(exist_ok=True)
        return assemble(build_fabric(config["run"]), detector, train_set, val_set, config)

    return build
