"""Read pickles without running anything in them: those of numpy arrays here, torch's in torch_pickle.py.

Three checks, each for what the others cannot see. The instructions are checked before any is followed: those that pass
``find_class`` by (extension codes) or that only code needs are refused, and so is a small pickle that means a large
amount of work. A name in the file becomes one of our stand-ins, never what it names. And the stand-ins have no
attributes that an instruction could write to.
"""

from __future__ import annotations

import pickle
import pickletools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pickle import UnpicklingError
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

MOST_INSTRUCTIONS = 5_000_000
MOST_WORK = 10_000_000  # items, each counted as often as the tuples that hold it are used
LARGEST_FRAME = 1 << 24  # bytes; pickle itself closes a frame after 64 KiB
INSTRUCTIONS = """
PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE FLOAT BINFLOAT INT BININT BININT1 BININT2 LONG LONG1 LONG4
STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS
EMPTY_DICT SETITEM SETITEMS EMPTY_SET ADDITEMS PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET
GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD BINPERSID
"""
ALLOWED = frozenset(INSTRUCTIONS.split())
PYTHON_2 = {"long": "int", "unicode": "str"}


def require(condition: object, otherwise: str) -> None:
    """Raise an ``UnpicklingError`` with the message ``otherwise`` unless a condition holds."""
    if not condition:
        raise UnpicklingError(otherwise)


def check_instructions(file: BinaryIO) -> set[str]:
    """Go through a pickle without following it, in time linear in its length.

    Two references to one tuple make a pair, sixty such pairs take 300 bytes, and hashing the last takes 2**60 steps.
    So an item weighs as much as hashing it would take: a tuple its items and 1, anything else 1.

    Args:
        file: an open binary file, at the start of the pickle; afterwards it is behind its end.

    Returns:
        The dotted names that GLOBAL instructions ask for.

    Raises:
        UnpicklingError: an instruction that weights do not need, or too much work. A damaged pickle may raise any other
            exception.
    """
    names: set[str] = set()
    stack: list[int] = []  # the weights of what would lie on pickle's own stack
    memo: dict[int, int] = {}
    marks: list[int] = []
    work = 0
    argument: Any
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        name = opcode.name
        if name not in ALLOWED:
            raise UnpicklingError(f"it uses the pickle instruction {name}, which weights do not need")
        if name == "GLOBAL":
            names.add(_dotted(*argument.split(" ", 1)))
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            number = len(memo) if argument is None else argument
            if number > count:  # pickle makes room for as many entries
                raise UnpicklingError(f"it stores an item under the number {number}, but has no so many items")
            memo[number] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            marks.append(len(stack))
        else:
            before = opcode.stack_before
            marked = pickletools.markobject in before
            start = (marks.pop() - before.index(pickletools.markobject)) if marked else len(stack) - len(before)
            require(start >= 0, "it takes more items than there are")
            weight = sum(stack[start:])
            work += weight
            stack[start:] = [1 + weight * (name.startswith("TUPLE") or name == "REDUCE")] * len(opcode.stack_after)
        large = work > MOST_WORK or count > MOST_INSTRUCTIONS or (name == "FRAME" and argument > LARGEST_FRAME)
        require(not large, "it would take a long time or much memory to read, as no weights do")
    return names


class StandIn:
    """What a pickle works on in place of an object of its own; the instruction BUILD cannot set its attributes."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Refuse the instruction BUILD."""
        raise UnpicklingError("it sets the state of something that is not an array")


@dataclass(eq=False, slots=True)
class Function(StandIn):
    """Stands for a function that the file names: one of ours is called in its place."""

    call: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        """What our function makes of the arguments."""
        return self.call(*arguments)


