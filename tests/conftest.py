"""One tiny data set, one tiny trained model, and random samples with detections, shared by the tests."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from retinanet.types import Detections, Sample, Target

CLASSES = {3: "disc", 7: "square"}  # category ids with gaps, as COCO has them
HEIGHT, WIDTH = 64, 80
COUNTS = {"train": 6, "val": 3, "test": 3}
NAMES = ("a", "b", "c")  # of the random samples and detections
# These files take longest, the longest first.
LONG = [
    "test_export.py",
    "test_job.py",
    "test_ending.py",
    "test_torchvision.py",
    "test_nodes.py",
    "test_distributed.py",
    "test_peers.py",
    "test_output.py",
    "test_atss.py",
    "test_detect.py",
]


def pytest_collection_modifyitems(items):
    """Long files first: else one process has such a file left at the end while the other has nothing to do."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


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


@pytest.fixture(autouse=True)
def empty_curves(monkeypatch):
    """Draw no curves of a run: of a run of a second that takes half. Those of ``trained`` and other shared runs are."""
    from matplotlib.figure import Figure

    if run := sys.modules.get("retinanet.training.run"):
        monkeypatch.setattr(run, "training_curves", lambda rows: Figure(figsize=(1, 1)))


@pytest.fixture(scope="session")
def graphs():
    """The module of the tests of inference that writes graphs, for the tests of other packages."""
    path = Path(__file__).parent / "inference" / "conftest.py"
    spec = importlib.util.spec_from_file_location("graphs", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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

    from retinanet.training.config import ImageConfig, OptimConfig, PostprocessConfig, RunConfig

    whole = {
        "model": "resnet18",
        "weights": "none",
        "epochs": 2,
        "batch_size": 3,
        "architecture": {
            "backbone": "test_resnet",
            "channels": 32,
            "depth": 1,
            "anchors": {"sizes": [8, 16, 32, 64, 128]},
        },
        "image": ImageConfig(short=64, long=96),
        "optim": OptimConfig(warmup=1),
        # without a score threshold even an untrained model finds something
        "postprocess": PostprocessConfig(score=0.0, topk=50, max_detections=20),
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
        "--model resnet18 --weights none --epochs 2 --batch-size 3 --architecture.backbone test_resnet "
        "--architecture.channels 32 --architecture.depth 1 --architecture.anchors.sizes [8,16,32,64,128] "
        "--image.short 64 --image.long 96 --optim.warmup 1 --postprocess.score 0 --postprocess.topk 50 "
        "--postprocess.max_detections 20 --run.accelerator cpu --run.precision 32 --run.workers 0"
    )
    return text.split()


@pytest.fixture(scope="session")
def train_config():
    """Makes a ``TrainConfig`` of options of ``train``; those left out have the defaults of its signature."""
    import inspect

    from retinanet.training.given import complete
    from retinanet.training.run import train

    parameters = inspect.signature(train).parameters
    others = ("resume", "plan", "budget", "callbacks")
    defaults = {name: parameter.default for name, parameter in parameters.items() if name not in others}
    return lambda **options: complete({**defaults, **options})


@pytest.fixture
def assembled(data, tiny, tmp_path, train_config):
    """Builds a ``Training`` and its log, as ``train`` does before it starts; the options are those of ``tiny``."""
    import torch

    from retinanet.training.build import Training
    from retinanet.training.precision import build_fabric
    from retinanet.training.start import build_detector, load_sets

    def build(**changes):
        config = train_config(**{"data": str(data), "output": str(tmp_path / "run"), **tiny(**changes)})
        torch.manual_seed(config.seed)
        train_set, val_set = load_sets(config, None)
        detector = build_detector(config, train_set)
        config.folder.mkdir(exist_ok=True)
        return Training(config, build_fabric(config.run), detector, train_set, val_set)

    return build


# --- annotated images and detections made by chance, for matching and error analysis ---


def as_sample(boxes, labels, ignore=None, image_id=0, size=(1000, 10_000)):
    boxes = torch.tensor(np.asarray(boxes), dtype=torch.float64).reshape(-1, 4)
    ignore = [False] * len(boxes) if ignore is None else ignore
    target = Target(boxes, torch.tensor(labels, dtype=torch.int64), torch.tensor(ignore, dtype=torch.bool))
    return Sample(Path(f"{image_id}.png"), image_id, size, target, (boxes[:, 2:] - boxes[:, :2]).prod(1))


def as_detections(boxes, scores, labels, names=NAMES):
    boxes = torch.tensor(np.asarray(boxes), dtype=torch.float32).reshape(-1, 4)
    return Detections(boxes, torch.tensor(scores, dtype=torch.float32), torch.tensor(labels, dtype=torch.int64), names)


def chance(seed, *, images=8, ties=False, ignore=0.15, found=5):
    """Samples and detections: objects found several times, badly, as another class, not at all; and false alarms.

    With ``ties`` boxes and scores come from a coarse grid, so that equal IoUs and equal scores abound.
    """
    dice = np.random.default_rng(seed)
    samples, detections = [], []
    for image_id in dice.permutation(images).tolist():
        count = int(dice.integers(0, 9))
        corner, side = dice.uniform(0, 300, (count, 2)), np.exp(dice.uniform(2, 5, (count, 2)))
        boxes = np.concatenate([corner, corner + side], axis=1)
        labels = dice.integers(0, len(NAMES), count)
        copies = np.repeat(np.arange(count), dice.integers(0, found, count))
        guessed = boxes[copies] + dice.normal(0, 0.17, (len(copies), 4)) * np.tile(side[copies], 2)
        wrong = dice.uniform(size=len(copies)) < 0.25
        given = np.where(wrong, dice.integers(0, len(NAMES), len(copies)), labels[copies])
        corner = dice.uniform(0, 300, (4, 2))
        guessed = np.concatenate([guessed, np.concatenate([corner, corner + dice.uniform(8, 90, (4, 2))], axis=1)])
        given = np.concatenate([given, dice.integers(0, len(NAMES), 4)])
        scores = dice.uniform(0.01, 1, len(guessed))
        if ties:
            boxes, guessed, scores = (np.round(boxes / 32) * 32, np.round(guessed / 32) * 32, np.round(scores * 8) / 8)
            boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 32)
        guessed[:, 2:] = np.maximum(guessed[:, 2:], guessed[:, :2] + 4)
        samples.append(as_sample(boxes, labels, dice.uniform(size=count) < ignore, image_id))
        detections.append(as_detections(guessed, scores, given))
    return samples, detections


