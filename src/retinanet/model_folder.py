"""The model folder: ``config.json`` and ``model.safetensors``, all that a prediction needs and no code; and a card."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from retinanet.card import write_card
from retinanet.digest import file_sha256
from retinanet.errors import UserError
from retinanet.files import tensor_bytes, write_atomically
from retinanet.model.backbone import list_misfits
from retinanet.model.retinanet import RetinaNet
from retinanet.spec import CONFIG, TENSORS, ModelSpec, check_version, exported_file

DIGESTS = "weights_sha256"  # of config.json: the digests of a weights file that belongs to it, usually one


def write_model(folder: str | Path, spec: ModelSpec, tensors: Mapping[str, Tensor]) -> None:
    """Write a model folder; a reader never sees half of a file.

    Two files cannot be replaced at once. So the ``config.json`` that is there first takes up the digest of the new
    weights beside that of the old ones: whatever interrupts this function, the folder can be loaded.

    Args:
        folder: made if need be.
        spec: what to save beside the weights.
        tensors: the weights, the state dict of the network.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = Path(folder)
    contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    digests: list[str] = []

    def write(draft: Path) -> None:
        try:
            save_file(contiguous, draft, metadata={"format": "pt"})
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from None
        digests.append(file_sha256(draft))
        with suppress(UserError):  # there is no model yet, or none that can be read
            previous = read_config(folder)
            if DIGESTS in previous:
                _write_config(folder, {**previous, DIGESTS: [*previous[DIGESTS], *digests]})

    write_atomically(folder / TENSORS, write, size=tensor_bytes(contiguous))
    _write_config(folder, {**spec.to_dict(), DIGESTS: digests})
    write_card(folder)


def write_thresholds(folder: str | Path, thresholds: Mapping[str, float]) -> None:
    """Store the thresholds of the classes in a model folder, in place of earlier ones; its weights are not touched.

    Args:
        folder: the model folder.
        thresholds: scores from 0 to 1 by class name; a class may be missing.

    Raises:
        UserError: there is no model, it has no such class, a score is not from 0 to 1, or the file cannot be written.
    """
    config = read_config(folder)
    spec = replace(_read_spec(Path(folder), config), thresholds=thresholds)
    kept = {name: value for name, value in config.items() if name != "thresholds"}
    _write_config(Path(folder), {**kept, **({"thresholds": dict(spec.thresholds)} if spec.thresholds else {})})
    write_card(Path(folder))


def read_model(folder: str | Path) -> tuple[ModelSpec, RetinaNet]:
    """Read a model folder; the network is in evaluation mode on the CPU.

    Raises:
        UserError: there is no model, or it is damaged, from a newer version, or a pickle.
    """
    config, folder = read_config(folder), Path(folder)
    spec = _read_spec(folder, config)
    try:
        net = spec.architecture.build(len(spec.class_names))
    except UserError as error:
        raise UserError(f"{folder / CONFIG}: {error}") from None
    except (ValueError, RuntimeError, ArithmeticError, TypeError) as error:  # torch's, about numbers that make no layer
        raise UserError(f"{folder / CONFIG}: no network can be built from its architecture ({error})") from None
    _load_tensors(net, folder, config)
    return spec, net.eval()


def read_spec(folder: str | Path) -> ModelSpec:
    """What a model folder says about its model; the weights are not read.

    Raises:
        UserError: as :func:`read_model`.
    """
    return _read_spec(Path(folder), read_config(folder))


def read_config(folder: str | Path) -> dict[str, Any]:
    """The ``config.json`` of a model folder as plain values, its version checked.

    Raises:
        UserError: as :func:`read_model`.
    """
    folder = Path(folder)
    if exported_file(folder):
        raise UserError(
            f"{folder} is an exported model; it can predict and be evaluated. For this command give the model "
            "folder it was exported from"
        )
    if os.path.isfile(folder):
        raise UserError(
            f"{folder} is a file; a model is a folder with {CONFIG} and {TENSORS}. To make one of the weights of "
            f"another code base: retinanet convert {folder} FOLDER"
        )
    if not os.path.isfile(folder / CONFIG):
        raise UserError(f"no model in {folder}: expected a folder with {CONFIG} and {TENSORS}, as train writes it")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{folder / CONFIG} is not valid JSON: {error}") from None
    except OSError as error:
        raise UserError(
            f"{folder / CONFIG} cannot be read ({error.strerror or error}). chmod +r it, or copy it"
        ) from None
    config = dict(check_version(config, folder / CONFIG))
    if not isinstance(config.get(DIGESTS, []), list):
        raise UserError(f"{folder / CONFIG} is not a model's configuration: {DIGESTS} is not a list of digests")
    return config


def _load_tensors(net: RetinaNet, folder: Path, config: Mapping[str, Any]) -> None:
    """Load the weights of a model folder into its network, every tensor of them.

    Raises:
        UserError: missing or damaged file; a missing, extra or misshapen tensor, or one with NaN or infinity.
    """
    path = folder / TENSORS
    if not os.path.isfile(path):
        raise UserError(f"the model has no weights: {path} is missing")
    try:
        _check_digest(folder, config)
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        if not os.access(path, os.R_OK):
            raise UserError(f"{path} cannot be read: permission denied. Let its owner run chmod +r {path}") from None
        raise UserError(f"{path} is damaged or not a safetensors file ({error}). Copy it again") from None
    if wrong := list_misfits(tensors, net.state_dict()):
        shown = "; ".join(sorted(wrong)[:5])
        raise UserError(f"{path} does not fit its {CONFIG}, {len(wrong)} tensors are wrong: {shown}")
    # the extremes are ten times as fast to find as isfinite of every value, and NaN is passed on by both
    broken = [key for key, value in tensors.items() if not torch.stack(torch.aminmax(value)).isfinite().all()]
    if broken:
        shown = ", ".join(sorted(broken)[:5])
        raise UserError(f"{path}: NaN or infinity in {len(broken)} tensors: {shown}. Take an earlier model")
    net.load_state_dict(tensors)


def _read_spec(folder: Path, config: Mapping[str, Any]) -> ModelSpec:
    try:
        return ModelSpec.from_dict(config)
    except UserError as error:
        raise UserError(f"{folder / CONFIG} is not a model's configuration: {error}") from None


def _write_config(folder: Path, config: Mapping[str, Any]) -> None:
    write_atomically(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def _check_digest(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse weights that are not those that the configuration was written with, where it says which."""
    if DIGESTS not in config:
        return
    path = folder / TENSORS
    digest = file_sha256(path)
    # A training run may have replaced both files since the configuration was read.
    if digest not in config[DIGESTS] and digest not in read_config(folder).get(DIGESTS, [digest]):
        raise UserError(
            f"{path} is damaged or was replaced: its content is not what {CONFIG} recorded. Copy both files again; "
            f"if you replaced the weights on purpose, delete the entry {DIGESTS} from {folder / CONFIG}"
        )
