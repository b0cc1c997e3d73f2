"""The model folder: ``config.json`` and ``model.safetensors``, everything a prediction needs and no code."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from retinanet import __version__
from retinanet.boxes.coding import BoxCoder
from retinanet.boxes.lattice import AnchorLattice
from retinanet.digest import file_sha256
from retinanet.files import tensor_bytes, write_atomically
from retinanet.images.preprocess import Preprocess
from retinanet.model.postprocess import Postprocess
from retinanet.model.presets import Architecture
from retinanet.model.retinanet import RetinaNet
from retinanet.types import Batch, Detections, RawOutput, UserError
from retinanet.weights.exported import exported_file

FORMAT = 2
CONFIG, TENSORS = "config.json", "model.safetensors"
DIGESTS = "weights_sha256"  # of config.json: the digests of a weights file that belongs to it, usually one
T = TypeVar("T")


@dataclass
class Detector:
    """A network with all that it takes to use it.

    Attributes:
        net: the network.
        architecture: what it is made of.
        preprocess: how images become its input.
        postprocess: how its output becomes detections.
        class_names: K names.
        metrics: what it was last evaluated to, e.g. ``{"AP": 0.58}``.
        thresholds: the score from which on a detection of a class is shown, by class name, as measured on annotated
            images; a class may be missing, and evaluation does not use them.
        scale: how large the training images were shown to the network, relative to their own pixels (the median);
            tiles of a larger image are shown likewise. None where it is not known.
    """

    net: RetinaNet
    architecture: Architecture
    preprocess: Preprocess
    postprocess: Postprocess
    class_names: tuple[str, ...]
    metrics: dict[str, Any] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    scale: float | None = None

    def raw(self, batch: Batch) -> RawOutput:
        """The network's output for a batch that lies on the network's device."""
        raw: RawOutput = self.net(self.preprocess.normalise(batch.images, batch.sizes))
        return raw

    def detections(self, raw: RawOutput, batch: Batch) -> list[Detections]:
        """Detections in pixels of the original images, on the CPU."""
        found = self.postprocess(raw, batch.sizes, self.class_names)
        return [
            Detections(
                self.preprocess.boxes_back(one.boxes, (int(size[0]), int(size[1])), sample.size),
                one.scores,
                one.labels,
                one.class_names,
            )
            for one, size, sample in zip(found, batch.sizes.tolist(), batch.samples, strict=True)
        ]


def save_detector(folder: Path, detector: Detector, tensors: Mapping[str, Tensor] | None = None) -> None:
    """Write a model folder; a reader never sees half of a file.

    Two files cannot be replaced at once. So the ``config.json`` that is there first takes up the digest of the new
    weights beside that of the old ones: whatever interrupts this function, the folder can be loaded.

    Args:
        folder: made if need be.
        detector: what to save.
        tensors: weights to save in place of those of ``detector.net``, such as their moving average.

    Raises:
        UserError: a file cannot be written.
    """
    config = {
        "format": FORMAT,
        "library_version": __version__,
        "architecture": asdict(detector.architecture),
        "preprocess": asdict(detector.preprocess),
        "postprocess": asdict(detector.postprocess),
        "class_names": list(detector.class_names),
        "metrics": detector.metrics,
        **({"thresholds": detector.thresholds} if detector.thresholds else {}),
        **({"scale": detector.scale} if detector.scale is not None else {}),
    }
    state = detector.net.state_dict() if tensors is None else tensors
    contiguous = {key: value.detach().cpu().contiguous() for key, value in state.items()}

    digests: list[str] = []

    def write(draft: Path) -> None:
        try:
            save_file(contiguous, draft, metadata={"format": "pt"})
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from None
        digests.append(file_sha256(draft))
        with contextlib.suppress(UserError):  # there is no model yet, or none that can be read
            previous = read_config(folder)
            if DIGESTS in previous:
                _write_config(folder, {**previous, DIGESTS: [*previous[DIGESTS], *digests]})

    write_atomically(folder / TENSORS, write, size=tensor_bytes(contiguous))
    _write_config(folder, {**config, DIGESTS: digests})


def save_thresholds(folder: str | Path, thresholds: Mapping[str, float]) -> None:
    """Store the thresholds of the classes in a model folder, in place of earlier ones; a reader never sees half.

    Args:
        folder: the model folder; its weights are not touched.
        thresholds: scores from 0 to 1 by class name; a class may be missing, and with none at all the entry goes.

    Raises:
        UserError: there is no model, it has no such class, a score is not from 0 to 1, or the file cannot be written.
    """
    config, folder = read_config(folder), Path(folder)
    checked = _thresholds(thresholds, config["class_names"])
    config.pop("thresholds", None)
    _write_config(folder, {**config, **({"thresholds": checked} if checked else {})})


def _write_config(folder: Path, config: Mapping[str, Any]) -> None:
    write_atomically(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def load_detector(folder: str | Path) -> Detector:
    """Read a model folder; the network is in evaluation mode on the CPU.

    Raises:
        UserError: there is no model, or it is damaged, from a newer version, or a pickle.
    """
    config, folder = read_config(folder), Path(folder)
    try:
        architecture = _build(
            Architecture,
            config["architecture"],
            anchors=_build(AnchorLattice, _of_this_format(config["architecture"]["anchors"])),
            coder=_build(BoxCoder, config["architecture"]["coder"]),
        )
        preprocess = _build(Preprocess, config["preprocess"])
        postprocess = _build(Postprocess, config["postprocess"])
        class_names = tuple(config["class_names"])
        metrics = dict(config.get("metrics", {}))
        thresholds = _thresholds(config.get("thresholds", {}), class_names)
        scale = _scale(config.get("scale"))
        net = architecture.build(len(class_names))
    except UserError as error:
        raise UserError(f"{folder / CONFIG}: {error}") from None
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise UserError(f"{folder / CONFIG} is not a model's configuration: {error!r}") from None
    _check_digest(folder, config)
    load_tensors(net, folder / TENSORS)
    return Detector(net.eval(), architecture, preprocess, postprocess, class_names, metrics, thresholds, scale)


def read_config(folder: str | Path) -> dict[str, Any]:
    """The ``config.json`` of a model folder, its version checked.

    Raises:
        UserError: as :func:`load_detector`.
    """
    folder = Path(folder)
    if exported_file(folder):
        raise UserError(
            f"{folder} is an exported model; it can predict and be evaluated. For this command give the model "
            "folder it was exported from"
        )
    if folder.is_file():
        raise UserError(
            f"{folder} is a file; a model is a folder with {CONFIG} and {TENSORS}. To make one of the weights of "
            f"another code base: retinanet convert {folder} FOLDER"
        )
    if not (folder / CONFIG).is_file():
        raise UserError(f"no model in {folder}: expected a folder with {CONFIG} and {TENSORS}, as train writes it")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder / CONFIG} is not valid JSON: {error}") from None
    version = config.get("format") if isinstance(config, dict) else None
    if not isinstance(version, int):
        raise UserError(f"{folder / CONFIG} is not a model's configuration: it has no format version")
    if version > FORMAT:
        raise UserError(
            f"{folder} was written by retinanet {config.get('library_version')} in format {version}; this is "
            f"{__version__}, which reads up to format {FORMAT}. Upgrade the package: pip install -U retinanet"
        )
    names = config.get("class_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{folder / CONFIG} is not a model's configuration: class_names is not a list of names")
    if not isinstance(config.get(DIGESTS, []), list):
        raise UserError(f"{folder / CONFIG} is not a model's configuration: {DIGESTS} is not a list of digests")
    return config


def _check_digest(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse weights that are not those that the configuration was written with, where it says which."""
    path = folder / TENSORS
    if DIGESTS not in config or not path.is_file():
        return
    try:
        digest = file_sha256(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error})") from None
    # A training run may have replaced both files since the configuration was read.
    if digest not in config[DIGESTS] and digest not in read_config(folder).get(DIGESTS, [digest]):
        raise UserError(
            f"{path} is damaged or was replaced: its content is not what {CONFIG} recorded. Copy both files again; "
            f"if you replaced the weights on purpose, delete the entry {DIGESTS} from {folder / CONFIG}"
        )


