"""Which paths are exported models, as far as names tell."""

from __future__ import annotations

from pathlib import Path

EXPORTED = ("model.xml", "model.onnx", "model.pt2")  # OpenVINO, ONNX, torch.export


def exported_file(path: str | Path) -> Path | None:
    """The file of an exported model, or None where a path is something else.

    Args:
        path: the file, ending in .xml, .onnx or .pt2; or a folder that has one under the name export gives it. Of
            several, OpenVINO's comes before ONNX's, and a folder with a ``config.json`` is a model folder.
    """
    path = Path(path)
    if path.is_file():
        return path if path.suffix in (".xml", ".onnx", ".pt2") else None
    if (path / "config.json").is_file():
        return None
    return next((path / name for name in EXPORTED if (path / name).is_file()), None)
