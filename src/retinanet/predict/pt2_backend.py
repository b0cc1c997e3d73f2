"""Exported models of torch.export."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import retinanet.boxes.nms  # noqa: F401  (the graph calls an operator that it registers)
from retinanet.predict.backend import OUTPUTS, ExportedModel, damaged, read_card

KEY = "retinanet.json"  # of the card, among the extra files or the metadata
COMPILED = ".compiled.pt2"  # how the name of what AOTInductor made ends


def open_pt2(path: Path, *, raw: bool = False) -> ExportedModel:
    """A torch.export program on the CPU.

    A file that AOTInductor made holds machine code: it runs only where its name is given, never because it lies in a
    folder, and should come from somebody you trust.

    Raises:
        UserError: the file is damaged, not ours, of a newer version or raw.
    """
    try:
        module, text = (_compiled if path.name.endswith(COMPILED) else _program)(path)
    except (RuntimeError, ValueError, OSError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        raise damaged(path, "torch.export", error) from None
    card, _ = read_card(text, path, raw=raw, outputs=OUTPUTS)

    def graph(images: NDArray[Any], sizes: NDArray[np.int64]) -> Sequence[NDArray[Any]]:
        with torch.inference_mode():
            return [output.numpy() for output in module(torch.from_numpy(images), torch.from_numpy(sizes))]

    runtime = "torch.export, compiled," if path.name.endswith(COMPILED) else "torch.export"
    return ExportedModel(card, graph, runtime=runtime, streams=1)


def _program(path: Path) -> tuple[Callable[..., Any], str]:
    extra = {KEY: ""}
    log = logging.getLogger("torch.export")
    level = log.level
    log.setLevel(logging.CRITICAL)  # it would log pages about a damaged file before it raises
    try:
        program = torch.export.load(path, extra_files=extra)
        # torch guards what it took for granted of the memory layout of maps with more than one cell, and would refuse
        # images below 129 pixels, where the coarsest map has one; no operator of ours depends on it.
        return program.module(check_guards=False), extra[KEY]
    finally:
        log.setLevel(level)


def _compiled(path: Path) -> tuple[Callable[..., Any], str]:
    loaded: Any = torch._inductor.aoti_load_package(str(path))
    return loaded, loaded.get_metadata().get(KEY, "")
