"""What a model is apart from its weights: one record for the model folder, the card of an exported file, every backend.

It is read without torch, because who predicts with an exported model need not have it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retinanet import __version__
from retinanet.errors import UserError
from retinanet.images.io import IMAGE_SUFFIXES
from retinanet.images.preprocess import Preprocess
from retinanet.images.tiling import Tiling
from retinanet.model.postprocess import Postprocess
from retinanet.plain import from_plain, to_plain
from retinanet.types import DEFAULT_THRESHOLD

if TYPE_CHECKING:
    from torch import Tensor

    from retinanet.losses.config import LossConfig
    from retinanet.losses.detection import DetectionLoss
    from retinanet.model.presets import Architecture
    from retinanet.types import Batch, Detections, RawOutput

FORMAT = 3
CONFIG, TENSORS = "config.json", "model.safetensors"  # the files of a model folder
SUFFIXES = {"openvino": ".xml", "onnx": ".onnx", "pt2": ".pt2"}  # of exported models, by format; best on a CPU first


@dataclass(frozen=True)
class ModelSpec:
    """Everything about a model except its weights.

    Attributes:
        class_names: K names.
        preprocess: how images become its input.
        postprocess: how its output becomes detections.
        architecture: what the network is made of; None where it was read without torch, for an exported graph.
        thresholds: the score from which on a detection of a class is shown, by class name, as measured on annotated
            images; a class may be missing, and evaluation does not use them.
        scale: how large the training images were shown to the network, relative to their own pixels (the median);
            tiles of a larger image are shown likewise. None where it is not known.
        tiling: the windows that it was trained on; larger images are cut likewise. None: on whole images.
        metrics: what it was last evaluated to, e.g. ``{"AP": 0.58}``.
        loss: what it was trained to minimise; None where that is not known, or was read without torch.
        plan: the options that a plan decided for its training, by dotted name, each with ``value`` and ``reason``.
        data: what it was trained on: names, the ``fingerprint`` and a digest of the annotations.
    """

    class_names: tuple[str, ...]
    preprocess: Preprocess = field(default_factory=Preprocess)
    postprocess: Postprocess = field(default_factory=Postprocess)
    architecture: Architecture = None  # type: ignore[assignment]
    thresholds: Mapping[str, float] = field(default_factory=dict)
    scale: float | None = None
    tiling: Tiling | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    loss: LossConfig | None = None
    plan: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = self.class_names
        if not isinstance(names, tuple) or not names or not all(isinstance(name, str) and name for name in names):
            raise UserError("class_names is not a list of names")
        object.__setattr__(self, "thresholds", check_thresholds(self.thresholds, names))
        if self.scale is not None:
            if not _is_number(self.scale) or not 0 < self.scale <= sys.float_info.max:
                raise UserError(f"scale is {self.scale!r}, expected a number above 0")
            object.__setattr__(self, "scale", float(self.scale))
        if not isinstance(self.tiling, Tiling | None):
            raise UserError(f"tiling is {self.tiling!r}, expected a tile and an overlap")
        for name in ("metrics", "plan", "data"):
            if not isinstance(getattr(self, name), Mapping):
                raise UserError(f"{name} is {getattr(self, name)!r}, expected names with values")

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold; :meth:`from_dict` reads them."""
        values = {"format": FORMAT, "library_version": __version__, **to_plain(vars(self))}
        optional = ("thresholds", "scale", "tiling", "loss", "plan", "data")
        return {key: value for key, value in values.items() if value or key not in optional}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, network: bool = True) -> ModelSpec:
        """The record that :meth:`to_dict` made, of this or an earlier format.

        Args:
            values: as read from JSON; entries that are not of the record are left alone.
            network: read the architecture, which needs torch.

        Raises:
            UserError: an entry is missing or not what it should be; the caller says in which file.
        """
        wanted = ("class_names", "preprocess", "postprocess", *(("architecture",) if network else ()))
        if missing := [name for name in wanted if values.get(name) is None]:
            raise UserError(f"it has no {', '.join(missing)}")
        names = values["class_names"]
        architecture: Any = None
        loss: Any = None
        if network:
            from retinanet.losses.config import LossConfig
            from retinanet.model.presets import Architecture

            loss = from_plain(LossConfig, values["loss"], "loss") if values.get("loss") is not None else None
            architecture = from_plain(Architecture, _nest_anchors(values["architecture"]), "architecture")
        return cls(
            tuple(names) if isinstance(names, list) else names,
            from_plain(Preprocess, nest_compat(values["preprocess"], Preprocess()), "preprocess"),
            from_plain(Postprocess, nest_compat(values["postprocess"], Postprocess()), "postprocess"),
            architecture,
            tiling=from_plain(Tiling, values["tiling"], "tiling") if values.get("tiling") is not None else None,
            loss=loss,
            **{name: values[name] for name in ("thresholds", "scale", "metrics", "plan", "data") if name in values},
        )

    def sees(self, tiling: Tiling) -> bool:
        """Whether windows of this tiling are of the size of those of the training."""
        return self.tiling is not None and self.tiling.tile == tiling.tile

    def prepare(self, batch: Batch) -> Tensor:
        """The network's input: (N, 3, H, W) float32 of a batch, on its device; padding is 0."""
        return self.preprocess.normalise(batch.images, batch.sizes)

    def is_at_limit(self, detections: Detections) -> bool:
        """Whether an image has as many detections as the model reports at most, and the last is shown too."""
        if len(detections) < self.postprocess.max_detections:
            return False
        name = self.class_names[int(detections.labels[-1])]
        return float(detections.scores[-1]) >= self.thresholds.get(name, DEFAULT_THRESHOLD)

    def criterion(self) -> DetectionLoss:
        """The loss that the network was trained with; the paper's where that is not known."""
        from retinanet.losses.config import CLASSIC

        return (self.loss or CLASSIC).build()

    def detections(self, raw: RawOutput, batch: Batch) -> list[Detections]:
        """Detections of each image from the network's output, in pixels of the original images, on the CPU."""
        in_batch = self.postprocess(raw, batch.sizes, self.class_names)
        return [
            replace(detections, boxes=self.preprocess.boxes_back(detections.boxes, (height, width), sample.size))
            for detections, (height, width), sample in zip(in_batch, batch.sizes.tolist(), batch.samples, strict=True)
        ]


