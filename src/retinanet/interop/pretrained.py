"""Models by name: a folder, weights that torchvision publishes, or a hub repository."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path

from retinanet import __version__
from retinanet.errors import UserError
from retinanet.interop.conversion import save_conversion
from retinanet.interop.convert import converted
from retinanet.interop.files import read_weights
from retinanet.interop.hub import cache_folder, repository, torchvision_file
from retinanet.model.presets import PRESETS
from retinanet.spec import CONFIG


def model_folder(name: str | Path) -> Path | None:
    """The local folder of a model.

    Args:
        name: a model folder; ``torchvision/retinanet_resnet50_fpn`` or ``..._v2``, which is downloaded and converted
            once; or ``owner/name``, a hub repository in our format.

    Returns:
        The folder, or None where ``name`` is a preset or nothing of the kind.

    Raises:
        UserError: what is named cannot be downloaded or converted.
    """
    path, text = Path(name), str(name)
    if (path / CONFIG).is_file():
        return path
    if text in PRESETS or path.exists():
        return None
    if file := torchvision_file(text):
        return _converted_once(file)
    # A slip in the name of a local folder is told as such; only a name that leads nowhere here is looked up elsewhere.
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text) and not path.parent.exists():
        return repository(text)
    return None


def _converted_once(file: Path) -> Path:
    """The model folder of torchvision's file, in the cache."""
    with file.open("rb") as stream:
        digits = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    folder = cache_folder() / __version__ / f"{file.stem}-{digits}"
    if not (folder / CONFIG).is_file():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder.parent))
        except OSError as error:
            raise UserError(
                f"the converted weights cannot be kept in {folder.parent} ({error}). Set XDG_CACHE_HOME to a folder "
                f"that can be written, or convert once: retinanet convert {file} FOLDER"
            ) from None
        try:
            save_conversion(converted(read_weights(file)), scratch)
            shutil.rmtree(folder, ignore_errors=True)  # whatever is there is no whole model
            os.replace(scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder
