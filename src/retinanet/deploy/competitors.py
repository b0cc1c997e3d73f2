"""Who takes part in a benchmark: every way to run a model that this machine has, and torchvision's own RetinaNet."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from retinanet.deploy.export import export
from retinanet.deploy.measure import load_predictor
from retinanet.detector import Detector
from retinanet.errors import UserError
from retinanet.images.preprocess import Preprocess
from retinanet.inference.backend import Backend, Mode, Prepared
from retinanet.inference.exported import Graph, open_exported
from retinanet.inference.runtimes import openvino_computes_bf16
from retinanet.inference.torch_backend import TorchBackend
from retinanet.interop.parity import build_peer
from retinanet.interop.torchvision import find_slots, to_torchvision
from retinanet.model.device import cpu_computes_bf16
from retinanet.spec import CONFIG, TENSORS, exported_file, exported_files
from retinanet.types import Detections

DEFAULT = (
    *("torchvision", "torch-fp32", "torch-bf16", "onnx-fp32", "onnx-int8"),
    *("openvino-fp32", "openvino-bf16", "openvino-int8"),
)
NAMES = (*DEFAULT, "torch-compiled", "pt2-fp32")


@dataclass(frozen=True)
class Competitor:
    """A way to run the model.

    Attributes:
        name: one of ``NAMES``, or that of the format of an exported model that is measured alone.
        model: the file of an exported model, or a model folder.
        options: how :func:`retinanet.deploy.measure.load_predictor` loads it, here and in a process of its own.
        size: of its files, in bytes.
        ends: when, inside of the last call of the backend's ``run``, ``resize`` and ``network`` were done, by the clock
            of ``time.perf_counter``; only of torch and torchvision.
        heads: its graph without post-processing, if that was asked for.
    """

    name: str
    model: Path
    options: dict[str, Any]
    size: int
    ends: dict[str, float] = field(default_factory=dict)
    heads: Graph | None = None

    def load(self, mode: Mode) -> Backend:
        """The model, ready to run; a model folder knows one mode."""
        backend: Any = load_predictor(self.model, self.options, mode if self.model.is_file() else "latency").backend
        parts = {}
        if isinstance(backend, TorchvisionBackend):
            parts = {"resize": backend.net.transform, "network": backend.net.head}
        elif isinstance(backend, TorchBackend):
            parts = {"network": backend.net}
        for stage, part in parts.items():
            part.register_forward_hook(lambda *_, stage=stage: self.ends.update({stage: time.perf_counter()}))
        return backend


def prepare_competitor(name: str, home: Path, calibrate: str, scratch: Path, *, heads: bool) -> Competitor:
    """A competitor, exported into ``scratch`` unless the model folder has it.

    Args:
        name: one of ``NAMES``.
        home: the model folder.
        calibrate: for int8, see :func:`retinanet.deploy.export.export`.
        scratch: a folder for exports.
        heads: export the graph without post-processing too.

    Raises:
        UserError: it cannot be measured: a package is missing, or it does not support the CPU or the model.
    """
    runtime, _, kind = name.partition("-")
    computes_bf16 = openvino_computes_bf16 if runtime == "openvino" else cpu_computes_bf16
    if kind == "bf16" and not computes_bf16():
        raise UserError("this CPU does not compute in bf16")
    if runtime == "torchvision":
        return _use_torchvision(home)
    if runtime == "torch":
        how = {"device": "cpu", "precision": "bf16" if kind == "bf16" else "fp32", "compile": kind == "compiled"}
        return Competitor(name, home, how, sum((home / file).stat().st_size for file in (CONFIG, TENSORS)))
    options: dict[str, Any] = {"format": runtime, "precision": kind}
    if kind == "int8":
        options["calibrate"] = calibrate
    file = None if runtime == "pt2" else exported_file(home / name)  # a pt2 file that lies about is not trusted
    if file is None:
        made = export(str(home), output=str(scratch / name), **options)
        file = Path(made.folder) / made.file
    open_exported(file, trust=True)  # what its runtime cannot open is told now
    graph = None
    if heads:
        made = export(str(home), output=str(scratch / f"{name}-raw"), raw=True, **options)
        graph = open_exported(Path(made.folder) / made.file, raw=True, trust=True).graph
    return replace(use_file(name, file, trust=True), heads=graph)


def use_file(name: str, file: Path, **trusted: Any) -> Competitor:
    """An exported model; for ``trust`` and ``trust_code`` see :func:`retinanet.inference.pt2.load_pt2`."""
    size = sum(path.stat().st_size for path in exported_files(file))
    return Competitor(name, file, trusted, size)


def _use_torchvision(home: Path) -> Competitor:
    try:
        size = TorchvisionBackend(Detector.load(home)).size
    except UserError as error:
        first, *others = str(error).split("; ")
        raise UserError(first + (f", and {len(others)} more differences" if others else "")) from None
    return Competitor("torchvision", home, {"torchvision": True}, size)


class TorchvisionBackend:
    """torchvision's network with the weights of a detector, in eager fp32 on the CPU, called as its users call it.

    Its own transform resizes: that is part of :meth:`run` here.

    Args:
        detector: the model; its weights are copied.

    Raises:
        UserError: torchvision has no such network.
    """

    def __init__(self, detector: Detector) -> None:
        state = to_torchvision(detector.spec, detector.net)
        self.net: Any = build_peer(detector.spec, detector.net, state)
        self.size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        self.spec = detector.spec
        self.streams = 1
        self.name = "torchvision fp32"
        self._labels = {slot: label for label, slot in enumerate(find_slots(detector.spec.class_names))}

    def prepare(self, image: NDArray[np.uint8], rule: Preprocess | None = None) -> Prepared:
        """An image as torchvision wants it, (3, H, W) float32 in [0, 1]; it knows one rule, its own."""
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float() / 255
        size = (image.shape[0], image.shape[1])
        return Prepared(pixels, size, size)  # torchvision resizes and pads by itself: images of one size stay alike

    @torch.inference_mode()
    def run(self, images: Sequence[Prepared]) -> list[Detections]:
        """See :class:`retinanet.inference.backend.Backend`."""
        return [self._detections(result) for result in self.net([image.pixels for image in images])]

    def _detections(self, result: Mapping[str, Any]) -> Detections:
        """Slots without a class, which only a very low threshold lets through, are left out."""
        labels = torch.tensor([self._labels.get(slot, -1) for slot in result["labels"].tolist()], dtype=torch.int64)
        keep = labels >= 0
        return Detections(result["boxes"][keep], result["scores"][keep], labels[keep], self.spec.class_names)
