"""Read pickles without running anything in them: see numpy_pickle.py and torch_pickle.py for what they hold.

Three walls, each for what the others cannot see. The instructions are checked before any is followed: those that pass
``find_class`` by (extension codes) or that only code needs are refused, and so is a small pickle that means a large
amount of work. A name in the file becomes one of our stand-ins, never what it names. And the stand-ins have no
attributes that an instruction could write to.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any, BinaryIO

from torch import Tensor

MOST_INSTRUCTIONS = 5_000_000
MOST_WORK = 10_000_000  # items, each counted as often as the tuples that hold it are used
LARGEST_FRAME = 1 << 24  # bytes; pickle itself closes a frame after 64 KiB
ALLOWED = frozenset(
    {
        *("PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "FLOAT", "BINFLOAT"),
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS"),
        *("EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_SET", "ADDITEMS"),
        *("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"),
        *("GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID"),
    }
)


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
            if start < 0:
                raise UnpicklingError("it takes more items than there are")
            weight = sum(stack[start:])
            work += weight
            stack[start:] = [1 + weight * (name.startswith("TUPLE") or name == "REDUCE")] * len(opcode.stack_after)
        if work > MOST_WORK or count > MOST_INSTRUCTIONS or (name == "FRAME" and argument > LARGEST_FRAME):
            raise UnpicklingError("it would take a long time or much memory to read, as no weights do")
    return names


class StandIn:
    """What a pickle works on in place of an object of its own; the instruction BUILD cannot set its attributes."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Refuse the instruction BUILD."""
        raise UnpicklingError("it sets the state of something that is not an array")


class Function(StandIn):
    """Stands for a function that the file names: one of ours is called in its place."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        """What our function makes of the arguments."""
        return self._call(*arguments)


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

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        """Forget the state."""


class SafeUnpickler(pickle.Unpickler):
    """Pickle's own unpickler over the stand-ins of this package.

    Args:
        file: an open binary file, at the start of a pickle that :func:`check_instructions` let pass.
        stand_in: dotted name -> what the file gets in its place, or None where it may not have it.
        load_tensor_data: what an external item of the pickle stands for, given its id; without it there may be none.
    """

    def __init__(
        self,
        file: BinaryIO,
        stand_in: Callable[[str], Any],
        load_tensor_data: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(file, encoding="latin1")  # Python 2 had no bytes
        self._stand_in = stand_in
        self._load_tensor_data = load_tensor_data

    def find_class(self, module: str, name: str, /) -> Any:
        """The stand-in of a name; nothing is imported."""
        dotted = _dotted(module, name)
        found = self._stand_in(dotted)
        if found is None:
            raise UnpicklingError(f"it asks for {dotted}, which weights do not need")
        return found

    def persistent_load(self, pid: Any, /) -> Any:
        """What an external item stands for."""
        if self._load_tensor_data is None:
            raise UnpicklingError("it asks for an item that is not in it")
        return self._load_tensor_data(pid)


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


def _dotted(module: str, name: str) -> str:
    """A name as Python 3 calls it."""
    return f"builtins.{PYTHON_2.get(name, name)}" if module == "__builtin__" else f"{module}.{name}"


def encode_latin1(text: Any, encoding: Any) -> bytes:
    """The bytes that protocol 2 writes as text. No other codec is allowed: some expand their input many times."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise UnpicklingError(f"it encodes with {encoding!r}, expected text in latin1")
    return text.encode("latin1")


def make_dict(items: Any = ()) -> PlainDict:
    """A dict of another one or of a list of pairs."""
    if not isinstance(items, dict | list | tuple):
        raise UnpicklingError("it makes a dict of something that is neither a dict nor a list of pairs")
    made = PlainDict()
    made.update(items)
    return made


def make_set(items: Any = ()) -> set[Any]:
    """A set of the items of a list."""
    if type(items) not in (list, tuple):
        raise UnpicklingError("it makes a set of something that is not a list")
    return set(items)


PYTHON_2 = {"long": "int", "unicode": "str"}
BUILT_IN: Mapping[str, Function] = {
    "_codecs.encode": Function(encode_latin1),
    "collections.OrderedDict": Function(make_dict),
    "builtins.set": Function(make_set),
    "builtins.bytes": Function(lambda: b""),
}
