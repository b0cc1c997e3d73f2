"""One training step: ours against torchvision's RetinaNet with the same ResNet-50 backbone, batch, size and precision.

Both start from decoded uint8 images on the CPU and end with updated weights: normalising, forward, matching, loss,
backward, SGD. Both train every layer over frozen batch norms, take P6 from C5, and have 80 classes and 9 anchors.
torchvision runs as its reference does, our side as ``retinanet train`` does: channels_last, the same ``train_step``,
gradient clipping; bf16 is its default on a CPU that computes in it. Neither keeps a moving average. The four take
turns within one process; times are medians.

    python benchmarks/train_step.py [--size 640] [--batch 2] [--boxes 20] [--repeats 5] [--threads 2]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import Tensor
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from retinanet.data.dataset import DetectionDataset
from retinanet.data.loader import StepSampler
from retinanet.data.transforms import Augment
from retinanet.deploy.measure import describe_machine, time_in_turns
from retinanet.detector import Detector
from retinanet.images.preprocess import Preprocess
from retinanet.model.presets import preset
from retinanet.spec import ModelSpec
from retinanet.training.build import Training
from retinanet.training.config import ImageConfig, LossConfig, OptimConfig, PostprocessConfig, RunConfig, TrainConfig
from retinanet.training.loop import train_step
from retinanet.training.precision import build_fabric
from retinanet.types import Batch, Sample, Target

CLASSES, LR = 80, 1e-4
Step = Callable[[], None]


def samples(count: int, size: int, boxes: int) -> list[Sample]:
    """Random images with random boxes of 16 to 200 pixels."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for index in range(count):
        image = torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator)
        corner = torch.rand(boxes, 2, generator=generator) * (size - 200)
        sides = 16 + torch.rand(boxes, 2, generator=generator) * 184
        labels = torch.randint(0, CLASSES, (boxes,), generator=generator)
        target = Target(torch.cat([corner, corner + sides], dim=1), labels, torch.zeros(boxes, dtype=torch.bool))
        made.append(Sample(Path(f"{index}.png"), index, (size, size), target, sides.prod(dim=1), image))
    return made


def our_step(images: list[Sample], size: int, precision: str, folder: Path) -> Step:
    """The step of ``retinanet train``."""
    architecture = preset("resnet50")
    preprocess = Preprocess(short=size, long=size)
    names = tuple(str(label) for label in range(CLASSES))
    detector = Detector(ModelSpec(names, preprocess, architecture=architecture), architecture.build(CLASSES))
    dataset = DetectionDataset(images, names)
    config = TrainConfig(
        data="random",
        output=str(folder),
        model="resnet50",
        recipe="torchvision",
        weights="none",
        epochs=1,
        batch_size=len(images),
        seed=0,
        train_split=None,
        val_split=None,
        strict=False,
        confine=False,
        architecture=None,
        image=ImageConfig(),
        augment=Augment(),
        loss=LossConfig(classification="focal", matching="iou", box="l1", box_weight=1.0),
        optim=OptimConfig(optimizer="sgd", lr=LR, lr_batch=len(images), ema=0.0),
        postprocess=PostprocessConfig(),
        run=RunConfig(accelerator="cpu", precision=precision),
    )
    training = Training(config, build_fabric(config.run), detector, dataset, dataset)
    assert isinstance(training.sampler, StepSampler)
    pixels, sizes = preprocess.pad([sample.image for sample in images if sample.image is not None])
    batch = Batch(pixels, sizes, tuple(sample.target for sample in images), tuple(images))

    def step() -> None:
        train_step(training, [batch], 0)

    return step


def torchvision_step(images: list[Sample], size: int, bf16: bool) -> Step:
    """The step of torchvision's training reference."""
    backbone = torchvision.models.resnet50(norm_layer=FrozenBatchNorm2d)
    backbone = _resnet_fpn_extractor(backbone, 5, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(2048, 256))
    scales = tuple((side, int(side * 2 ** (1 / 3)), int(side * 2 ** (2 / 3))) for side in (32, 64, 128, 256, 512))
    anchors = AnchorGenerator(scales, ((0.5, 1.0, 2.0),) * 5)
    net = TorchvisionRetinaNet(backbone, CLASSES, min_size=size, max_size=size, anchor_generator=anchors).train()
    optimizer = torch.optim.SGD(
        [p for p in net.parameters() if p.requires_grad], lr=LR, momentum=0.9, weight_decay=1e-4
    )
    targets = [{"boxes": sample.target.boxes, "labels": sample.target.labels} for sample in images]

    def step() -> None:
        pixels: list[Tensor] = [sample.image / 255 for sample in images if sample.image is not None]
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            losses = net(pixels, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--boxes", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images = samples(options.batch, options.size, options.boxes)
    with tempfile.TemporaryDirectory() as folder:
        steps = {
            "torchvision fp32": torchvision_step(images, options.size, bf16=False),
            "ours fp32": our_step(images, options.size, "32", Path(folder)),
            "torchvision bf16": torchvision_step(images, options.size, bf16=True),
            "ours bf16": our_step(images, options.size, "bf16", Path(folder)),
        }
        medians = {name: spread.median for name, spread in time_in_turns(steps, options.repeats).items()}
    print(
        f"ResNet-50, {options.batch} x {options.size}x{options.size}, {CLASSES} classes, {options.boxes} boxes each; "
        f"{'; '.join(describe_machine().values())}, {options.threads} threads; medians of {options.repeats}"
    )
    print(f"{'':<18}{'seconds':>9}{'/ tv fp32':>11}{'/ tv bf16':>11}")
    for name, value in medians.items():
        ratios = (value / medians["torchvision fp32"], value / medians["torchvision bf16"])
        print(f"{name:<18}{value:>9.2f}{ratios[0]:>11.2f}{ratios[1]:>11.2f}")


if __name__ == "__main__":
    main()
