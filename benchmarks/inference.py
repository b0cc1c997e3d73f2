"""One image of 640 x 640 on the CPU: torchvision's eager RetinaNet against every way to run the same weights.

The network is torchvision's retinanet_resnet50_fpn with 91 classes. Its weights are random; the last layer of the class
subnet is scaled so that a thousandth of the logits pass the score threshold, about as many as in a picture with things
in it. ``convert`` makes a model folder of these weights, so that all compute the same, and ``retinanet benchmark``
measures it. The only object of the image is made up: AP means nothing here.

    python benchmarks/inference.py [--repeats 30] [--threads 2] [--size 640] [--backends torchvision openvino-int8 ...]
        [--heads]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from torchvision.models.detection import RetinaNet, retinanet_resnet50_fpn

from retinanet import benchmark, convert
from retinanet.data.synthetic import render_scenes
from retinanet.deploy.competitors import DEFAULT, NAMES
from retinanet.images.io import read_pixels

PASSING = 1e-3  # of the logits


@torch.inference_mode()
def peer_model(image: torch.Tensor) -> RetinaNet:
    """Torchvision's model with random weights that find something in an image (3, S, S) float."""
    torch.manual_seed(0)
    size = image.shape[1]
    options = {"weights": None, "weights_backbone": None, "num_classes": 91, "min_size": size, "max_size": size}
    model = retinanet_resnet50_fpn(**options).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.8, 1.2)
    layer = model.head.classification_head.cls_logits
    features = list(model.backbone(model.transform([image])[0].tensors).values())

    def logits() -> torch.Tensor:
        return model.head(features)["cls_logits"].flatten()

    layer.weight.div_(logits().std())
    kept = logits().topk(int(PASSING * logits().numel())).values[-1]
    layer.bias.add_(float(np.log(0.05 / 0.95)) - kept)
    return model


def write_data(folder: Path, size: int) -> Path:
    """COCO data, one test image with one object of a class that the model has, and ``train``: images for int8."""
    scenes = render_scenes(folder, train=24, val=0, test=1, size=(size, size), seed=1)
    image = next((scenes / "test").iterdir())
    content = {
        "images": [{"id": 1, "file_name": image.name, "height": size, "width": size}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "person"}],
    }
    (scenes / "annotations" / "instances_test.json").write_text(json.dumps(content), encoding="utf-8")
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2, help="cores")
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--backends", nargs="+", default=list(DEFAULT), choices=NAMES, metavar="NAME")
    parser.add_argument("--heads", action="store_true", help="time exported graphs without post-processing too")
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])  # of which the runtimes take all
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        image = write_data(folder / "data", options.size)
        model = peer_model(torch.from_numpy(read_pixels(image)).permute(2, 0, 1).float() / 255)
        torch.save(model.state_dict(), folder / "weights.pth")
        sizes = {"short": options.size, "long": options.size}
        convert(str(folder / "weights.pth"), str(folder / "model"), preprocess=sizes)
        result = benchmark(
            *(str(folder / "model"), str(folder / "data")),
            backends=options.backends,
            repeats=options.repeats,
            images=1,
            batch_size=1,
            calibrate=str(folder / "data" / "train"),
            heads=options.heads,
        )
    print(result)


if __name__ == "__main__":
    main()
