"""Files of torch.save, zip archives and the older kind; nothing in them is run, nothing of training is built.

torch's own weights-only reader runs nothing either, but a small file can make it work or allocate without end, and
what is nobody's weights (an optimiser's state) it reads as well.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from math import prod
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from retinanet.errors import UserError
from retinanet.interop.pickles import (
    BUILT_IN,
    Function,
    Inert,
    PickledTensor,
    PlainDict,
    SafeUnpickler,
    StandIn,
    are_sizes,
    check_instructions,
    require,
)

# Classes that training checkpoints hold beside the weights; nothing is built of them, see Inert.
INERT_NAME = re.compile(
    r"(addict|detectron2|fvcore|lightning(_fabric)?|mm(cls|cv|det|engine|pretrain)|omegaconf|pytorch_lightning|yacs)\..+"
    r"|argparse\.Namespace|typing\.Any|pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path|collections\.defaultdict"
    r"|builtins\.(getattr|bool|dict|float|int|list|object|str|tuple)"  # types as values; getattr names a method
    r"|numpy\.(dtype|ndarray|bool_?|u?int\d+|float\d+|dtypes\.\w+DType)"
    r"|numpy\._?core\.(multiarray\.(_reconstruct|scalar)|numeric\._frombuffer)"
)
INERT_DICTS = ("AttributeDict", "CfgNode", "ConfigDict", "Dict", "defaultdict")
# What torch's own reader builds beside tensors: plain things of no use to weights, not worth a note.
UNUSED = re.compile(r"torch\.(Tensor|Size|device|per_\w+)|builtins\.(bytearray|complex)")
STORAGES = {  # whose class is named after its dtype; the others are of bytes
    **{"Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16},
    **{"Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Bool": torch.bool},
    **{"ComplexDouble": torch.complex128, "ComplexFloat": torch.complex64, "QInt32": torch.int32},
}
LEGACY_PREAMBLE = 3  # pickles before the one that holds what was saved: a magic number, the version, the machine


def resave(name: str, *, module: bool = False) -> str:
    """Two lines of Python that save the state dict of a file that we do not open, with the sentence before them."""
    stem = name.rsplit(".", 1)[0]
    value = "checkpoint.state_dict()" if module else 'checkpoint["state_dict"]'
    other = 'checkpoint["model"].state_dict()' if module else 'checkpoint["model"]'
    return (
        "run these two lines in the environment that it was saved in and convert what they write:\n"
        f'    import torch; checkpoint = torch.load("{name}", map_location="cpu", weights_only=False)\n'
        f'    torch.save({value}, "{stem}_state_dict.pth")\n'
        f"(torch before 1.13 knows no weights_only, leave it out; where it is kept under another key, {other})"
    )


def read_torch(path: Path, *, zipped: bool) -> tuple[Any, list[str]]:
    """Read a file of torch.save without running anything in it; the content of tensors is left where it is.

    Args:
        path: the file.
        zipped: whether it is of torch 1.6 or later.

    Returns:
        what the file holds, its tensors as :class:`PickledTensor` and with instances and classes :class:`Inert` in it,
        and the names that were made inert.

    Raises:
        UserError: damaged, a whole module, TorchScript, or a file that asks for anything that weights do not need.
    """
    reader = _TorchReader(path)
    try:
        with path.open("rb") as file:
            tree = reader.read_zip(file) if zipped else reader.read_legacy(file)
    except UserError:
        raise
    except Exception as error:  # a damaged or malicious file can fail anywhere
        raise UserError(f"{path} {_why_refused(path.name, reader.names, str(error))}") from None
    return tree, sorted(reader.inert)


def _why_refused(name: str, names: set[str], error: str) -> str:
    """What is wrong with a file, and what to do."""
    if modules := sorted(each for each in names if each.startswith("torch.nn.modules.")):
        return (
            f"holds a whole module ({modules[0]}, ...), not a state dict; to open it would run code of the file's "
            f"choice. If you trust it, {resave(name, module=True)}"
        )
    if asked := re.search(r"asks for (\S+), which", error):
        return (
            f"asks for {asked[1]}, which weights do not need; to open it might run code, and nothing of it was run. If "
            f"you trust it, {resave(name)}"
        )
    return (
        f"is damaged or cut short, or not plain weights ({error or 'no reason given'}). Download or copy it again; if "
        f"it is whole and you trust it, {resave(name)}"
    )


@dataclass(slots=True, eq=False)
class _Storage(StandIn):
    """Numbers of the file: ``count`` elements of a dtype, from the byte ``start`` of the file on."""

    path: Path
    dtype: torch.dtype
    count: int
    start: int = -1

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.itemsize

    def tensor(self, dtype: Any, offset: Any, shape: Any, stride: Any) -> PickledTensor:
        """A view of the storage; its elements are read when it is asked for."""
        plain = are_sizes((offset, *shape, *stride)) and len(shape) == len(stride)
        require(plain, "it holds a tensor whose shape is not made of whole numbers")
        shape, size = tuple(shape), dtype.itemsize
        span = 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) if prod(shape) else 0
        fits = (offset + span) * size <= self.nbytes
        require(fits, f"it holds a tensor of shape {shape} that is larger than its storage")

        def read() -> Tensor:
            once = prod(shape) * size <= self.nbytes
            require(once, f"a tensor expanded over its memory, shape {shape}. Save its .clone()")
            content = np.fromfile(self.path, np.uint8, span * size, offset=self.start + offset * size)
            return torch.from_numpy(content).view(dtype).as_strided(shape, stride)

        return PickledTensor(shape, span * size, read)


class _TorchReader:
    """One file, with what was met in it.

    Attributes:
        names: that it asks for.
        inert: those of them that were made inert.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names: set[str] = set()
        self.inert: set[str] = set()
        self._records: dict[str, tuple[int, int]] = {}  # of a zip archive: first byte and size
        self._storages: dict[str, _Storage] = {}  # of a file of the older kind

    def read_zip(self, file: BinaryIO) -> Any:
        """What an archive of torch 1.6 or later holds."""
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
        names = [member.filename for member in members]
        if any(name.split("/")[-1] == "constants.pkl" for name in names):
            raise UserError(
                f"{self.path} is a TorchScript archive, a program. Where it runs, save its weights: "
                f'torch.save(torch.jit.load("{self.path.name}").state_dict(), "{self.path.stem}_state_dict.pth")'
            )
        pickles = [name for name in names if name.split("/")[-1] == "data.pkl"]
        if len(pickles) != 1:
            raise UserError(
                f"{self.path} is a zip archive, but not one of torch.save: it holds {', '.join(names[:5])}. Give the "
                "checkpoint itself, unpacked"
            )
        folder = pickles[0].removesuffix("data.pkl")
        for member in members:
            file.seek(member.header_offset + 26)
            lengths = np.frombuffer(file.read(4), "<u2")  # of the name and of the extra field, behind 30 bytes
            start = member.header_offset + 30 + int(lengths.sum())
            whole = member.compress_type == zipfile.ZIP_STORED and start + member.file_size <= self.path.stat().st_size
            require(whole, f"its member {member.filename} is compressed or cut short")
            self._records[member.filename.removeprefix(folder)] = start, member.file_size
        little = "byteorder" not in self._records or self._record(file, "byteorder") == b"little"
        require(little, "it was saved on a machine with another order of bytes")
        return self._unpickle(BytesIO(self._record(file, "data.pkl")))

    def read_legacy(self, file: BinaryIO) -> Any:
        """What a file from before torch 1.6 holds: pickles, and behind them each storage after its length."""
        for _ in range(LEGACY_PREAMBLE):
            check_instructions(file)
        tree = self._unpickle(file)
        for key in self._unpickle(file):
            storage = self._storages[key]
            count = int.from_bytes(file.read(8), "little")
            storage.start = file.tell()
            whole = count == storage.count and file.seek(storage.nbytes, 1) <= self.path.stat().st_size
            require(whole, f"the storage {key} has another size than expected")
        require(all(storage.start >= 0 for storage in self._storages.values()), "a storage is missing")
        return tree

    def _record(self, file: BinaryIO, name: str) -> bytes:
        start, size = self._records[name]
        file.seek(start)
        return file.read(size)

    def _unpickle(self, file: BinaryIO) -> Any:
        start = file.tell()
        self.names |= check_instructions(file)
        end = file.tell()
        file.seek(start)
        unpickler = SafeUnpickler(file, self._stand_in)
        unpickler.persistent_load = self._storage  # type: ignore[method-assign]
        tree = unpickler.load()
        file.seek(end)
        return tree

    def _storage(self, pid: Any) -> _Storage:
        """The storage that a tensor of the pickle lies in; no memory is taken."""
        kind, dtype, key, _, count, *view = pid
        usual = kind == "storage" and type(dtype) is torch.dtype and type(key) is str and not any(view)
        require(usual and are_sizes([count]), "it holds a storage of another kind than torch.save writes")
        storage = _Storage(self.path, dtype, count)
        if not self._records:
            return self._storages.setdefault(key, storage)
        storage.start, size = self._records[f"data/{key}"]
        require(storage.nbytes <= size, f"the storage {key} is said to have {storage.nbytes} bytes and has {size}")
        return storage

    def _stand_in(self, dotted: str) -> Any:
        """See :class:`retinanet.interop.pickles.SafeUnpickler`."""
        if dotted in TORCH:
            return TORCH[dotted]
        if storage := re.fullmatch(r"torch\.(?:cuda\.|storage\.)?(\w+)Storage", dotted):
            return STORAGES.get(storage[1], torch.uint8)
        if isinstance(dtype := vars(torch).get(dotted.removeprefix("torch.")), torch.dtype):
            return dtype
        if INERT_NAME.fullmatch(dotted):
            self.inert.add(dotted)
            return PlainDict if dotted.split(".")[-1] in INERT_DICTS else Inert
        return Inert if UNUSED.fullmatch(dotted) else None