@pytest.fixture
def make_scene():
    """``chance``: samples and detections of three classes a, b, c."""
    return chance


@pytest.fixture
def make_sample():
    """``as_sample``: one annotated image from lists."""
    return as_sample


@pytest.fixture
def make_detections():
    """``as_detections``: the detections of one image from lists."""
    return as_detections


@pytest.fixture(scope="session")
def full_spec():
    """A description of a model in which nothing has its default, so that nothing can be lost without a difference."""
    from retinanet.anchors.coding import BoxCoder
    from retinanet.anchors.lattice import AnchorLattice, LatticeCompat
    from retinanet.images.preprocess import Preprocess, PreprocessCompat
    from retinanet.images.tiling import Tiling
    from retinanet.losses.config import LossConfig
    from retinanet.model.postprocess import Postprocess, PostprocessCompat
    from retinanet.model.presets import Architecture
    from retinanet.spec import ModelSpec

    return ModelSpec(
        class_names=("Ameise", "пчела", "cow 3"),
        preprocess=Preprocess(
            short=64,
            long=96,
            multiple=64,
            mean=(0.1, 0.2, 0.3),
            std=(0.4, 0.5, 0.6),
            compat=PreprocessCompat(margin=1, divisor=128.0, channels="BGR", rounding="floor", resampling="plain"),
        ),
        postprocess=Postprocess(
            score=0.25,
            topk=50,
            nms=0.4,
            max_detections=20,
            class_agnostic=True,
            vote=0.7,
            compat=PostprocessCompat(clip="half", keep_empty=True),
        ),
        architecture=Architecture(
            backbone="test_resnet",
            norm="batch",
            frozen_stages=1,
            stride_in_1x1=True,
            norm_eps=1e-3,
            channels=64,
            depth=1,
            head_norm="group",
            head_init="he",
            depthwise=True,
            shared=True,
            p6_from="P5",
            relu_before_p7=False,
            prior=0.3,
            anchors=AnchorLattice(
                sizes=(16, 32, 64, 128, 256.5),
                ratios=(0.5, 2.0),
                scales=(1.0,),
                offset=0.0,
                compat=LatticeCompat(rounding="corners", inclusive=True, floor_strides=True),
            ),
            coder=BoxCoder(std=(0.1, 0.1, 0.2, 0.2), clamp=3.0, clamp_below=True),
        ),
        thresholds={"пчела": 0.3125, "cow 3": 0.7},
        scale=0.8,
        tiling=Tiling(tile=2048, overlap=100),
        metrics={"AP": 0.58, "of": "val"},
        plan={"epochs": {"value": 12, "reason": "the paper's schedule"}},
        data={"train": "bees train", "sha256": "00"},
        loss=LossConfig(
            classification="focal",
            alpha=0.5,
            gamma=1.5,
            box="l1",
            beta=0.2,
            box_weight=3.0,
            matching="iou",
            cells=4,
            foreground=0.6,
            background=0.3,
            forced="off",
            forced_iou=0.1,
            normaliser="image",
            ohem_batch=7,
            ohem_nms=0.3,
            ohem_ratio=2.0,
        ),
    )


@pytest.fixture(scope="session")
def full_detector(full_spec):
    """A network of it, with weights and statistics that are not those of a new one. Read only."""
    import torch

    from retinanet.detector import Detector

    torch.manual_seed(0)
    net = full_spec.architecture.build(3)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight.data, 0.5, 1.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            module.num_batches_tracked.fill_(7)
    for tower in (net.heads.cls, net.heads.box):
        torch.nn.init.normal_(tower.output.weight, std=0.5)
    return Detector(full_spec, net.eval())
