"""Open a weights file of any older code base without running anything in it.

What kind of file it is shows in its first bytes, never in its name.
"""

from __future__ import annotations

import os
from codecs import getincrementaldecoder
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from retinanet.digest import file_sha256
from retinanet.errors import UserError
from retinanet.interop.pickles import PickledTensor, read_pickle
from retinanet.interop.torch_pickle import read_torch, resave

WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "ema")
PREFIXES = ("module.", "model.", "_orig_mod.", "net.")
KERAS = (
    "is an HDF5 file, as keras-retinanet writes it. Its weights cannot be converted: its boxes are coded as corner "
    "offsets (x1, y1, x2, y2 divided by 0.2), not as centre and log size, and its convolutions use TensorFlow's "
    "asymmetric 'same' padding. Start from a model of torchvision, detectron2, mmdetection, odtk or yhenon's instead"
)
LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's number, the first pickle of files from before torch 1.6
MOST_COPIES = 16  # how many times the bytes of the file its tensors may take
HEAD = 512  # bytes that tell the kind, up to tar's mark at 257


@dataclass(frozen=True)
class WeightsFile:
    """The content of a weights file.

    Attributes:
        path: the file.
        tensors: its state dict, flat, on the CPU, under the file's own names without the wrappers' prefixes. Half
            and double precision become float32.
        meta: the plain values (None, bool, int, float, str, and lists, tuples and dicts of them) beside the state dict.
        sha256: of the file, in hexadecimal.
        notes: what was changed or left out, one sentence each.
    """

    path: Path
    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    sha256: str
    notes: tuple[str, ...]


def read_weights(path: str | Path) -> WeightsFile:
    """Read the state dict of a file of torch, safetensors or a pickle of numpy arrays.

    The state dict is the file's root or lies under one of ``state_dict``, ``model_state_dict``, ``model``, ``module``,
    ``net``, ``ema``, at any depth. A prefix that every key has, of ``module.``, ``model.``, ``_orig_mod.``, ``net.``,
    is removed; the metrics that a Lightning checkpoint holds beside its model (``iou_metric.x``) need not have it.

    Raises:
        UserError: no such file, another kind of file, a damaged one, one that would run code, or one without a state
            dict of finite, dense tensors.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder; name the weights file in it")
    if not os.path.isfile(path):
        raise UserError(f"no such file: {path}")
    sha256 = file_sha256(path)
    tree, meta, notes = _open(path)
    state, beside = _find(path, tree, notes)
    tensors = _unwrap(_tensors(path, state, notes), notes)
    return WeightsFile(path, tensors, beside | meta, sha256, tuple(notes))


def _open(path: Path) -> tuple[Any, dict[str, Any], list[str]]:
    """Whatever the file holds, its metadata and notes, by the reader that its first bytes ask for."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        raise UserError(f"{path} is empty. Download or copy it again")
    legacy = head[:1] == b"\x80" and LEGACY_MAGIC in head[2:32]
    if legacy or head.startswith(b"PK\x03\x04"):
        tree, inert = read_torch(path, zipped=not legacy)
        return tree, {}, [f"objects beside the weights were not built: {', '.join(inert)}"] if inert else []
    if head[:1] == b"\x80" and b"\2" <= head[1:2] <= b"\5":
        try:
            with path.open("rb") as file:
                return read_pickle(file), {}, []
        except Exception as error:  # a damaged pickle can fail anywhere
            raise UserError(
                f"{path} is a pickle that cannot be read as numpy arrays in plain containers: {error}. Nothing in it "
                f"was run. Download it again; if it was made with torch and you trust it, {resave(path.name)}"
            ) from None
    header_fits = int.from_bytes(head[:8], "little") + 8 <= path.stat().st_size
    if head[8:10] == b'{"' or (head[8:9] == b"{" and header_fits):
        try:
            with safe_open(path, framework="pt") as tensors:
                metadata = tensors.metadata()
            return load_file(path), dict(metadata or {}), []
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise UserError(f"{path} is a damaged safetensors file ({error}). Download or copy it again") from None
    raise UserError(f"{path} {_describe_stranger(head)}")


def _describe_stranger(head: bytes) -> str:
    """What a file is that no reader takes, and what to do."""
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return KERAS
    if head[257:262] == b"ustar":
        return "is a tar archive, which is not read. Unpack it and give the weights file in it"
    if head[0] == 8 and head[1:2] <= b"\x20" and head[2:3] in (b"\x12", b"\x1a", b'"', b"(", b"2", b":", b"B"):
        return "is an ONNX model, whose weights have lost their names. Give the checkpoint that it was exported from"
    with suppress(UnicodeDecodeError):
        text = getincrementaldecoder("utf-8")().decode(head)  # its last character may be cut
        if "\0" not in text:
            return (
                f"is text, not weights; it begins with {text[:40]!r}. Perhaps a web page or a Git LFS pointer was "
                "saved in place of the file: download it again"
            )
    return (
        "is no weights file that is known here: expected one of torch.save, safetensors, or a pickle of numpy arrays "
        f"(detectron2). It begins with {head[:8]!r}"
    )