def _view(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> PickledTensor:
    """A tensor of torch.save; the third version names a dtype, which its storage of bytes does not have."""
    require(type(storage) is _Storage, "it holds a tensor without a storage")
    dtype = next((entry for entry in rest if type(entry) is torch.dtype), storage.dtype)
    return storage.tensor(dtype, offset, shape, stride)


def _refuse_tensor(kind: str) -> Function:
    """Stands for the function that makes a tensor that is not dense."""

    def read() -> Tensor:
        raise UnpicklingError(f"a {kind} tensor, expected a dense one. Save it from the model before compression")

    return Function(lambda *_: PickledTensor(read=read))


def _rebuild_typed(rebuild: Any, _kind: Any, arguments: Any, _state: Any) -> Any:
    """A tensor that something was hung on, without it."""
    require(type(rebuild) is Function, "it calls something that is not a function")
    return rebuild(*arguments)


TORCH: Mapping[str, Any] = {
    **BUILT_IN,
    "collections.Counter": BUILT_IN["collections.OrderedDict"],
    "torch._tensor._rebuild_from_type_v2": Function(_rebuild_typed),
    "torch.serialization._get_layout": Function(lambda *_: None),
    **{f"torch._utils._rebuild_tensor{version}": Function(_view) for version in ("", "_v2", "_v3")},
    **{
        name: Function(lambda tensor, *_: tensor)
        for name in (
            "torch.nn.parameter.Parameter",
            "torch._utils._rebuild_parameter",
            "torch._utils._rebuild_parameter_with_state",
            "torch._utils._rebuild_device_tensor_from_cpu_tensor",
        )
    },
    **{
        f"torch._utils._rebuild_{name}": _refuse_tensor(kind)
        for name, kind in (
            ("device_tensor_from_numpy", "foreign device's"),
            ("meta_tensor_no_storage", "meta"),
            ("nested_tensor", "nested"),
            ("qtensor", "quantised"),
            ("sparse_tensor", "sparse (such as torch.sparse_coo)"),
            ("wrapper_subclass", "wrapped"),
        )
    },
}
