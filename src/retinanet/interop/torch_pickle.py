"""Files of torch.save, by torch's own weights-only reader, with the bystanders of training made inert."""

from __future__ import annotations

import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from retinanet.errors import UserError

# Classes that training checkpoints hold beside the weights; nothing is built of them, see Inert.
INERT_ROOTS = frozenset(
    {
        *("addict", "detectron2", "fvcore", "lightning", "lightning_fabric", "mmcls", "mmcv", "mmdet", "mmengine"),
        *("mmpretrain", "omegaconf", "pytorch_lightning", "yacs"),
    }
)
INERT_NAME = re.compile(
    r"argparse\.Namespace|typing\.Any|pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path|collections\.defaultdict"
    r"|builtins\.(getattr|bool|dict|float|int|list|object|str|tuple)"  # types as values; getattr names a method
    r"|numpy\.(dtype|ndarray|bool_?|u?int\d+|float\d+|dtypes\.\w+DType)"
    r"|numpy\._?core\.(multiarray\.(_reconstruct|scalar)|numeric\._frombuffer)"
)
PYTHON_2 = {"long": "builtins.int", "unicode": "builtins.str"}  # protocol 2 writes the old names, torch reads the new
INERT_DICTS = ("AttributeDict", "CfgNode", "ConfigDict", "Dict", "defaultdict")


class Inert:
    """Stands for any class or function of a training checkpoint: takes everything, keeps nothing, does nothing.

    torch's weights-only unpickler can construct it (REDUCE, NEWOBJ) and hand it a state (BUILD). It cannot call, extend
    or index an instance, and puts it where the file says; the reader then drops it.
    """

    __slots__ = ()

    def __new__(cls, *arguments: Any) -> Inert:
        """An instance, whatever the arguments."""
        return object.__new__(cls)

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        """Forget the state."""


class InertDict:
    """As :class:`Inert` for subclasses of dict, whose items torch sets only in a plain one."""

    def __new__(cls, *arguments: Any) -> OrderedDict:  # type: ignore[misc]
        """An empty OrderedDict, whatever the arguments."""
        return OrderedDict()


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
    """Read a file of torch.save without running anything in it.

    Args:
        path: the file.
        zipped: whether it is of torch 1.6 or later.

    Returns:
        what the file holds, with instances and classes :class:`Inert` in it, and the names that were made inert.

    Raises:
        UserError: damaged, a whole module, TorchScript, or a file that asks for anything that weights do not need.
    """
    try:
        names = _names_in_zip(path) if zipped else _names_in_legacy(path)
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can fail anywhere
        raise UserError(f"{path} is damaged or cut short ({error}). Download or copy it again") from None
    inert = sorted(name for name in names if name.split(".")[0] in INERT_ROOTS or INERT_NAME.fullmatch(name))
    try:
        with _nothing_allowed_but(inert), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True), inert
    except Exception as error:  # a damaged or malicious pickle can fail anywhere
        raise UserError(f"{path} {_why_refused(path.name, names, str(error))}") from None


def _why_refused(name: str, names: set[str], error: str) -> str:
    """What torch's reader found wrong, and what to do."""
    if modules := sorted(each for each in names if each.startswith("torch.nn.modules.")):
        return (
            f"holds a whole module ({modules[0]}, ...), not a state dict; to open it would run code of the file's "
            f"choice. If you trust it, {resave(name, module=True)}"
        )
    if asked := re.search(r"GLOBAL (\S+)", error):
        return (
            f"asks for {asked.group(1)}, which weights do not need; to open it might run code, and nothing of it was "
            f"run. If you trust it, {resave(name)}"
        )
    lines = error.split("WeightsUnpickler error:")[-1].split("\n\nCheck the doc")[0].strip().splitlines()
    return (
        f"is damaged, cut short or not plain weights ({lines[-1].strip() if lines else 'no reason given'}). Download "
        f"or copy it again; if it is whole and you trust it, {resave(name)}"
    )


@contextmanager
def _nothing_allowed_but(inert: list[str]) -> Iterator[None]:
    """Let torch's reader meet these names as placeholders, and none that the process has allowed elsewhere."""
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        stand_ins: list[Any] = [(InertDict if name.split(".")[-1] in INERT_DICTS else Inert, name) for name in inert]
        torch.serialization.add_safe_globals(stand_ins)
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(allowed)


def _names_in_zip(path: Path) -> set[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            if any(member.endswith("/constants.pkl") or member == "constants.pkl" for member in members):
                raise UserError(
                    f"{path} is a TorchScript archive, a program. Where it runs, save its weights: "
                    f'torch.save(torch.jit.load("{path.name}").state_dict(), "{path.stem}_state_dict.pth")'
                )
            pickles = [member for member in members if member.split("/")[-1] == "data.pkl"]
            if len(pickles) != 1:
                raise UserError(
                    f"{path} is a zip archive, but not one of torch.save: it holds {', '.join(members[:5])}. Give the "
                    "checkpoint itself, unpacked"
                )
            with archive.open(pickles[0]) as file:
                return _names(file)
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is damaged or cut short ({error}). Download or copy it again") from None


def _names_in_legacy(path: Path) -> set[str]:
    """The fourth pickle of the file holds what was saved, after the magic number, the version and the machine."""
    with path.open("rb") as file:
        for _ in range(3):
            _names(file)
        return _names(file)


def _names(file: Any) -> set[str]:
    """The dotted names of all classes and functions that a pickle asks for; nothing is looked up."""
    found, texts = set(), ["", ""]
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL":
            module, name = str(argument).split(" ", 1)
            found.add(PYTHON_2.get(name, f"builtins.{name}") if module == "__builtin__" else f"{module}.{name}")
        elif opcode.name == "STACK_GLOBAL":  # torch refuses it; the names serve the message
            found.add(".".join(texts))
        elif isinstance(argument, str):
            texts = [texts[1], argument]
    return found
