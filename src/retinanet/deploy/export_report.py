"""What an export did and how it was proven."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from retinanet import __version__
from retinanet.deploy.parity import Comparison, RawComparison


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

    def save(self, folder: Path) -> None:
        """Write export.txt and export.json."""
        values = {"library_version": __version__, **asdict(self)}
        (folder / "export.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        (folder / "export.txt").write_text(f"{self}\n", encoding="utf-8")
