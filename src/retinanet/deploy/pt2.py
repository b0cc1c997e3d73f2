"""torch.export's own file, and what AOTInductor makes of it."""

from __future__ import annotations

import io
import shutil
import warnings
from pathlib import Path

import torch

from retinanet.deploy.graph import DetectionModule, RawModule, trace
from retinanet.detector import Detector
from retinanet.digest import seal
from retinanet.errors import UserError
from retinanet.inference.card import Card
from retinanet.inference.pt2_backend import COMPILED, KEY


def write_pt2(detector: Detector, card: Card, path: Path, *, compile: bool) -> None:
    """Write a torch.export program; with ``compile`` also machine code for this kind of CPU, beside it.

    Raises:
        UserError: there is no C++ compiler.
    """
    if compile and not any(map(shutil.which, ("g++", "clang++"))):
        raise UserError(
            "--compile needs a C++ compiler (g++ or clang++), and none was found. Install one, or leave out --compile"
        )
    dtype = torch.bfloat16 if card.precision == "bf16" else torch.float32
    module = RawModule(detector, dtype) if card.raw else DetectionModule(detector, dtype)
    module.to(memory_format=torch.channels_last)
    program = trace(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about weights that share memory
        # By way of memory: torch's own writer ends the process where the disk is full.
        buffer = io.BytesIO()
        inputs, program.example_inputs = program.example_inputs, None  # torch would pickle them
        torch.export.save(program, buffer, extra_files={KEY: card.to_json()})
        path.write_bytes(buffer.getbuffer())
        seal(path)
        if compile:
            program.example_inputs = inputs
            compiled = path.with_name(path.stem + COMPILED)
            torch._inductor.aoti_compile_and_package(
                program,
                package_path=str(compiled),
                inductor_configs={"aot_inductor.metadata": {KEY: card.to_json()}},
            )
            seal(compiled)
