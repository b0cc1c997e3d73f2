"""Exported models: the card inside their files, and from a path to what runs it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retinanet import __version__
from retinanet.digest import check_seal
from retinanet.errors import UserError
from retinanet.files import open_file
from retinanet.images.arrays import boxes_back, pad_arrays, resize_array
from retinanet.images.preprocess import Preprocess
from retinanet.inference.backend import Mode, Prepared, count_cores
from retinanet.plain import check_types
from retinanet.spec import CONFIG, TENSORS, ModelSpec, check_version, exported_files
from retinanet.types import Detections

Graph = Callable[[NDArray[Any], NDArray[np.int64]], Sequence[NDArray[Any]]]
INPUTS, OUTPUTS = ("images", "sizes"), ("boxes", "scores", "labels", "count")
RUNTIMES = {".onnx": "ONNX Runtime", ".xml": "OpenVINO", ".pt2": "torch.export"}  # by the suffix of the file
EXPORT_AGAIN = "Export it again: retinanet export MODEL"
COPY_AGAIN = "Copy it again, or export it again: retinanet export MODEL"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Card:
    """What an exported model carries in its file beside the graph, as JSON: all that a prediction needs of the model.

    Attributes:
        spec: of the model; its post-processing is for people and for tiles, because the graph has it built in.
        precision: fp32, bf16 or int8: what the file was made for.
        raw: whether the graph ends at the heads, without detections.
        library_version: of the package that wrote the file.
        weights_sha256: of the ``model.safetensors`` that the file was made from; empty where nobody knows.
    """

    spec: ModelSpec
    precision: str = "fp32"
    raw: bool = False
    library_version: str = __version__
    weights_sha256: str = ""

    def to_json(self) -> str:
        """One line of JSON."""
        own = {name: value for name, value in vars(self).items() if name != "spec"}
        return json.dumps({**self.spec.to_dict(), **own})

    @classmethod
    def from_json(cls, text: str, path: Path) -> Card:
        """The card that :meth:`to_json` wrote.

        Args:
            text: from inside the file.
            path: the file, for messages.

        Raises:
            UserError: it is damaged, not ours, or from a newer version.
        """
        not_ours = f"{path} is damaged, or not a model that retinanet exported"
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict) or not isinstance(values.get("format"), int):
            raise UserError(f"{not_ours}. {EXPORT_AGAIN}")
        check_version(values, path)
        own = {entry.name for entry in fields(cls)} - {"spec"}
        try:
            if unknown := values.keys() - own - {entry.name for entry in fields(ModelSpec)} - {"format"}:
                raise UserError(f"unknown: {', '.join(sorted(unknown))}")
            spec = ModelSpec.from_dict(values, network=False)
            card = cls(spec, **{name: values[name] for name in own & values.keys()})
            check_types(card, "")
        except UserError as error:
            raise UserError(f"{not_ours} ({error}). {EXPORT_AGAIN}") from None
        return card


class ExportedModel:
    """A backend around the graph of an exported model; its detections hold numpy arrays.

    Args:
        card: what the file says about itself.
        graph: runs the graph: images (N, 3, H, W) and sizes (N, 2) -> boxes (N, D, 4), scores (N, D), labels (N, D) and
            count (N,). It may be called from any thread.
        runtime: its name.
        streams: how many calls of ``graph`` may profitably go on at once.
    """

    def __init__(self, card: Card, graph: Graph, *, runtime: str, streams: int) -> None:
        self.spec = card.spec
        self.streams = streams
        self.name = f"{runtime} {card.precision}"
        self.card = card
        self.graph = graph

    def prepare(self, image: NDArray[np.uint8], rule: Preprocess | None = None) -> Prepared:
        """See :class:`retinanet.inference.backend.Backend`."""
        rule = rule or self.spec.preprocess
        size = (image.shape[0], image.shape[1])
        return Prepared(resize_array(rule, image), size, self.spec.preprocess.padded(*rule.size(*size)))

    def run(self, images: Sequence[Prepared]) -> list[Detections]:
        """See :class:`retinanet.inference.backend.Backend`; no array of a whole batch is kept alive by the results."""
        batch, sizes = pad_arrays(self.spec.preprocess, [image.pixels for image in images])
        results, names = [], self.spec.class_names
        outputs = zip(*self.graph(batch, sizes), strict=True)
        for image, size, (boxes, scores, labels, count) in zip(images, sizes.tolist(), outputs, strict=True):
            if not np.isfinite(scores).all() or (labels[:count] >= len(names)).any():
                raise UserError(
                    f"{self.name}: the model is damaged, or its class names belong to another model. Export it again"
                )
            in_image = boxes_back(boxes[:count], (size[0], size[1]), image.size)
            rest = np.array(scores[:count], np.float32), np.array(labels[:count], np.int64)
            results.append(Detections(np.asarray(in_image, np.float32), *rest, names))
        return results


ReadCard = Callable[[str, Sequence[str]], tuple[Card, Sequence[str]]]  # text, names of outputs -> card, outputs to use


def open_exported(
    file: Path,
    mode: Mode = "latency",
    *,
    raw: bool = False,
    trust: bool = False,
    trust_code: bool = False,
    cache: Path | None = None,
    cores: int | None = None,
) -> ExportedModel:
    """The exported model in a file, ready to run on the CPU; only the runtime of its format is imported.

    Args:
        file: as :func:`retinanet.spec.exported_file` finds it.
        mode: ``latency`` gives all cores to one call; ``throughput`` runs as many calls as there are cores, one core
            each. A pt2 file knows ``latency`` only.
        raw: a graph that ends at the heads will do; its ``graph`` can be called, and not its ``run``.
        trust: see :func:`retinanet.inference.pt2.load_pt2`; the other formats hold no code.
        trust_code: likewise.
        cache: folder in which OpenVINO keeps what it compiled, for the next start.
        cores: that the model may use; by default all of this process.

    Raises:
        UserError: its runtime is not installed; the file is damaged, not ours, of a newer version or raw; or a pt2
            file is not trusted.
    """
    files = exported_files(file)
    if missing := [path for path in files[1:] if not path.is_file()]:
        raise UserError(f"{missing[0]} is missing: the weights of {file.name}. Copy it as well")
    check_seal(*files, remedy=COPY_AGAIN)
    cores = cores or count_cores()
    streams = cores if mode == "throughput" else 1
    read = partial(_read_card, file, raw)
    try:
        if file.suffix == ".pt2":
            from retinanet.inference.pt2 import load_pt2

            model = load_pt2(file, read, trust=trust, trust_code=trust_code)
        else:
            from retinanet.inference.runtimes import load_onnx, load_openvino

            if file.suffix == ".onnx":
                model = load_onnx(file, read, streams, cores)
            else:
                model = load_openvino(file, read, streams, cores, cache)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # the errors of the runtimes have no base of their own
        lines = [line.strip() for line in str(error).splitlines()]
        reason = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
        raise UserError(
            f"{file} is damaged, or not a model that {RUNTIMES[file.suffix]} can run "
            f"({(reason or [type(error).__name__])[0]}). {COPY_AGAIN}"
        ) from None
    _warn_if_stale(file, model.card)
    return model


def _read_card(file: Path, raw: bool, text: str, outputs: Sequence[str]) -> tuple[Card, Sequence[str]]:
    """The card of a file, and which of the outputs of its graph to ask for.

    Raises:
        UserError: it ends at the heads and must not, or it is damaged.
    """
    card = Card.from_json(text, file)
    if missing := set(() if card.raw else OUTPUTS) - set(outputs):
        raise UserError(f"{file} has no output {', '.join(sorted(missing))}. {EXPORT_AGAIN}")
    if card.raw and not raw:
        raise UserError(
            f"{file} holds only the network's heads, without detections. To predict, export it without --raw"
        )
    return card, outputs if card.raw else OUTPUTS


def _warn_if_stale(file: Path, card: Card) -> None:
    """Log a warning where the model folder around an exported model holds other weights than it was made from."""
    for folder in file.absolute().parents[:2]:
        try:
            with open_file(folder / CONFIG) as stream:
                digests = json.load(stream).get("weights_sha256")
        except (OSError, ValueError, AttributeError, RecursionError):  # no model folder
            continue
        if card.weights_sha256 and isinstance(digests, list) and card.weights_sha256 not in digests:
            _log.warning(
                "%s was exported from other weights than %s holds now. To export those: retinanet export %s",
                *(file, folder / TENSORS, folder),
            )
