"""A model as bytes, which a cluster carries to each of its machines once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from retinanet.errors import UserError
from retinanet.inference.backend import Mode
from retinanet.inference.predictor import Predictor
from retinanet.spec import CONFIG, TENSORS, exported_file, exported_files


@dataclass(frozen=True)
class PackedModel:
    """The files of a model.

    Attributes:
        name: what is loaded of them: the file of an exported model; empty for a model folder.
        files: content by name.
    """

    name: str
    files: Mapping[str, bytes]

    @cached_property
    def sha256(self) -> str:
        """The digest of all files."""
        digest = hashlib.sha256()
        for name, content in sorted(self.files.items()):
            digest.update(f"{name} {len(content)}\n".encode())
            digest.update(content)
        return digest.hexdigest()

    def load(self, threads: int, **options: Any) -> Predictor:
        """A predictor of it that computes with ``threads``; ``options`` as :meth:`Predictor.load` has them."""
        with TemporaryDirectory(prefix="retinanet-") as folder:
            for name, content in self.files.items():
                (Path(folder) / name).write_bytes(content)
            mode: Mode = "throughput" if self.name and threads > 1 and not self.name.endswith(".pt2") else "latency"
            return Predictor.load(Path(folder) / self.name, mode=mode, cores=threads, **options)

    def check(self, threads: int, options: Mapping[str, Any]) -> Predictor:
        """What :meth:`load` gives, where it is asked before actors are started: here there may be no GPU.

        Raises:
            UserError: the model cannot be loaded, or not with these options.
        """
        elsewhere = not self.name and str(options.get("device", "auto")).startswith("cuda")
        return self.load(threads, **{**options, **({"device": "cpu", "precision": "fp32"} if elsewhere else {})})


def pack_model(model: str | Path) -> PackedModel:
    """The files of a model folder, an exported model or a name, as :meth:`Predictor.load` takes them.

    Raises:
        UserError: there is no such model, or a file cannot be read.
    """
    if file := exported_file(model):
        paths, name = exported_files(file), file.name
    else:
        from retinanet.interop.pretrained import model_folder  # which needs torch

        folder = model_folder(model)
        if folder is None:
            raise UserError(f"no model in {model}: expected a folder with {CONFIG} and {TENSORS}, or an exported model")
        paths, name = [folder / CONFIG, folder / TENSORS], ""
    try:
        return PackedModel(name, {path.name: path.read_bytes() for path in paths})
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror or error}). Copy it again") from None
