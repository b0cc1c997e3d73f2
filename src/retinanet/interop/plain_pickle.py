"""A reader of pickles that hold numpy arrays in plain containers: it calls nothing that a file names.

The opcodes are interpreted here, not by ``pickle.Unpickler``. A ``find_class`` alone is no wall: extension codes can
pass by it, and the BUILD opcode can write into whatever functions it hands out. Here a name in the file stays a name.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pickle import UnpicklingError
from typing import Any, BinaryIO

import numpy as np


@dataclass(eq=False, slots=True)
class PickledArray:
    """An array of the file; ``value`` is None until its content was met."""

    value: np.ndarray | None = None


@dataclass(eq=False, slots=True)
class _DType:
    value: np.dtype


@dataclass(frozen=True)
class _Name:
    dotted: str


_MARK = object()


def read_pickle(file: BinaryIO) -> Any:
    """The content of a pickle, protocols 0 to 5, from the position of ``file`` on.

    Args:
        file: an open binary file.

    Returns:
        dicts, lists, tuples, sets, plain values and :class:`PickledArray`; an OrderedDict comes as a dict, a numpy
        scalar as a number. Containers may hold themselves.

    Raises:
        UnpicklingError: the pickle asks for anything else. A damaged one may raise any other exception.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name in _LITERALS:
            stack.append(argument)
        elif name in _FRESH:
            stack.append(_FRESH[name]())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(_name(*argument.split(" ", 1)))
        elif name in _STEPS:
            _STEPS[name](stack)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise UnpicklingError(
                f"it uses the pickle instruction {name}, which arrays in plain containers do not need"
            )
    (result,) = stack
    if result is _MARK or isinstance(result, _Name | _DType):
        raise UnpicklingError("it holds no data")
    return result


def _name(module: Any, name: Any) -> _Name:
    """A name, if it is one of those that we give a meaning."""
    if type(module) is not str or type(name) is not str:
        raise UnpicklingError("it builds a name from something that is not text")
    dotted = f"{module}.{name}"
    modern = dotted.replace("__builtin__.", "builtins.", 1) if dotted.startswith("__builtin__.") else dotted
    modern = modern.replace("numpy.core.", "numpy._core.", 1) if modern.startswith("numpy.core.") else modern
    if modern not in _MAKERS and modern != "numpy.ndarray":
        raise UnpicklingError(f"it asks for {dotted}, which arrays in plain containers do not need")
    return _Name(modern)


def _stack_global(stack: list[Any]) -> None:
    name, module = stack.pop(), stack.pop()
    stack.append(_name(module, name))


def _since_mark(stack: list[Any]) -> list[Any]:
    """What lies above the last mark, taken off the stack with it."""
    for at in range(len(stack) - 1, -1, -1):
        if stack[at] is _MARK:
            items = stack[at + 1 :]
            del stack[at:]
            return items
    raise UnpicklingError("it has no mark where one is needed")


def _append(stack: list[Any]) -> None:
    _extend_list(stack, [stack.pop()])


def _extend_list(stack: list[Any], items: list[Any]) -> None:
    if type(stack[-1]) is not list:
        raise UnpicklingError("it appends to something that is not a list")
    stack[-1].extend(items)


def _set_items(stack: list[Any], items: list[Any]) -> None:
    if type(stack[-1]) is not dict:
        raise UnpicklingError("it sets an item of something that is not a dict")
    stack[-1].update(zip(items[::2], items[1::2], strict=True))


def _set_item(stack: list[Any]) -> None:
    value, key = stack.pop(), stack.pop()
    _set_items(stack, [key, value])


def _add_items(stack: list[Any], items: list[Any]) -> None:
    if type(stack[-1]) is not set:
        raise UnpicklingError("it adds to something that is not a set")
    stack[-1].update(items)


def _tuple(size: int) -> Callable[[list[Any]], None]:
    def step(stack: list[Any]) -> None:
        stack[-size:] = [tuple(stack[-size:])]

    return step


def _reduce(stack: list[Any]) -> None:
    """Where pickle would call a function of the file's choice, one of our own makers reads the arguments."""
    arguments, function = stack.pop(), stack.pop()
    if type(function) is not _Name or function.dotted not in _MAKERS or type(arguments) is not tuple:
        raise UnpicklingError("it calls something that is not a function")
    stack.append(_MAKERS[function.dotted](*arguments))


