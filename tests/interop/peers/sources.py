"""The real networks of the other projects, with their own code for anchors, detections and preprocessing.

Nothing of those projects is stored or copied: a checkout of each has to be on ``PYTHONPATH`` (see README.md).
"""

from __future__ import annotations

import collections
import dataclasses
import importlib.abc
import importlib.machinery
import json
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from deterministic import fill
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import boxes as box_ops

SHORT, LONG = 128, 213  # small stand-ins for 800 and 1333
Outputs = tuple[list[Tensor], list[Tensor], list[Tensor]]
Found = tuple[Tensor, Tensor, Tensor]


@dataclasses.dataclass
class Peer:
    """One source: its module and its own code as plain functions."""

    module: nn.Module
    first: nn.Module  # its input is the preprocessed batch
    stem_gain: float
    size: tuple[int, int]
    network: Callable[[Tensor], Outputs]  # batch -> features, logits, deltas, all NCHW
    anchors: Callable[[Tensor], Tensor]  # batch -> (sum of cells * 9, 4)
    detect: Callable[[Tensor], Found]  # batch -> boxes, scores, labels
    photo: Callable[[np.ndarray], Found]  # RGB uint8 image -> the same in its own pixels
    decode: Callable[[Tensor, Tensor], Tensor]  # anchors, deltas -> boxes, clipped where the source clips


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Lets a compiled module that nobody calls be imported: every attribute is an empty module class."""

    def __init__(self, *roots: str) -> None:
        self.roots = roots
        sys.meta_path.insert(0, self)

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        inside = any(name == root or name.startswith(root + ".") for root in self.roots)
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if inside else None

    def create_module(self, spec):  # type: ignore[no-untyped-def]
        module = types.ModuleType(spec.name)
        module.__getattr__ = lambda name: self.attribute(name)  # type: ignore[method-assign]
        return module

    def exec_module(self, module):  # type: ignore[no-untyped-def]
        pass

    @staticmethod
    def attribute(name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (nn.Module,), {})


class IntegerDivision(torch.overrides.TorchFunctionMode):
    """``integer tensor / integer`` floors, as it did in the torch releases that odtk's CPU path was written for."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        divides = func.__name__ in ("div", "__truediv__", "true_divide") and isinstance(args[0], Tensor)
        if divides and not args[0].is_floating_point() and isinstance(args[1], int):
            return torch.div(args[0], args[1], rounding_mode="floor")
        return func(*args, **(kwargs or {}))


def photo_file(folder: str, image: np.ndarray) -> dict:
    """Write an image as PNG and return the COCO file's content that names it."""
    Image.fromarray(image).save(Path(folder) / "photo.png")
    entry = {"id": 1, "file_name": "photo.png", "height": image.shape[0], "width": image.shape[1]}
    return {"images": [entry], "annotations": [], "categories": [{"id": 1, "name": "thing"}]}


def yhenon() -> Peer:
    """yhenon/pytorch-retinanet."""
    from retinanet import dataloader, model

    net = model.resnet50(num_classes=80).eval()

    def network(x: Tensor) -> Outputs:
        c2 = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(x)))))
        c3 = net.layer2(c2)
        c4 = net.layer3(c3)
        features = net.fpn([c3, c4, net.layer4(c4)])
        kept: list[Tensor] = []  # the head ends with a sigmoid: take what its output layer gives
        hooks = [
            head.output.register_forward_hook(lambda m, i, o: kept.append(o))
            for head in (net.classificationModel, net.regressionModel)
        ]
        for feature in features:
            net.classificationModel(feature)
            net.regressionModel(feature)
        for hook in hooks:
            hook.remove()
        return features, kept[0::2], kept[1::2]

    def detect(x: Tensor) -> Found:
        scores, labels, boxes = net(x)
        return boxes, scores, labels

    def photo(image: np.ndarray) -> Found:
        with tempfile.TemporaryDirectory() as root:
            for folder in ("annotations", "images/set"):
                (Path(root) / folder).mkdir(parents=True)
            coco = photo_file(f"{root}/images/set", image)
            Path(root, "annotations/instances_set.json").write_text(json.dumps(coco))
            sample = dataloader.CocoDataset(root, "set", transform=dataloader.Normalizer())[0]
        sample = dataloader.Resizer()(sample, min_side=SHORT, max_side=LONG)
        boxes, scores, labels = detect(sample["img"].permute(2, 0, 1).float().unsqueeze(0))
        return boxes / sample["scale"], scores, labels

    def decode(anchors: Tensor, deltas: Tensor) -> Tensor:
        return net.clipBoxes(net.regressBoxes(anchors[None], deltas[None]), torch.zeros(1, 3, 128, 192))[0]

    return Peer(net, net.conv1, 1.0, (128, 192), network, lambda x: net.anchors(x)[0], detect, photo, decode)


