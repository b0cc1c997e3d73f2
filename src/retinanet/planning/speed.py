"""How long training takes on this machine, from a step that is made and timed."""

from __future__ import annotations

import re
import statistics
import time
from dataclasses import dataclass

import torch

from retinanet.data.dataset import DetectionDataset
from retinanet.errors import UserError
from retinanet.losses.config import LossConfig
from retinanet.model.presets import Architecture
from retinanet.types import Target

STEPS = 3  # that are timed, after one that is not
OBJECTS = 8  # of each image
READ = 3  # images that are read to time it
EVALUATED = 0.35  # of a step of training takes an evaluation of as many images
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Speed:
    """Seconds of a training.

    Attributes:
        per_megapixel: of the padded input, forward, backward and update.
        per_image: to read an image from its file.
    """

    per_megapixel: float
    per_image: float

    def of_view(self, pixels: float) -> float:
        """Seconds that one training image of so many pixels takes."""
        return self.per_megapixel * pixels / 1e6 + self.per_image


def time_step(
    architecture: Architecture, num_classes: int, size: tuple[int, int], images: int, device: str, *, bf16: bool
) -> float:
    """Seconds per megapixel of a training step, the median of ``STEPS``, on random images and boxes.

    Args:
        architecture: of the network; its weights are random.
        num_classes: K.
        size: (height, width) of the images.
        images: of a batch.
        device: of torch.
        bf16: whether maps are in bf16, as ``run.precision`` says.
    """
    height, width = size
    net = architecture.build(num_classes).to(device).to(memory_format=torch.channels_last).train()
    batch = torch.rand(images, 3, height, width).to(device).to(memory_format=torch.channels_last)
    corner = torch.rand(images, OBJECTS, 2) * torch.tensor([width, height]) * 0.8
    boxes = torch.cat([corner, corner + torch.tensor([width, height]) * 0.15], dim=2)
    labels, plain = torch.arange(OBJECTS) % num_classes, torch.zeros(OBJECTS, dtype=torch.bool)
    targets = [Target(one, labels, plain) for one in boxes]
    criterion = LossConfig().build()
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.0)
    times = []
    for _ in range(STEPS + 1):
        began = time.perf_counter()
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
            raw = net(batch)
        criterion(raw, targets).total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device != "cpu":
            torch.accelerator.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:]) / (images * height * width / 1e6)


def time_reading(dataset: DetectionDataset) -> float:
    """Seconds that an image of the set takes to be read, the median of a few; 0 where they cannot be read."""
    times = []
    for index in range(0, len(dataset), max(1, len(dataset) // READ)):
        began = time.perf_counter()
        try:
            dataset[index]
        except UserError:  # which is told when the training reads every image
            continue
        times.append(time.perf_counter() - began)
    return statistics.median(times) if times else 0.0


def parse_budget(text: str) -> float:
    """Seconds of a budget such as ``30m``, ``2h`` or ``1h30m``.

    Raises:
        UserError: it is something else.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([smhd])", text.lower())
    if not parts or re.sub(r"\s", "", text.lower()) != "".join(number + unit for number, unit in parts):
        raise UserError(f"budget: expected a time with its unit, such as 30m, 2h or 1h30m, got {text!r}")
    seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
    if not seconds > 0:
        raise UserError(f"budget: expected a time above 0, got {text!r}")
    return seconds
