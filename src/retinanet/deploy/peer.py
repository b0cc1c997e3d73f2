"""torchvision's own RetinaNet, to be measured beside ours."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from retinanet.detector import Detector
from retinanet.images.preprocess import Preprocess
from retinanet.inference.backend import Prepared
from retinanet.inference.torch_backend import tensor_detections
from retinanet.interop.parity import build_peer
from retinanet.interop.torchvision import detector_arguments, find_slots, to_torchvision
from retinanet.types import Detections


class TorchvisionBackend:
    """torchvision's network with the weights of a detector, in eager fp32 on the CPU, called as its users call it.

    Its own transform resizes: that is part of :meth:`run` here.

    Args:
        detector: the model; its weights are copied.
        inner: is told how many seconds of the last run were not the network: ``resize`` and ``postprocess``.

    Raises:
        UserError: torchvision has no such network.
    """

    def __init__(self, detector: Detector, inner: dict[str, float] | None = None) -> None:
        state = to_torchvision(detector.spec, detector.net)
        self.net: Any = build_peer(detector.spec, detector.net, state)
        arguments: dict[str, Any] = detector_arguments(detector.spec)
        for name in ("score_thresh", "nms_thresh", "topk_candidates", "detections_per_img"):
            setattr(self.net, name, arguments[name])
        self.net.transform.min_size, self.net.transform.max_size = (arguments["min_size"],), arguments["max_size"]
        self.size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        self.spec = detector.spec
        self.streams = 1
        self.name = "torchvision fp32"
        self._labels = {slot: label for label, slot in enumerate(find_slots(detector.spec.class_names))}
        self._inner = {} if inner is None else inner
        self._marks = [0.0, 0.0]  # when the transform and the heads were done
        self.net.transform.register_forward_hook(lambda *_: self._mark(0))
        self.net.head.register_forward_hook(lambda *_: self._mark(1))

    def prepare(self, image: NDArray[np.uint8], rule: Preprocess | None = None) -> Prepared:
        """An image as torchvision wants it, (3, H, W) float32 in [0, 1]; it knows one rule, its own."""
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float() / 255
        size = (image.shape[0], image.shape[1])
        return Prepared(pixels, size, size)  # torchvision resizes and pads by itself: images of one size stay alike

    @torch.inference_mode()
    def run(self, images: Sequence[Prepared]) -> list[Detections]:
        """See :class:`retinanet.inference.backend.Backend`."""
        began = time.perf_counter()
        found = self.net([image.pixels for image in images])
        ended = time.perf_counter()
        self._inner.update(resize=self._marks[0] - began, postprocess=ended - self._marks[1])
        return [self._detections(one) for one in found]

    def pack(self, boxes: NDArray[Any], scores: NDArray[Any], labels: NDArray[Any]) -> Detections:
        """See :class:`retinanet.inference.backend.Backend`."""
        return tensor_detections(boxes, scores, labels, self.spec.class_names)

    def _detections(self, found: Mapping[str, Any]) -> Detections:
        """Slots without a class, which only a very low threshold lets through, are left out."""
        labels = torch.tensor([self._labels.get(slot, -1) for slot in found["labels"].tolist()], dtype=torch.int64)
        keep = labels >= 0
        return Detections(found["boxes"][keep], found["scores"][keep], labels[keep], self.spec.class_names)

    def _mark(self, which: int) -> None:
        self._marks[which] = time.perf_counter()