def load_tensors(net: RetinaNet, path: Path) -> None:
    """Load a safetensors file into a network, every tensor of it.

    Raises:
        UserError: missing or damaged file; a missing, extra or misshapen tensor, or one with NaN or infinity.
    """
    if not path.is_file():
        raise UserError(f"the model has no weights: {path} is missing")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or not a safetensors file ({error}). Copy it again") from None
    wanted = net.state_dict()
    wrong = [f"{key}: missing" for key in wanted.keys() - tensors.keys()]
    wrong += [f"{key}: not part of the model" for key in tensors.keys() - wanted.keys()]
    wrong += [
        f"{key}: shape {tuple(tensors[key].shape)}, expected {tuple(wanted[key].shape)}"
        for key in wanted.keys() & tensors.keys()
        if tensors[key].shape != wanted[key].shape
    ]
    if wrong:
        shown = "; ".join(sorted(wrong)[:5])
        raise UserError(f"{path} does not fit its {CONFIG}, {len(wrong)} tensors are wrong: {shown}")
    # the extremes are ten times as fast to find as isfinite of every value, and NaN is passed on by both
    broken = [key for key, value in tensors.items() if not torch.stack(torch.aminmax(value)).isfinite().all()]
    if broken:
        shown = ", ".join(sorted(broken)[:5])
        raise UserError(f"{path}: NaN or infinity in {len(broken)} tensors: {shown}. Take an earlier model")
    net.load_state_dict(tensors)


