"""Exported models of torch.export."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import retinanet.anchors.nms  # noqa: F401  (the graph calls an operator that it registers)
from retinanet.errors import UserError
from retinanet.inference.exported import OUTPUTS, ExportedModel, ReadCard
from retinanet.inference.runtimes import silence

KEY = "retinanet.json"  # of the card, among the extra files or the metadata
COMPILED = ".compiled.pt2"  # how the name of what AOTInductor made ends

# What torch.export.save writes, below a folder of the archive's own name, and torch reads as data. Whatever else there
# is (pickled tensors, objects and inputs, files of older releases, shared libraries) runs code when it is loaded.
_DATA = re.compile(
    r"[^/]+/(models/[^/]+\.json|data/(weights|constants)/[^/]+_config\.json|data/weights/weight_\d+"
    r"|data/constants/tensor_\d+|extra/.+|archive_format|archive_version|byteorder|\.data/[^/]+)"
)
_MACHINE_CODE = re.compile(r"[^/]+/data/aotinductor/.+")


def load_pt2(path: Path, read: ReadCard, *, trust: bool = False, trust_code: bool = False) -> ExportedModel:
    """A torch.export program on the CPU.

    No pt2 file is safe to open unless you trust whoever made it: torch evaluates the expressions for image sizes that
    lie in it, with sympy, as Python. Our own exports hold nothing else that could run.

    Args:
        path: the file.
        read: makes the card of its text and the names of the graph's outputs.
        trust: whoever made the file is trusted; without it no pt2 file is opened.
        trust_code: needed as well where the archive has parts that are pickled or compiled, as AOTInductor's are.

    Raises:
        UserError: the file is not trusted.
    """
    if not trust:
        raise UserError(
            f"{path}: loading a pt2 file can run code, because torch evaluates expressions that lie in it. If you "
            "trust whoever made it, pass --trust (trust=True in Python); the formats onnx and openvino need no trust"
        )
    parts = _find_code(path)
    if parts and not trust_code:
        raise UserError(
            f"{path} has pickled or compiled parts, which run code when they are loaded ({parts[0]}"
            f"{f' and {len(parts) - 1} more' * (len(parts) > 1)}). If you trust them, pass --trust_code as well "
            "(trust_code=True in Python)"
        )
    module: Any
    if compiled := any(map(_MACHINE_CODE.fullmatch, parts)):
        module = torch._inductor.aoti_load_package(str(path))
        text = module.get_metadata().get(KEY, "")
    else:
        extra = {KEY: ""}
        with silence("torch.export"):  # it would log pages about a damaged file before it raises
            program = torch.export.load(path, extra_files=extra)
        # torch guards what it took for granted of the memory layout of maps with more than one cell, and would refuse
        # images below 129 pixels, where the coarsest map has one; no operator of ours depends on it.
        module, text = program.module(check_guards=False), extra[KEY]
    card, _ = read(text, OUTPUTS)

    def graph(images: NDArray[Any], sizes: NDArray[np.int64]) -> Sequence[NDArray[Any]]:
        with torch.inference_mode():
            return [output.numpy() for output in module(torch.from_numpy(images), torch.from_numpy(sizes))]

    return ExportedModel(card, graph, runtime="torch.export, compiled," if compiled else "torch.export", streams=1)


def _find_code(path: Path) -> list[str]:
    """The members of the archive that are, or may be, code; nothing is loaded for that.

    Raises:
        zipfile.BadZipFile, ValueError: the file is no archive, or damaged.
    """
    parts = []
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.filename
            if not _DATA.fullmatch(name) and (member.file_size or "/data/sample_inputs/" not in name):
                parts.append(name)
            elif name.endswith("_config.json") and "/models/" not in name:
                entries = json.loads(archive.read(member))["config"].values()
                named = {"weights": "weight_", "constants": "tensor_"}[name.split("/")[2]]
                if any(entry["use_pickle"] or not entry["path_name"].startswith(named) for entry in entries):
                    parts.append(name)
    return parts