def check_model_first(model: str | Path, other: object) -> None:
    """Notice a model and images, or a model and data, in the wrong order.

    Raises:
        UserError: what is given as the model is an image; or it exists, is no model, and ``other`` is one.
    """

    def is_model(path: object) -> bool:
        return isinstance(path, str | Path) and (os.path.isfile(Path(path) / CONFIG) or exported_file(path) is not None)

    if Path(model).suffix.lower() in IMAGE_SUFFIXES:
        raise UserError(f"{model} is an image; the model comes first, then the images")
    if os.path.exists(model) and is_model(other) and not is_model(model):
        raise UserError(f"{model} is no model, and {other} is one; the model comes first, then {model}")


def exported_file(path: str | Path) -> Path | None:
    """The file of an exported model, or None where a path is something else, as far as names tell.

    Args:
        path: the file, ending in .xml, .onnx or .pt2; or a folder that has model.xml or model.onnx. Of the two,
            OpenVINO's comes first, and a folder with a ``config.json`` is a model folder.

    Raises:
        UserError: a folder has nothing but a pt2 file, which is never found by looking, because loading it can run
            code.
    """
    path = Path(path)
    if os.path.isfile(path):
        return path if path.suffix in SUFFIXES.values() else None
    if os.path.isfile(path / CONFIG):
        return None
    for file in (path / f"model{SUFFIXES[form]}" for form in ("openvino", "onnx")):
        if os.path.isfile(file):
            return file
    if archives := sorted(path.glob("*.pt2")) if os.path.isdir(path) else []:
        raise UserError(
            f"{path} holds {archives[0].name}, and loading a pt2 file can run code, so the file itself must be named. "
            f"If you trust whoever made it, give {archives[0]} as the model, with --trust (trust=True in Python)"
        )
    return None


def exported_files(file: Path) -> list[Path]:
    """The files of an exported model: ``file``, as :func:`exported_file` finds it, and OpenVINO's weights beside it."""
    return [file, file.with_suffix(".bin")] if file.suffix == ".xml" else [file]


def check_version(values: Any, source: object) -> Mapping[str, Any]:
    """Plain values that hold a record in a format that this version reads.

    Args:
        values: as read from JSON.
        source: the file, for messages.

    Raises:
        UserError: they are no record of ours, or of a newer version.
    """
    record: Mapping[str, Any] = values if isinstance(values, Mapping) else {}
    version = record.get("format")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise UserError(f"{source} is not a model's configuration: it has no format version")
    if version > FORMAT:
        raise UserError(
            f"{source} was written by retinanet {record.get('library_version')} in format {version}; this is "
            f"{__version__}, which reads up to format {FORMAT}. Upgrade the package: pip install -U retinanet"
        )
    return record


def check_thresholds(values: Any, class_names: tuple[str, ...]) -> dict[str, float]:
    """A score from 0 to 1 for some of the classes.

    Raises:
        UserError: there is no such class, or a score is none.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"thresholds is {values!r}, expected a score per class name")
    for name, value in values.items():
        if name not in class_names:
            raise UserError(f"there is a threshold for {name!r}; the classes of the model are {', '.join(class_names)}")
        if not _is_number(value) or not 0 <= value <= 1:
            raise UserError(f"the threshold of {name!r} is {value!r}, expected a number from 0 to 1")
    return {name: float(value) for name, value in values.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)


def nest_compat(values: Any, record: Any) -> Any:
    """Values with the switches of ``record.compat`` under ``compat``; up to format 2 they were at the top level."""
    switches = vars(record.compat).keys() & values.keys() if isinstance(values, Mapping) else ()
    if not switches or "compat" in values:
        return values
    others = {name: value for name, value in values.items() if name not in switches}
    return {**others, "compat": {name: values[name] for name in switches}}


def _nest_anchors(values: Any) -> Any:
    """The architecture of any format; format 1 knew one kind of rounding, and ``spacing`` was never an option."""
    from retinanet.anchors.lattice import AnchorLattice

    anchors = values.get("anchors") if isinstance(values, Mapping) else None
    if not isinstance(anchors, Mapping):
        return values
    anchors = dict(anchors)
    if "rounded" in anchors:
        anchors["rounding"] = "corners" if anchors.pop("rounded") else "none"
    anchors = nest_compat(anchors, AnchorLattice())
    compat = anchors.get("compat")
    if isinstance(compat, Mapping):
        anchors["compat"] = {name: value for name, value in compat.items() if name != "spacing"}
    return {**values, "anchors": anchors}