def detectron2() -> Peer:
    """facebookresearch/detectron2, COCO-Detection/retinanet_R_50_FPN_1x."""
    StandIns("detectron2._C")
    import detectron2 as package
    from detectron2.config import get_cfg
    from detectron2.engine import DefaultPredictor
    from detectron2.modeling.postprocessing import detector_postprocess
    from detectron2.structures import ImageList

    cfg = get_cfg()
    cfg.merge_from_file(str(Path(package.__file__).parents[1] / "configs/COCO-Detection/retinanet_R_50_FPN_1x.yaml"))
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = SHORT, LONG
    predictor = DefaultPredictor(cfg)
    net = predictor.model

    def network(x: Tensor) -> Outputs:
        levels = net.backbone(x)
        features = [levels[name] for name in net.head_in_features]
        return (features, *net.head(features))

    def plain(found) -> Found:  # type: ignore[no-untyped-def]
        return found.pred_boxes.tensor, found.scores, found.pred_classes

    def detect(x: Tensor) -> Found:
        features, logits, deltas = network(x)
        size = tuple(x.shape[-2:])
        found = net.forward_inference(ImageList(x, [size]), features, [logits, deltas])[0]
        return plain(detector_postprocess(found, *size))

    return Peer(
        module=net,
        first=net.backbone.bottom_up.stem.conv1,
        stem_gain=1 / 64,
        size=(128, 192),
        network=network,
        anchors=lambda x: torch.cat([level.tensor for level in net.anchor_generator(network(x)[0])]),
        detect=detect,
        photo=lambda image: plain(predictor(np.ascontiguousarray(image[..., ::-1]))["instances"]),
        decode=lambda anchors, deltas: net.box2box_transform.apply_deltas(deltas, anchors),
    )


def mmdetection(caffe: bool = False) -> Peer:
    """open-mmlab/mmdetection, retinanet_r50_fpn_1x_coco, or the caffe variant of it."""
    compiled = StandIns("mmcv.ops")

    def batched_nms(boxes, scores, labels, cfg):  # type: ignore[no-untyped-def]
        keep = box_ops._batched_nms_coordinate_trick(boxes, scores, labels, cfg["iou_threshold"])
        return torch.cat([boxes[keep], scores[keep, None]], 1), keep

    compiled.attribute = lambda name: batched_nms if name == "batched_nms" else StandIns.attribute(name)  # type: ignore
    import mmdet
    from mmdet.apis import inference_detector, init_detector

    name = "retinanet_r50-caffe_fpn_1x_coco.py" if caffe else "retinanet_r50_fpn_1x_coco.py"
    net = init_detector(
        str(Path(mmdet.__file__).parent / ".mim/configs/retinanet" / name),
        device="cpu",
        palette="coco",
        cfg_options={"model.backbone.init_cfg": None},
    )
    for step in net.cfg.test_dataloader.dataset.pipeline:
        if step.type == "Resize":
            step.scale = (LONG, SHORT)

    def network(x: Tensor) -> Outputs:
        features = net.extract_feat(x)
        logits, deltas = net.bbox_head(features)
        return list(features), list(logits), list(deltas)

    def detect(x: Tensor) -> Found:
        _, logits, deltas = network(x)
        meta = {"img_shape": tuple(x.shape[-2:]), "scale_factor": (1.0, 1.0)}
        found = net.bbox_head.predict_by_feat(logits, deltas, batch_img_metas=[meta], rescale=True)[0]
        return found.bboxes, found.scores, found.labels

    def photo(image: np.ndarray) -> Found:
        found = inference_detector(net, np.ascontiguousarray(image[..., ::-1])).pred_instances
        return found.bboxes, found.scores, found.labels

    def anchors(x: Tensor) -> Tensor:
        sizes = [level.shape[-2:] for level in network(x)[0]]
        return torch.cat(net.bbox_head.prior_generator.grid_priors(sizes, device="cpu"))

    def decode(anchors: Tensor, deltas: Tensor) -> Tensor:
        return net.bbox_head.bbox_coder.decode(anchors, deltas, max_shape=(128, 192))

    gain = 1 / 64 if caffe else 1.0
    return Peer(net, net.backbone.conv1, gain, (128, 192), network, anchors, detect, photo, decode)


