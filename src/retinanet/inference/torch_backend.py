"""A model folder in torch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from retinanet.detector import Detector
from retinanet.images.preprocess import Preprocess
from retinanet.inference.backend import Prepared
from retinanet.model.device import choose_device, cpu_computes_bf16
from retinanet.model.fast import use_fast_convolutions
from retinanet.model.fold import fold_batch_norms
from retinanet.types import Detections, RawOutput

_log = logging.getLogger(__name__)


class TorchBackend:
    """A detector in torch: batch norms folded, pixels side by side in memory, no gradients.

    Its detections hold tensors on the CPU.

    Args:
        detector: the model; it is copied and not changed.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        precision: ``bf16`` computes the network in bf16 where the device can; where it cannot, a warning is logged and
            the network stays in fp32. Boxes and scores are float32 in any case.
        compile: compile the network with ``torch.compile``: minutes at first, for each size of a batch, then faster.

    Raises:
        UserError: there is no such device.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        device: str = "auto",
        precision: Literal["fp32", "bf16"] = "fp32",
        compile: bool = False,
    ) -> None:
        self.device = choose_device(device)
        if precision == "bf16" and not _computes_bf16(self.device):
            _log.warning("%s does not compute in bf16: fp32 is used instead", self.device)
            precision = "fp32"
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        net = fold_batch_norms(detector.net).to(self.device, self._dtype).to(memory_format=torch.channels_last)
        if self.device.type == "cpu" and not compile:  # what compiles lays weights out by itself
            net = use_fast_convolutions(net)
        self.net = torch.compile(net, dynamic=False) if compile else net
        self.spec = detector.spec
        self.streams = 1  # torch gives all cores to one call
        self.name = f"torch {precision} on {self.device}" + (", compiled" if compile else "")

    def prepare(self, image: NDArray[np.uint8], rule: Preprocess | None = None) -> Prepared:
        """See :class:`Backend`."""
        usable = image if image.flags.writeable and min(image.strides) >= 0 else image.copy()
        pixels = torch.from_numpy(usable).permute(2, 0, 1)  # (H, W, 3) -> (3, H, W)
        resized = (rule or self.spec.preprocess).resize(pixels)
        return Prepared(
            resized, (image.shape[0], image.shape[1]), self.spec.preprocess.padded(resized.shape[-2], resized.shape[-1])
        )

    @torch.inference_mode()
    def run(self, images: Sequence[Prepared]) -> list[Detections]:
        """See :class:`Backend`."""
        raw, sizes = self.raw(images)
        in_batch = self.spec.postprocess(raw, sizes, self.spec.class_names)
        return [
            replace(detections, boxes=self.spec.preprocess.boxes_back(detections.boxes, size, image.size))
            for detections, size, image in zip(in_batch, sizes.tolist(), images, strict=True)
        ]

    def raw(self, images: Sequence[Prepared]) -> tuple[RawOutput, torch.Tensor]:
        """What the network says of images of one input size, and the (N, 2) sizes of their content."""
        batch, sizes = self.spec.preprocess.pad([image.pixels for image in images])
        pixels = self.spec.preprocess.normalise(batch.to(self.device, non_blocking=True), sizes)
        raw: RawOutput = self.net(pixels.to(self._dtype))
        return raw, sizes


def _computes_bf16(device: torch.device) -> bool:
    if device.type == "cpu":
        return cpu_computes_bf16()
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