def _build(stack: list[Any]) -> None:
    state, made = stack.pop(), stack[-1]
    if type(made) is PickledArray:
        _, shape, dtype, fortran, content = state
        made.value = _array(content, dtype, shape, "F" if fortran else "C")
    elif type(made) is _DType:
        _, order, subdtype, names, fields = state[:5]
        if not (subdtype is names is fields is None) or order not in ("<", ">", "=", "|"):
            raise UnpicklingError("it holds an array whose dtype is not a plain number")
        made.value = made.value.newbyteorder(order)
    elif type(made) is not dict:  # a dict's state is attributes such as _metadata, which nobody reads
        raise UnpicklingError("it sets the state of something that is not an array")


def _dtype(code: str, align: Any = False, copy: Any = True) -> _DType:
    if type(code) is not str or not re.fullmatch(r"[<>=|]?([fiu][1248]|b1)", code):
        objects = "; an array of Python objects is refused" if str(code).lstrip("<>=|").startswith("O") else ""
        raise UnpicklingError(f"it holds an array of dtype {code!r}, expected numbers{objects}")
    return _DType(np.dtype(code))


def _array(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if type(content) is str:  # Python 2 had no bytes
        content = content.encode("latin1")
    if type(content) not in (bytes, bytearray) or type(dtype) is not _DType or order not in ("C", "F"):
        raise UnpicklingError("it holds an array whose content is not bytes and a plain dtype")
    shape = tuple(shape)
    if not all(type(size) is int and size >= 0 for size in shape):
        raise UnpicklingError("it holds an array whose shape is not made of whole numbers")
    if prod(shape) * dtype.value.itemsize != len(content):
        raise UnpicklingError(f"it holds an array of shape {shape} with {len(content)} bytes of content")
    found = np.ndarray(shape, dtype.value, content, order=order)
    return found.astype(dtype.value.newbyteorder("="), order="C")  # a copy: native, contiguous, writable


def _reconstruct(kind: Any, shape: Any, code: Any) -> PickledArray:
    if kind != _Name("numpy.ndarray"):
        raise UnpicklingError("it holds an array of another class than numpy.ndarray")
    return PickledArray()


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> PickledArray:
    return PickledArray(_array(content, dtype, shape, order))


def _scalar(dtype: Any, content: Any) -> Any:
    return _array(content, dtype, (), "C").item()


def _encode(text: Any, encoding: Any) -> bytes:
    """The bytes that protocol 2 writes as text; no other codec, some of them decompress."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise UnpicklingError(f"it encodes with {encoding!r}, expected text in latin1")
    return text.encode("latin1")


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    if type(pairs) not in (list, tuple):
        raise UnpicklingError("it makes an OrderedDict of something that is not a list of pairs")
    return dict(pairs)


def _set(items: Any = ()) -> set[Any]:
    if type(items) not in (list, tuple):
        raise UnpicklingError("it makes a set of something that is not a list")
    return set(items)


def _empty_bytes() -> bytes:
    return b""


_MAKERS: dict[str, Callable[..., Any]] = {
    "numpy.dtype": _dtype,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy._core.numeric._frombuffer": _from_buffer,
    "_codecs.encode": _encode,
    "collections.OrderedDict": _ordered_dict,
    "builtins.set": _set,
    "builtins.bytes": _empty_bytes,
}
_LITERALS = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    }
)
_FRESH: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "MARK": lambda: _MARK,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_STEPS: dict[str, Callable[[list[Any]], None]] = {
    "TUPLE": lambda stack: stack.append(tuple(_since_mark(stack))),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "LIST": lambda stack: stack.append(_since_mark(stack)),
    "APPEND": _append,
    "APPENDS": lambda stack: _extend_list(stack, _since_mark(stack)),
    "SETITEM": _set_item,
    "SETITEMS": lambda stack: _set_items(stack, _since_mark(stack)),
    "ADDITEMS": lambda stack: _add_items(stack, _since_mark(stack)),
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "BUILD": _build,
}
