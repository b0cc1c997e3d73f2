"""Tiny detectors with random weights that find a crowd in any picture, and pictures whose labels are what they find."""

from __future__ import annotations

import hashlib
import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from retinanet.data.painting import paint
from retinanet.data.scenes import plan_scene
from retinanet.deploy.export import export
from retinanet.deploy.onnx import to_onnx
from retinanet.deploy.quantise import quantise_model
from retinanet.detector import Detector
from retinanet.digest import file_sha256
from retinanet.images.preprocess import Preprocess
from retinanet.inference.exported import OUTPUTS, ExportedModel
from retinanet.inference.predictor import Predictor
from retinanet.inference.pt2 import load_pt2
from retinanet.model.postprocess import Postprocess
from retinanet.model.presets import Architecture
from retinanet.spec import ModelSpec

SHORT = 160  # of the pictures as well, so that nothing is resized
RULE = Preprocess(short=SHORT, long=320)
SIZES = ((160, 192), (160, 160), (224, 160), (160, 250))  # height and width of the pictures, in turn


@torch.no_grad()
def shaken(net, seed=0):
    """Random statistics in all batch norms, and heads whose scores and boxes vary as those of a trained network do."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low, high in (
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.6, 1.6),
                (module.weight, 0.7, 1.3),
                (module.bias, -0.2, 0.2),
            ):
                value.copy_(torch.empty_like(value).uniform_(low, high, generator=generator))
    net.eval()
    image = torch.rand(1, 3, 64, 64, generator=generator).repeat_interleave(4, 2).repeat_interleave(4, 3) * 4 - 2
    for head, outputs, spread, mean in ((net.heads.cls, 0, 1.0, -3.5), (net.heads.box, 1, 0.3, 0.0)):
        raw = net(image)
        values = torch.cat([level.flatten() for level in (raw.logits, raw.deltas)[outputs]])
        head.output.weight.mul_(spread / values.std())
        head.output.bias.fill_(mean)
    return net


def make(backbone="test_resnet", names=("disc", "star"), rule=RULE, post=None, **architecture):
    """A detector that is never trained."""
    torch.manual_seed(0)
    made = Architecture(**{"backbone": backbone, "channels": 16, "depth": 1, **architecture})
    spec = ModelSpec(
        class_names=tuple(names),
        preprocess=rule,
        postprocess=post or Postprocess(score=0.1, topk=200, max_detections=60),
        architecture=made,
        thresholds={names[0]: 0.35},
        scale=1.5,
        metrics={"AP": 0.25},
    )
    return Detector(spec, shaken(made.build(len(names))))


@pytest.fixture(scope="session")
def build():
    """Makes a detector: see :func:`make`."""
    return make


@pytest.fixture(scope="session")
def detector():
    """The detector of the folder ``model``."""
    return make()


@pytest.fixture(scope="session")
def model(detector, tmp_path_factory) -> Path:
    """A model folder. Read only."""
    folder = tmp_path_factory.mktemp("model") / "m"
    detector.save(folder)
    return folder


@pytest.fixture(scope="session")
def labelled(model, tmp_path_factory) -> Path:
    """COCO data, train and test, whose objects are the best that the model finds, so that its AP is far from 0."""
    root = tmp_path_factory.mktemp("labelled") / "set"
    (root / "annotations").mkdir(parents=True)
    predictor = Predictor.load(model, device="cpu")
    for number, split in enumerate(("train", "test")):
        (root / split).mkdir()
        images, objects = [], []
        for index, size in enumerate(SIZES):
            name = f"{split}_{index}.png"
            picture = np.asarray(paint(plan_scene(number, "labelled", index + 1, size)))
            Image.fromarray(picture).save(root / split / name)
            images.append({"id": index, "file_name": name, "height": size[0], "width": size[1]})
            found = predictor(root / split / name)
            for (left, top, right, bottom), label in zip(
                found.boxes[:8].tolist(), found.labels[:8].tolist(), strict=True
            ):
                box = [left, top, right - left, bottom - top]
                entry = {"image_id": index, "category_id": label + 1, "bbox": box, "area": box[2] * box[3]}
                objects.append({"id": len(objects) + 1, "iscrowd": 0, **entry})
        categories = [{"id": k + 1, "name": name} for k, name in enumerate(predictor.class_names)]
        content = {"images": images, "annotations": objects, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def hash_of(*parts) -> str:
    """A name for bytes and for what has a telling ``repr``."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part if isinstance(part, bytes) else repr(part).encode())
    return total.hexdigest()


@pytest.fixture(scope="session")
def converted_once(tmp_path_factory):
    """The exporter and NNCF take most of the time of these tests: what they made of the same detector is kept.

    In a folder that the processes of this run of the tests share.
    """
    root = tmp_path_factory.getbasetemp()
    kept = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "converted"
    kept.mkdir(exist_ok=True)

    def keep(key, make):
        if not (file := kept / f"{key}.onnx").exists():
            draft = kept / f"{key}.{os.getpid()}"
            onnx.save(make(), draft)
            os.replace(draft, file)
        return onnx.load(file)

    def convert(detector, card, real=to_onnx):
        spec = detector.spec
        rules = spec.architecture, spec.preprocess, spec.postprocess, spec.class_names, card.raw
        weights = (value.numpy().tobytes() for value in detector.net.state_dict().values())
        return keep(hash_of(*rules, *weights), lambda: real(detector, card))

    def quantise(model, spec, images, *, keep_class_output, real=quantise_model):
        make = partial(real, model, spec, images, keep_class_output=keep_class_output)
        if not isinstance(model, onnx.ModelProto):
            return make()
        pixels = (path.read_bytes() for path in images)
        return keep(hash_of(model.SerializeToString(), spec.preprocess, keep_class_output, *pixels), make)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retinanet.deploy.onnx.to_onnx", convert)
        patch.setattr("retinanet.deploy.quantise.quantise_model", quantise)
        yield


@pytest.fixture(scope="session")
def loaded_once():
    """torch takes seconds to read a pt2 file: the graph of one with the same bytes is kept."""
    graphs = {}

    def load(path, read, *, trust=False, trust_code=False, real=load_pt2):
        if (key := (file_sha256(path), trust, trust_code)) not in graphs:
            graphs[key] = real(path, read, trust=trust, trust_code=trust_code)
        kept = graphs[key]
        return ExportedModel(read(kept.card.to_json(), OUTPUTS)[0], kept.graph, runtime="torch.export", streams=1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retinanet.inference.pt2.load_pt2", load)
        yield


@pytest.fixture(scope="session")
def exported(model, labelled, converted_once, loaded_once, tmp_path_factory):
    """Exports the model, once: ``exported("onnx", "int8")`` -> the report. Read only."""
    root = tmp_path_factory.mktemp("exported")
    made = {}

    def folder(form, precision="fp32", raw=False):
        key = (form, precision, raw)
        if key not in made:
            options = {"calibrate": str(labelled / "train")} if precision == "int8" else {}
            place = str(root / f"{form}-{precision}-{raw}")
            made[key] = export(str(model), format=form, precision=precision, raw=raw, output=place, **options)
        return made[key]

    return folder
