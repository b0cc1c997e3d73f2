"""Models by name: a folder, weights that torchvision publishes, or a hub repository."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from retinanet import __version__
from retinanet.digest import file_sha256
from retinanet.errors import UserError
from retinanet.files import check_writable, write_folder
from retinanet.interop.convert import convert_weights
from retinanet.interop.files import read_weights
from retinanet.interop.hub import download, is_repository
from retinanet.interop.torchvision import download_torchvision
from retinanet.model.presets import PRESETS
from retinanet.spec import CONFIG

FILE_NAME = re.compile(r".*\.(bin|ckpt|h5|json|onnx|pkl|pt|pt2|pth|safetensors|xml|yaml)", re.IGNORECASE)


def model_folder(name: str | Path) -> Path | None:
    """The local folder of a model.

    A slip in a local path is told as such and asks no network: ``owner/name`` is looked up on the hub only where there
    is no folder ``owner`` here, no local path of nearly that name, and ``name`` does not end as a file does. Nor are
    ``runs/name`` and ``name/last``, which are paths of runs.

    Args:
        name: a model folder; ``torchvision/retinanet_resnet50_fpn`` or ``..._v2``, which is downloaded and converted
            once; or ``owner/name``, a hub repository in our format, also ``owner/name@revision``.

    Returns:
        The folder, or None where ``name`` is a preset or nothing of the kind.

    Raises:
        UserError: what is named cannot be downloaded or converted, or differs a little from a path that exists.
    """
    path, text = Path(name), str(name)
    if os.path.isfile(path / CONFIG):
        return path
    if text in PRESETS or os.path.exists(path):
        return None
    if file := download_torchvision(text):
        return _convert_once(file)
    if len(path.parts) > 1 and (near := _nearest_path(path)):
        raise UserError(f"no model in {text}; did you mean {near}?")
    is_local = FILE_NAME.fullmatch(path.name) or path.parts[:1] == ("runs",) or path.name == "last"
    owner = text.partition("/")[0]
    return download(text) if not is_local and is_repository(text) and not os.path.exists(owner) else None


def _nearest_path(path: Path) -> Path | None:
    """The path that exists and whose every part is spelt nearly as that of ``path``."""
    here = Path(path.anchor)
    for part in path.parts[len(here.parts) :]:
        try:
            names = os.listdir(here)
        except OSError:  # a file, or one that may not be read
            return None
        near = [part] if part in names else difflib.get_close_matches(part, names, n=1, cutoff=0.75)
        if not near:
            return None
        here /= near[0]
    return here


def _convert_once(file: Path) -> Path:
    """The model folder of torchvision's file, in the cache."""
    digits = file_sha256(file)[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "retinanet" / __version__ / f"{file.stem}-{digits}"
    if not os.path.isfile(folder / CONFIG):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            check_writable(folder)
        except (OSError, UserError) as error:
            raise UserError(
                f"the converted weights cannot be kept in {folder.parent} ({error}). Set XDG_CACHE_HOME to a folder "
                f"that can be written, or convert once: retinanet convert {file} FOLDER"
            ) from None
        with write_folder(folder, replace=True) as scratch:  # whatever is there is no whole model
            convert_weights(read_weights(file)).save(scratch)
    return folder
