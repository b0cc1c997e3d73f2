"""The result of a command as one JSON object, whose form ``docs/reference/json.md`` promises."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retinanet import __version__
from retinanet.files import make_json_safe
from retinanet.plain import to_plain

VERSION = 1  # of the form; a field that is added leaves it, one that is renamed or removed raises it


def make_record(command: str, result: Any, arguments: Mapping[str, Any], exit_code: int) -> str:
    """The text of the object for what a command returned.

    Args:
        command: its name.
        result: of its function.
        arguments: of its function.
        exit_code: 0, or 1 where something was found wrong.
    """
    values = {"exit_code": exit_code, "result": _describe(command, result, arguments)}
    return _write(f"retinanet.{command}", values)


def make_error_record(command: str, reason: str, exit_code: int) -> str:
    """The text of the object for a command that stopped."""
    return _write("retinanet.error", {"exit_code": exit_code, "command": command, "error": reason})


def _write(schema: str, values: Mapping[str, Any]) -> str:
    record = {"schema": schema, "version": VERSION, "library_version": __version__, **values}
    return json.dumps(make_json_safe(to_plain(record)), ensure_ascii=False, allow_nan=False)


def _describe(command: str, result: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    output = {"output": arguments.get("output")}
    match command:
        case "demo":
            return {**output, "ap": result}
        case "predict" if arguments["engine"] == "ray":
            return dict(vars(result))
        case "predict":
            images = [{"path": one.path, "size": one.size, "detections": one.detections.to_dicts()} for one in result]
            failed = [{"path": path, "reason": reason} for path, reason in result.failed.items()]
            videos = [{**one.to_dict(), "files": one.files} for one in result.videos]
            return {**output, "images": images, "failed": failed, "videos": videos}
        case "check":
            return {**output, "stops": result.stops, **result.to_dict()}
        case "plan":
            return {"write": arguments["write"], **result.to_dict()}
        case "suspects":
            from retinanet.curation.report import to_dict

            counts = {"images": result.images, "boxes": result.boxes, "notes": result.notes}
            return {**output, **counts, **to_dict(result.found)}
        case "suggest":
            counts = {"images": result.images, "annotated": result.annotated}
            return {**output, **counts, "suggestions": [one.to_dict() for one in result.chosen]}
        case "convert":
            return {**output, "report": result, "conversion": _read_conversion(Path(arguments["output"]))}
        case "train" | "push":
            return dict(vars(result))
    return {**output, **result.to_dict()}


def _read_conversion(folder: Path) -> Any:
    """What ``convert`` wrote beside a model; None where it wrote a file for torchvision."""
    from retinanet.interop.conversion import REPORT

    file = folder / f"{REPORT}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