class PlainDict(dict[Any, Any]):
    """A dict that is made empty and forgets attributes, such as ``_metadata`` of a state dict."""

    __slots__ = ()

    def __init__(self, *arguments: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Forget the state."""


class Inert:
    """Stands for any class or function of a training checkpoint: takes everything, keeps nothing, does nothing."""

    __slots__ = ()

    def __new__(cls, *arguments: Any) -> Inert:
        """An instance, whatever the arguments."""
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Forget the state."""


class SafeUnpickler(pickle.Unpickler):
    """Pickle's own unpickler over the stand-ins of this package.

    Args:
        file: an open binary file, at the start of a pickle that :func:`check_instructions` let pass.
        stand_in: dotted name -> what the file gets in its place, or None where it may not have it.
    """

    def __init__(self, file: BinaryIO, stand_in: Callable[[str], Any]) -> None:
        super().__init__(file, encoding="latin1")  # Python 2 had no bytes
        self._stand_in = stand_in

    def find_class(self, module: str, name: str, /) -> Any:
        """The stand-in of a name; nothing is imported."""
        found = self._stand_in(dotted := _dotted(module, name))
        require(found is not None, f"it asks for {dotted}, which weights do not need")
        return found


def _read_nothing() -> Tensor:
    raise UnpicklingError("an array without content; the file is damaged")


@dataclass(eq=False, slots=True)
class PickledTensor(StandIn):
    """A tensor or array of the file, whose content is copied when it is asked for: many may share one content.

    Attributes:
        shape: of the tensor.
        nbytes: how much memory reading it takes.
        read: makes the tensor, on the CPU; it raises ``UnpicklingError`` where that cannot be done.
    """

    shape: tuple[int, ...] = ()
    nbytes: int = 0
    read: Callable[[], Tensor] = _read_nothing


def are_sizes(numbers: Iterable[Any]) -> bool:
    """Whether these can be sizes, strides or offsets: few enough, and small enough to be multiplied in no time."""
    numbers = list(numbers)
    return len(numbers) < 150 and all(type(number) is int and 0 <= number < 1 << 63 for number in numbers)


def read_pickle(file: BinaryIO) -> Any:
    """The content of a pickle of numpy arrays, protocols 2 to 5, as detectron2's model zoo has them.

    Args:
        file: an open binary file, at the start of the pickle.

    Returns:
        dicts, lists, tuples, sets, plain values and :class:`PickledTensor`; an OrderedDict comes as a dict, a numpy
        scalar as a number. Containers may hold themselves.

    Raises:
        UnpicklingError: the pickle asks for anything else. A damaged one may raise any other exception.
    """
    start = file.tell()
    check_instructions(file)
    file.seek(start)
    return SafeUnpickler(file, lambda dotted: NUMPY.get(dotted.replace("numpy.core.", "numpy._core.", 1))).load()


@dataclass(eq=False, slots=True)
class _DType(StandIn):
    value: np.dtype

    def __setstate__(self, state: Any) -> None:
        """Take over the order of bytes."""
        _, order, subdtype, names, fields = state[:5]
        plain = subdtype is names is fields is None and order in ("<", ">", "=", "|")
        require(plain, "it holds an array whose dtype is not a plain number")
        self.value = self.value.newbyteorder(order)


class _Array(PickledTensor):
    """An array of numpy, which may come before its content."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Take over what numpy saved of an array."""
        _, shape, dtype, fortran, content = state
        self.fill(_array(content, dtype, shape, "F" if fortran else "C"))

    def fill(self, array: np.ndarray) -> PickledTensor:
        """Take over the content."""
        native = array.dtype.newbyteorder("=")
        self.shape, self.nbytes = array.shape, array.nbytes
        self.read = lambda: torch.from_numpy(array.astype(native, order="C"))  # a copy, writable
        return self


def _make_dtype(code: Any, align: Any = False, copy: Any = True) -> _DType:
    shown = code if type(code) is str else type(code).__name__
    objects = "; an array of Python objects is refused" if shown.lstrip("<>=|").startswith("O") else ""
    plain = type(code) is str and re.fullmatch(r"[<>=|]?([fiu][1248]|b1)", code)
    require(plain, f"it holds an array of dtype {shown!r}, expected numbers{objects}")
    return _DType(np.dtype(code))


def _array(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """An array over bytes of the file, not copied."""
    if type(content) is str:  # Python 2 had no bytes
        content = content.encode("latin1")
    plain = type(content) in (bytes, bytearray) and type(dtype) is _DType and order in ("C", "F")
    require(plain, "it holds an array whose content is not bytes and a plain dtype")
    require(are_sizes(shape), "it holds an array whose shape is not made of whole numbers")
    fits = prod(shape) * dtype.value.itemsize == len(content)
    require(fits, f"it holds an array of shape {tuple(shape)} with {len(content)} bytes of content")
    return np.ndarray(tuple(shape), dtype.value, content, order=order)


def _start_array(kind: Any, shape: Any, code: Any) -> PickledTensor:
    require(kind is NUMPY["numpy.ndarray"], "it holds an array of another class than numpy.ndarray")
    return _Array()


def _dotted(module: str, name: str) -> str:
    """A name as Python 3 calls it."""
    return f"builtins.{PYTHON_2.get(name, name)}" if module == "__builtin__" else f"{module}.{name}"


def _encode_latin1(text: Any, encoding: Any) -> bytes:
    """The bytes that protocol 2 writes as text. No other codec is allowed: some expand their input many times."""
    shown = encoding if type(encoding) is str else type(encoding).__name__
    require(type(text) is str and shown in ("latin1", "latin-1"), f"it encodes with {shown!r}, expected text in latin1")
    return text.encode("latin1")


def make_dict(items: Any = ()) -> PlainDict:
    """A dict of another one or of a list of pairs."""
    require(isinstance(items, dict | list | tuple), "it makes a dict of something that is neither a dict nor pairs")
    made = PlainDict()
    made.update(items)
    return made


def _make_set(items: Any = ()) -> set[Any]:
    require(type(items) in (list, tuple), "it makes a set of something that is not a list")
    return set(items)


BUILT_IN: Mapping[str, Function] = {
    "_codecs.encode": Function(_encode_latin1),
    "collections.OrderedDict": Function(make_dict),
    "builtins.set": Function(_make_set),
    "builtins.bytes": Function(lambda: b""),
}
NUMPY: Mapping[str, StandIn] = {
    **BUILT_IN,
    "numpy.ndarray": StandIn(),  # the name of a kind of array, which nothing calls
    "numpy.dtype": Function(_make_dtype),
    "numpy._core.multiarray._reconstruct": Function(_start_array),
    "numpy._core.multiarray.scalar": Function(lambda dtype, content: _array(content, dtype, (), "C").item()),
    "numpy._core.numeric._frombuffer": Function(lambda *array: _Array().fill(_array(*array))),
}