def odtk() -> Peer:
    """NVIDIA/retinanet-examples on its CPU path, with the fixed batch norm that its trainer saves."""
    StandIns("odtk._C", "apex", "nvidia.dali", "requests")
    from torchvision.models import mobilenet, resnet

    for module in (resnet, mobilenet):  # removed from torchvision; only read for a download that is not made
        module.model_urls = collections.defaultdict(str)
    from odtk import box, data
    from odtk.backbones.layers import convert_fixedbn_model
    from odtk.model import Model

    net = convert_fixedbn_model(Model(backbones="ResNet50FPN", classes=80)).eval()

    def network(x: Tensor) -> Outputs:
        features = net.backbones["ResNet50FPN"](x)
        return features, [net.cls_head(f) for f in features], [net.box_head(f) for f in features]

    def anchors(x: Tensor) -> Tensor:
        rows = []
        for level in network(x)[0]:
            height, width = level.shape[-2:]
            stride = x.shape[-1] // width
            y, x0 = (torch.arange(n).float() * stride for n in (height, width))
            y, x0 = torch.meshgrid(y, x0, indexing="ij")
            cells = torch.stack([x0, y, x0, y], -1).view(-1, 1, 4)
            rows.append((cells + box.generate_anchors(stride, net.ratios, net.scales)).view(-1, 4))
        return torch.cat(rows)

    def detect(x: Tensor) -> Found:
        with IntegerDivision():
            scores, boxes, labels = net(x)
        keep = scores[0] > 0
        return boxes[0][keep], scores[0][keep], labels[0][keep]

    def photo(image: np.ndarray) -> Found:
        with tempfile.TemporaryDirectory() as root:
            Path(root, "coco.json").write_text(json.dumps(photo_file(root, image)))
            batch, _, ratio = next(iter(data.DataIterator(root, SHORT, LONG, 1, 128, 1, f"{root}/coco.json")))
        boxes, scores, labels = detect(batch)
        return boxes / ratio[0], scores, labels

    return Peer(
        module=net,
        first=net.backbones["ResNet50FPN"].features.conv1,
        stem_gain=1.0,
        size=(128, 256),  # a multiple of 128, which this source needs for its strides
        network=network,
        anchors=anchors,
        detect=detect,
        photo=photo,
        decode=lambda anchors, deltas: box.delta2box(deltas, anchors, [32, 16], 8),
    )


SOURCES: dict[str, Callable[[], Peer]] = {
    "yhenon": yhenon,
    "detectron2": detectron2,
    "mmdetection": mmdetection,
    "mmdetection_caffe": lambda: mmdetection(caffe=True),
    "odtk": odtk,
}


def load(source: str) -> Peer:
    """A real model with the deterministic weights, in evaluation mode on the CPU."""
    torch.set_num_threads(2)
    peer = SOURCES[source]()
    peer.module.load_state_dict(fill(peer.module.state_dict(), peer.stem_gain))
    peer.module.eval()
    return peer
