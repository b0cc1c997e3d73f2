"""``export``: a model for ONNX Runtime, OpenVINO or torch.export, with proof that it finds the same."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from retinanet import __version__
from retinanet.deploy.parity import (
    Comparison,
    RawComparison,
    compare,
    compare_raw,
    proof_batches,
    read_seen,
    spread_images,
)
from retinanet.detector import Detector
from retinanet.digest import file_sha256
from retinanet.errors import UserError
from retinanet.evaluation.evaluate import evaluate
from retinanet.files import check_writable, write_folder
from retinanet.inference.exported import Card, open_exported
from retinanet.inference.pt2 import COMPILED
from retinanet.interop.pretrained import model_folder
from retinanet.options import explain_unknown_options
from retinanet.spec import SUFFIXES, TENSORS

Format = Literal["onnx", "openvino", "pt2"]
Precision = Literal["fp32", "bf16", "int8"]
PRECISIONS = {"onnx": ("fp32", "int8"), "openvino": ("fp32", "bf16", "int8"), "pt2": ("fp32", "bf16")}
REPORTS = ("export.json", "export.txt")
OURS = {*(f"model{suffix}" for suffix in (*SUFFIXES.values(), ".bin", COMPILED)), *REPORTS}
SAMPLES = 300  # images that set the scales of int8, at most
SHOWN = 4  # images of the user's that the proof looks at
LOST = 0.01  # AP; where int8 costs more, the output of the class subnet goes back to fp32
BROKEN = 0.5  # a model in lower precision that finds less than this share of the certain detections is not saved


@dataclass(frozen=True)
class ExportReport:
    """An exported model; ``print`` shows it.

    Attributes:
        model: where it came from.
        folder: where it is.
        file: its name in there.
        format: onnx, openvino or pt2.
        precision: fp32, bf16 or int8.
        raw: whether it ends at the heads.
        calibration: images that set the scales of int8.
        proof: the exported model beside the network.
        kept_class_output: whether int8 left the last convolution of the class subnet in fp32.
        split: the data of the following two.
        ap: of the network in fp32, if it was measured.
        exported_ap: of the exported file itself, likewise.
        size: of the files, in bytes.
        weights_sha256: of the ``model.safetensors`` that it was made from.
    """

    model: str
    folder: str
    file: str
    format: str
    precision: str
    raw: bool
    calibration: int
    proof: Comparison | RawComparison | None = None
    kept_class_output: bool = False
    split: str = ""
    ap: float | None = None
    exported_ap: float | None = None
    size: int = 0
    weights_sha256: str = ""

    @property
    def lost(self) -> float:
        """AP that the exported file lost; NaN where it was not measured."""
        return float("nan") if self.ap is None or self.exported_ap is None else self.ap - self.exported_ap

    def __str__(self) -> str:
        lines = {"exported": f"{self.model} -> {Path(self.folder) / self.file}, {self.precision}"}
        if self.calibration:
            kept = "; the output of the class subnet stays in fp32" if self.kept_class_output else ""
            lines["calibration"] = f"{self.calibration} images{kept}"
        rough = isinstance(self.proof, Comparison) and self.precision != "fp32"
        lines["proof"] = self.proof.roughly() if rough else str(self.proof)  # type: ignore[union-attr]
        if self.ap is not None and self.exported_ap is not None:
            change = f"{self.exported_ap:.4f}, the network has {self.ap:.4f} ({-self.lost:+.4f})"
            lines["AP"] = f"{change} on {self.split}, both on the CPU"
        lines["size"] = f"{self.size / 1e6:.1f} MB"
        if not self.raw:
            pt2 = self.format == "pt2"  # loading it can run code, so it has to be named and trusted
            model = Path(self.folder) / self.file if pt2 else self.folder
            lines["use it"] = f"retinanet predict {model} IMAGES" + " --trust" * pt2
        return "\n".join(f"{name:<14} {text}" for name, text in lines.items())

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"library_version": __version__, **asdict(self)}

    def save(self, folder: Path) -> None:
        """Write export.txt and export.json."""
        (folder / "export.json").write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        (folder / "export.txt").write_text(f"{self}\n", encoding="utf-8")


@explain_unknown_options
def export(
    model: str,
    *,
    format: Format,
    precision: Precision = "fp32",
    calibrate: str | None = None,
    samples: int = SAMPLES,
    verify: str | None = None,
    split: str = "test",
    raw: bool = False,
    compile: bool = False,
    output: str | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write a model for ONNX Runtime, OpenVINO or torch.export, with proof that it finds the same.

    The file holds all that it takes: resize rule, normalisation, network, decoding, suppression, class names and
    thresholds. It is tried on images of several sizes, alone and in batches, an empty one and a crowd among them; one
    that does not find what the network finds is not saved.

    Args:
        model: model folder, torchvision/NAME or a hub repository.
        format: onnx, openvino, or pt2 (torch.export).
        precision: fp32; bf16, for openvino and pt2; int8, for onnx and openvino.
        calibrate: for int8, images like those that the model will see: annotated images, of which the training split
            is taken, or a folder of images.
        samples: how many of them are used at most.
        verify: annotated images; the AP of the exported file and of the network are measured on them.
        split: the part of verify to measure on.
        raw: the graph ends at the heads: logits and deltas of each level, no detections. For other runtimes; predict
            does not take it.
        compile: for pt2, write model.compiled.pt2 too: machine code for this kind of CPU, made with AOTInductor, which
            needs a C++ compiler and minutes.
        output: folder for the files; by default FORMAT-PRECISION in the model folder.
        overwrite: replace what an earlier export wrote there.

    Raises:
        UserError: no usable model, a precision that the format does not have, a package that is not installed, no
            images to calibrate with, the exported model differs, or the folder cannot be written.
    """
    _check_options(format, precision, calibrate, verify, raw, compile)
    home = Path(model_folder(model) or model)
    detector = Detector.load(home)
    folder = _choose_output(model, output, f"{format}-{precision}" + "-raw" * raw, overwrite=overwrite)
    images = spread_images(calibrate, samples) if calibrate else []
    shown = spread_images(verify, SHOWN, split) if verify else images[:SHOWN]
    sha256 = file_sha256(home / TENSORS)
    report = ExportReport(
        *(str(home), str(folder), f"model{SUFFIXES[format]}", format, precision, raw, len(images)),
        weights_sha256=sha256,
    )
    with write_folder(folder, replace=True) as new:
        make = partial(_write_and_prove, detector=detector, images=images, shown=shown, compile=compile)
        report = make(report, new)
        if verify is not None:
            report = replace(report, split=f"{verify}, {split}", ap=_measure_ap(home, verify, split))
            report = _verify(report, new, verify, split, partial(make, keep_class_output=True))
        report = replace(report, size=sum(path.stat().st_size for path in new.iterdir()))
        report.save(new)
    return report