def _find(path: Path, tree: Any, notes: list[str]) -> tuple[dict[Any, Any], dict[str, Any]]:
    """The mapping that is the state dict, and the plain values beside it and beside the mappings around it."""
    meta: dict[str, Any] = {}
    budget = iter(range(100_000))
    wrapping: dict[int, bool] = {}
    holding: dict[int, bool] = {}
    for _ in range(8):
        if not isinstance(tree, dict):
            break
        inside = [
            key for key in WRAPPERS if isinstance(tree.get(key), dict) and _holds_tensor(tree[key], wrapping, WRAPPERS)
        ]
        if not inside and not any(isinstance(value, Tensor | PickledTensor) for value in tree.values()):
            raise UserError(
                f"{path} has no state dict: expected names with tensors, at the root or under one of "
                f"{', '.join(WRAPPERS)}; found the keys {', '.join(map(_show, list(tree)[:20])) or '(none)'}"
            )
        if not inside:
            return tree, meta
        others = [key for key, value in tree.items() if key != inside[0] and _holds_tensor(value, holding)]
        if others:
            notes.append(
                f"the weights were taken from {inside[0]!r}; left out: {', '.join(map(_show, others[:9]))}. "
                "To convert one of these, save it in a file of its own"
            )
        beside = _plain({key: value for key, value in tree.items() if key not in inside}, budget)
        meta = (beside if isinstance(beside, dict) else {}) | meta
        tree = tree[inside[0]]
    kind = "Tensor" if isinstance(tree, PickledTensor) else type(tree).__name__
    raise UserError(f"{path} holds a {kind}, expected a state dict: names with tensors")


def _show(key: Any) -> str:
    """A key for a message; the file may have chosen one that takes long to write down."""
    return repr(key)[:60] if isinstance(key, str) else type(key).__name__


def _holds_tensor(value: Any, known: dict[int, bool], keys: Sequence[str] | None = None, depth: int = 0) -> bool:
    """Whether there is a tensor in nested mappings, such as a wrapped state dict or an optimiser's state.

    Args:
        value: a tensor, a mapping or anything else.
        known: answers by the id of a mapping: each is searched once, however often the file refers to it.
        keys: the only keys that lead to a mapping that is searched as well; None for all.
        depth: of the value.
    """
    if not isinstance(value, dict) or depth > 4:
        return isinstance(value, Tensor | PickledTensor)
    if id(value) not in known:
        known[id(value)] = False  # a mapping may hold itself
        known[id(value)] = any(
            _holds_tensor(entry, known, keys, depth + 1)
            for key, entry in value.items()
            if isinstance(entry, Tensor | PickledTensor) or keys is None or key in keys
        )
    return known[id(value)]


_DROPPED = object()


def _plain(value: Any, budget: Iterator[int], depth: int = 0) -> Any:
    """A value made of plain values only; entries of a dict that are anything else are left out, a list as a whole.

    The budget and the depth end it on a file whose containers hold themselves or each other a million times.
    """
    if depth > 16 or next(budget, None) is None:
        return _DROPPED
    if type(value) is int and value.bit_length() > 64:  # one of a million digits takes hours to write down
        return _DROPPED
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) in (list, tuple):
        items = [_plain(item, budget, depth + 1) for item in value]
        return _DROPPED if any(item is _DROPPED for item in items) else type(value)(items)
    if isinstance(value, dict):
        entries = {key: _plain(entry, budget, depth + 1) for key, entry in value.items() if type(key) in (str, int)}
        return {key: entry for key, entry in entries.items() if entry is not _DROPPED}
    return _DROPPED


def _tensors(path: Path, state: dict[Any, Any], notes: list[str]) -> dict[str, Tensor]:
    """The tensors of a state dict: dense, finite, on the CPU, in float32 or whole numbers."""
    kept = {
        key: value for key, value in state.items() if type(key) is str and isinstance(value, Tensor | PickledTensor)
    }
    others = [key if type(key) is str else _show(key) for key in state if key not in kept]
    if sum(value.nbytes for value in kept.values()) > MOST_COPIES * path.stat().st_size:
        raise UserError(
            f"{path}: its tensors share memory, and reading them would take much more than the size of the file. Save "
            "clones of them"
        )
    read = {key: _tensor(f"{path}, {key}", value) for key, value in kept.items()}
    changed = [key for key, value in read.items() if value.is_floating_point() and value.dtype != torch.float32]
    if changed:
        notes.append(f"{len(changed)} tensors of half or double precision were converted to float32")
    if others:
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        shown = ", ".join(key[:60] for key in others[:5])
        notes.append(f"values of the state dict that are no tensors were left out: {shown}{more}")
    return read | {key: read[key].float() for key in changed}


def _tensor(where: str, value: Tensor | PickledTensor) -> Tensor:
    """One tensor, read and checked."""
    try:
        tensor = value if isinstance(value, Tensor) else value.read()
    except (UnpicklingError, OSError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{where}: {error}") from None
    if tensor.is_complex() or (tensor.is_floating_point() and tensor.element_size() < 2):
        raise UserError(f"{where}: a tensor of {tensor.dtype}, expected one of float32, float16 or bfloat16")
    if not bool(torch.isfinite(tensor).all()):
        raise UserError(f"{where}: the tensor holds NaN or infinity. The training has diverged; take an earlier file")
    return tensor


def _unwrap(tensors: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """Remove what every name begins with, as often as it takes; metrics beside a Lightning model stay."""
    while True:
        own = [key for key in tensors if "metric" not in key.split(".")[0]]
        found = [prefix for prefix in PREFIXES if own and all(key.startswith(prefix) for key in own)]
        if not found:
            return tensors
        bare = {key.removeprefix(found[0]) if key in set(own) else key: value for key, value in tensors.items()}
        if len(bare) < len(tensors):  # a metric bears the bare name
            return tensors
        whose = "every key" if len(own) == len(tensors) else "every key but the metrics"
        notes.append(f"the prefix {found[0]!r} was removed from {whose}")
        tensors = bare
