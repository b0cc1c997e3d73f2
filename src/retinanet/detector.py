"""A detector: a network with everything that it takes to use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from retinanet.interop.pretrained import model_folder
from retinanet.model.retinanet import RetinaNet
from retinanet.model_folder import read_model, write_model
from retinanet.spec import ModelSpec
from retinanet.types import Batch, Detections, RawOutput


@dataclass
class Detector:
    """A network with everything that it takes to use it.

    Attributes:
        spec: what the model is apart from its weights: architecture, preprocessing, post-processing, class names,
            thresholds.
        net: the network.
    """

    spec: ModelSpec
    net: RetinaNet

    @staticmethod
    def load(name: str | Path) -> Detector:
        """The model of a folder or a name; the network is in evaluation mode on the CPU.

        Args:
            name: a model folder; ``torchvision/retinanet_resnet50_fpn`` or ``..._v2``; or a hub repository,
                ``owner/name`` or ``owner/name@revision`` (see :func:`retinanet.interop.pretrained.model_folder`).

        Raises:
            UserError: there is none, or it is damaged or of a newer version.
        """
        return Detector(*read_model(model_folder(name) or name))

    def save(self, folder: str | Path, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Write the model folder (see :func:`retinanet.model_folder.write_model`).

        Args:
            folder: made if need be.
            tensors: weights to save in place of those of ``net``, such as their moving average.

        Raises:
            UserError: the folder cannot be written.
        """
        write_model(folder, self.spec, self.net.state_dict() if tensors is None else tensors)

    def with_spec(self, **changes: Any) -> Detector:
        """The same network with fields of its ``spec`` replaced."""
        return Detector(replace(self.spec, **changes), self.net)

    def raw(self, batch: Batch) -> RawOutput:
        """The network's output for a batch that lies on the network's device."""
        raw: RawOutput = self.net(self.spec.prepare(batch))
        return raw

    def detections(self, raw: RawOutput, batch: Batch) -> list[Detections]:
        """Detections in pixels of the original images, on the CPU."""
        return self.spec.detections(raw, batch)
