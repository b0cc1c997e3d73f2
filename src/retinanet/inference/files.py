"""Which paths are exported models, as far as names tell."""

from __future__ import annotations

from pathlib import Path

from retinanet.errors import UserError

FOUND = ("model.xml", "model.onnx")  # OpenVINO, ONNX: they hold no code. A pt2 file can, so it has to be named


def exported_file(path: str | Path) -> Path | None:
    """The file of an exported model, or None where a path is something else.

    Args:
        path: the file, ending in .xml, .onnx or .pt2; or a folder that has model.xml or model.onnx. Of the two,
            OpenVINO's comes first, and a folder with a ``config.json`` is a model folder.

    Raises:
        UserError: a folder has nothing but a pt2 file, which is never found by looking, because loading it can run
            code.
    """
    path = Path(path)
    if path.is_file():
        return path if path.suffix in (".xml", ".onnx", ".pt2") else None
    if (path / "config.json").is_file():
        return None
    if found := next((path / name for name in FOUND if (path / name).is_file()), None):
        return found
    if named := sorted(path.glob("*.pt2")):
        raise UserError(
            f"{path} holds {named[0].name}, and loading a pt2 file can run code, so it has to be named. If you trust "
            f"whoever made it, give {named[0]} as the model, with --trust (trust=True in Python)"
        )
    return None