def _thresholds(values: Any, class_names: Sequence[str]) -> dict[str, float]:
    """A score from 0 to 1 for some of the classes."""
    if not isinstance(values, Mapping):
        raise UserError(f"thresholds is {values!r}, expected a score per class name")
    for name, value in values.items():
        if name not in class_names:
            raise UserError(f"there is a threshold for {name!r}; the classes of the model are {', '.join(class_names)}")
        if isinstance(value, bool) or not isinstance(value, float | int) or not 0 <= value <= 1:
            raise UserError(f"the threshold of {name!r} is {value!r}, expected a number from 0 to 1")
    return {name: float(value) for name, value in values.items()}


def _scale(value: Any) -> float | None:
    """A number above 0, or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, float | int) or not 0 < value < math.inf:
        raise UserError(f"scale is {value!r}, expected a number above 0")
    return float(value)


def _of_this_format(anchors: Mapping[str, Any]) -> dict[str, Any]:
    """The anchors of a configuration; format 1 knew one kind of rounding."""
    current = dict(anchors)
    if "rounded" in current:
        current["rounding"] = "corners" if current.pop("rounded") else "none"
    return current


def _build(kind: type[T], values: Mapping[str, Any], **built: Any) -> T:
    """A dataclass from JSON: lists become tuples; an unknown name is an error, and so is a value of another type."""
    settled = {entry.name for entry in fields(kind) if "settled" in entry.metadata}  # type: ignore[arg-type]
    values = {key: value for key, value in values.items() if key not in settled}
    defaults = vars(kind())
    if unknown := values.keys() - defaults.keys():
        raise TypeError(f"{kind.__name__} has no {', '.join(sorted(unknown))}")
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()} | built
    for key, value in plain.items():
        expected = type(defaults[key])
        number = expected in (float, type(None)) and isinstance(value, float | int)  # null by default: a number or null
        if not number and not isinstance(value, expected):
            raise TypeError(f"{kind.__name__}.{key} is {value!r}, expected {expected.__name__}")
    return kind(**plain)