def _check_options(
    form: str, precision: str, calibrate: str | None, verify: str | None, raw: bool, compile: bool
) -> None:
    """Refuse what cannot be done before anything is done."""
    if form not in PRECISIONS:
        raise UserError(f"--format is {', '.join(PRECISIONS)}; got {form!r}")
    if precision not in PRECISIONS[form]:
        better = {"bf16": "ONNX Runtime has no bf16 on a CPU; openvino has", "int8": "openvino and onnx have int8"}
        raise UserError(
            f"--precision {precision} is not available with --format {form}, which has {' and '.join(PRECISIONS[form])}"
            + (f" ({better[precision]})" if precision in better else "")
        )
    if precision == "int8" and calibrate is None:
        raise UserError("int8 needs images to set its scales: pass --calibrate DATA, such as the training data")
    if precision != "int8" and calibrate is not None:
        raise UserError(f"--calibrate is for int8; {precision} needs none")
    if raw and verify is not None:
        raise UserError("--verify needs detections, and --raw leaves them out. Pass one of the two")
    if compile and form != "pt2":
        raise UserError(f"--compile is for pt2; {form} is compiled by its runtime whenever it is loaded")


def _choose_output(model: str, output: str | None, name: str, *, overwrite: bool) -> Path:
    """The folder to make, checked before the work is done."""
    if output is None and not Path(model).exists():
        raise UserError(f"{model} is not a local folder: pass --output FOLDER to say where the export is written")
    folder = Path(output) if output is not None else Path(model) / name
    inside = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if folder.is_file() or inside - OURS or (inside and REPORTS[0] not in inside):
        raise UserError(f"--output {folder} holds files that are not an export. Choose a new folder")
    if inside and not overwrite:
        raise UserError(f"{folder} holds an export already. Choose another --output or pass --overwrite")
    check_writable(folder)
    return folder


def _write_and_prove(
    report: ExportReport,
    folder: Path,
    *,
    detector: Detector,
    images: list[Path],
    shown: list[Path],
    compile: bool,
    keep_class_output: bool = False,
) -> ExportReport:
    """Write the file into ``folder``, open it as its user would, and compare.

    Raises:
        UserError: the exported model differs from the network.
    """
    card = Card(detector.spec, report.precision, report.raw, weights_sha256=report.weights_sha256)
    file = folder / report.file
    try:  # the packages of a format are imported here
        if report.format == "pt2":
            from retinanet.deploy.graph import write_pt2

            write_pt2(detector, card, file, compile=compile)
        else:
            from retinanet.deploy.onnx import write_model

            write_model(detector, card, file, images, keep_class_output=keep_class_output)
    except ImportError as error:
        raise UserError(
            f"export to {report.format} needs a package that is not installed ({error}): "
            'pip install "retinanet[export]"'
        ) from None
    graph = open_exported(file, raw=report.raw, trust=True).graph
    batches = proof_batches(detector.spec.preprocess, [read_seen(detector.spec, *one) for one in enumerate(shown)])
    proof = (compare_raw if report.raw else compare)(detector, graph, batches)
    if (not proof.equal) if report.precision == "fp32" else (proof.sure < BROKEN):
        raise UserError(f"the exported model differs from the network, so it was not saved: {proof}")
    return replace(report, proof=proof, kept_class_output=keep_class_output)


def _verify(
    report: ExportReport, folder: Path, data: str, split: str, make_again: Callable[[ExportReport, Path], ExportReport]
) -> ExportReport:
    """Measure the AP of the file itself; int8 that costs too much is made again with the class output in fp32."""
    report = replace(report, exported_ap=_measure_ap(folder / report.file, data, split))
    if report.precision != "int8" or report.lost <= LOST:
        return report
    second = folder.with_name("second")
    second.mkdir()
    other = make_again(report, second)
    other = replace(other, exported_ap=_measure_ap(second / report.file, data, split))
    if other.lost >= report.lost:
        return report
    shutil.rmtree(folder)
    os.replace(second, folder)
    return other


def _measure_ap(model: Path, data: str, split: str) -> float:
    # trusted: a file of that kind was just written here
    return evaluate(model, data, split=split, device="cpu", trust=True).metrics.ap
