"""Who takes part in a benchmark: every way to run a model that this machine has."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from retinanet.deploy.export import Format, Precision, export
from retinanet.deploy.peer import TorchvisionBackend
from retinanet.detector import Detector
from retinanet.errors import UserError
from retinanet.inference.backend import Backend, Graph, Mode, explain_missing_runtime
from retinanet.inference.exported import open_exported
from retinanet.inference.torch_backend import TorchBackend
from retinanet.model.device import cpu_computes_bf16
from retinanet.model.postprocess import Postprocess
from retinanet.spec import CONFIG, TENSORS, exported_file
from retinanet.types import Detections, RawOutput

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
        load: opens it.
        model: what a fresh process loads to measure its memory, and
        options: how.
        size: of its files, in bytes.
        inner: told by each call of the backend's ``run``: the seconds of it that were ``resize`` or ``postprocess``.
        heads: its graph without post-processing, if that was asked for.
    """

    name: str
    load: Callable[[Mode], Backend]
    model: Path
    options: dict[str, Any]
    size: int
    inner: dict[str, float] = field(default_factory=dict)
    heads: Graph | None = None


@dataclass(frozen=True)
class TimedPostprocess(Postprocess):
    """Post-processing that says what it took.

    Args:
        inner: is told the seconds.
    """

    inner: dict[str, float] = field(default_factory=dict)

    def __call__(self, raw: RawOutput, sizes: Any, class_names: Sequence[str]) -> list[Detections]:
        """See :class:`Postprocess`."""
        began = time.perf_counter()
        found = super().__call__(raw, sizes, class_names)
        self.inner["postprocess"] = time.perf_counter() - began
        return found


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
    if name == "torchvision":
        return _torchvision(home)
    runtime, _, kind = name.partition("-")
    if runtime == "torch":
        return _torch(name, home, "bf16" if kind == "bf16" else "fp32", compile=kind == "compiled")
    if name == "openvino-bf16":
        _check_openvino_bf16()
    assert runtime in get_args(Format) and kind in get_args(Precision)
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
        report = export(str(home), output=str(scratch / f"{name}-raw"), raw=True, **options)
        graph = open_exported(Path(report.folder) / report.file, raw=True, trust=True).graph
    return replace(use_file(name, file, trust=True), heads=graph)


def use_file(name: str, file: Path, *, trust: bool = False, trust_code: bool = False) -> Competitor:
    """An exported model; for ``trust`` and ``trust_code`` see :func:`retinanet.inference.pt2_backend.open_pt2`."""
    trusted = {"trust": trust, "trust_code": trust_code}
    files = [file, file.with_suffix(".bin")] if file.suffix == ".xml" else [file]
    size = sum(path.stat().st_size for path in files)
    return Competitor(name, lambda mode: open_exported(file, mode, **trusted), file, trusted, size)


def _torch(name: str, home: Path, precision: Literal["fp32", "bf16"], *, compile: bool) -> Competitor:
    if precision == "bf16" and not cpu_computes_bf16():
        raise UserError("this CPU does not compute in bf16")
    inner: dict[str, float] = {}

    def load(mode: Mode) -> Backend:
        detector = Detector.load(home)
        timed = TimedPostprocess(**vars(detector.spec.postprocess), inner=inner)
        return TorchBackend(detector.with_spec(postprocess=timed), device="cpu", precision=precision, compile=compile)

    options = {"device": "cpu", "precision": precision, "compile": compile}
    return Competitor(name, load, home, options, _size(home), inner)


def _torchvision(home: Path) -> Competitor:
    inner: dict[str, float] = {}
    try:
        size = TorchvisionBackend(Detector.load(home)).size
    except UserError as error:
        first, *others = str(error).split("; ")
        raise UserError(first + (f", and {len(others)} more differences" if others else "")) from None

    def load(mode: Mode) -> Backend:
        return TorchvisionBackend(Detector.load(home), inner)

    return Competitor("torchvision", load, home, {"torchvision": True}, size, inner)


def _size(home: Path) -> int:
    return sum((home / name).stat().st_size for name in (CONFIG, TENSORS))


def _check_openvino_bf16() -> None:
    try:
        import openvino
    except ImportError:
        raise explain_missing_runtime("OpenVINO", "openvino") from None
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise UserError("this CPU does not compute in bf16")
