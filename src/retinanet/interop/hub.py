"""Files of others that have to be downloaded: torchvision's weights, and model folders in a hub's repository."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from urllib.error import URLError

import torch

from retinanet.errors import UserError
from retinanet.spec import CONFIG, TENSORS


def torchvision_file(name: str) -> Path | None:
    """The file of ``torchvision:NAME`` (or ``torchvision/NAME``), downloaded if it is not there yet.

    It lies where torchvision itself keeps it.

    Returns:
        The file, or None where the name is not torchvision's.

    Raises:
        UserError: torchvision has no such RetinaNet, or its file cannot be had; the message says where to put it.
    """
    asked = re.fullmatch(r"torchvision[:/](.+)", name)
    if asked is None or Path(name).exists():
        return None
    from torchvision.models.detection import RetinaNet_ResNet50_FPN_V2_Weights, RetinaNet_ResNet50_FPN_Weights

    published = {
        "retinanet_resnet50_fpn": RetinaNet_ResNet50_FPN_Weights.COCO_V1,
        "retinanet_resnet50_fpn_v2": RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1,
    }
    if asked[1] not in published:
        raise UserError(f"torchvision publishes {' and '.join(published)}; there is no {asked[1]!r}")
    url = published[asked[1]].url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not file.is_file():
        _download(url, file)
    return file


def _download(url: str, file: Path) -> None:
    digits = re.search(r"-([a-f0-9]+)\.", file.name)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), hash_prefix=digits[1] if digits else None)
    except (URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"torchvision's weights could not be downloaded: tried {url} ({error}). On a machine with a network "
            f"download that address, and put the file at {file}; or convert it from wherever it lies: "
            f"retinanet convert {file.name} FOLDER"
        ) from None


def repository(name: str) -> Path:
    """The local copy of a hub repository ``owner/name`` that holds a model folder, downloaded if need be.

    Raises:
        UserError: it cannot be had, or holds no model of this format.
    """
    from huggingface_hub import snapshot_download

    quiet = logging.getLogger("huggingface_hub")
    level = quiet.level
    quiet.setLevel(logging.CRITICAL)  # it tells every retry; one message, ours, says all
    try:
        folder = Path(snapshot_download(name, allow_patterns=[CONFIG, TENSORS]))
    except Exception as error:  # the hub's library, its transport and the file system have dozens between them
        reason = " ".join(str(error).split())
        raise UserError(
            f"no model in {name}: it is no local folder, and as a hub repository it could not be fetched "
            f"({type(error).__name__}: {reason}). Check the name; without a network, copy its {CONFIG} and {TENSORS} "
            "into a folder and name that"
        ) from None
    finally:
        quiet.setLevel(level)
    if not (folder / CONFIG).is_file():
        raise UserError(f"the hub repository {name} holds no {CONFIG}: it is no model of this package")
    return folder


def cache_folder() -> Path:
    """Where converted models are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "retinanet"
