"""Pickles of numpy arrays in plain containers, as detectron2's model zoo has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pickle import UnpicklingError
from typing import Any, BinaryIO

import numpy as np
import torch

from retinanet.interop.plain_pickle import BUILT_IN, Function, PickledTensor, SafeUnpickler, StandIn, check_instructions


def read_pickle(file: BinaryIO) -> Any:
    """The content of a pickle of numpy arrays, protocols 2 to 5, from the position of ``file`` on.

    Args:
        file: an open binary file.

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
        if not (subdtype is names is fields is None) or order not in ("<", ">", "=", "|"):
            raise UnpicklingError("it holds an array whose dtype is not a plain number")
        self.value = self.value.newbyteorder(order)


def _refuse(*_arguments: Any) -> Any:
    raise UnpicklingError("it calls something that only names a kind of array")


def _make_dtype(code: Any, align: Any = False, copy: Any = True) -> _DType:
    if type(code) is not str or not re.fullmatch(r"[<>=|]?([fiu][1248]|b1)", code):
        objects = "; an array of Python objects is refused" if str(code).lstrip("<>=|").startswith("O") else ""
        raise UnpicklingError(f"it holds an array of dtype {code!r}, expected numbers{objects}")
    return _DType(np.dtype(code))


def _array(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """An array over bytes of the file, not copied."""
    if type(content) is str:  # Python 2 had no bytes
        content = content.encode("latin1")
    if type(content) not in (bytes, bytearray) or type(dtype) is not _DType or order not in ("C", "F"):
        raise UnpicklingError("it holds an array whose content is not bytes and a plain dtype")
    shape = tuple(shape)
    if not all(type(size) is int and size >= 0 for size in shape):
        raise UnpicklingError("it holds an array whose shape is not made of whole numbers")
    if prod(shape) * dtype.value.itemsize != len(content):
        raise UnpicklingError(f"it holds an array of shape {shape} with {len(content)} bytes of content")
    return np.ndarray(shape, dtype.value, content, order=order)


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


def _start_array(kind: Any, shape: Any, code: Any) -> PickledTensor:
    if kind is not NUMPY["numpy.ndarray"]:
        raise UnpicklingError("it holds an array of another class than numpy.ndarray")
    return _Array()


NUMPY: Mapping[str, Function] = {
    **BUILT_IN,
    "numpy.ndarray": Function(_refuse),
    "numpy.dtype": Function(_make_dtype),
    "numpy._core.multiarray._reconstruct": Function(_start_array),
    "numpy._core.multiarray.scalar": Function(lambda dtype, content: _array(content, dtype, (), "C").item()),
    "numpy._core.numeric._frombuffer": Function(lambda *array: _Array().fill(_array(*array))),
}
