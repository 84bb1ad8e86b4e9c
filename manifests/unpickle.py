"""Reading a foreign pickle as data: numpy arrays and plain containers, never a program.

A pickle is a program that may call anything importable. This one may name a handful of globals, by
full name, and what it gets for them are stand-ins written here: none of them touches a file, runs
code or believes a size that the file does not back with bytes.
"""

from __future__ import annotations

import math
import pickle
import re
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_TYPE = re.compile(r"[<>=|]?(?:b1|[iu][1248]|f[248]|[SU]\d+|O[48]?)")

_DEEPEST = 16  # tuples in tuples


class RefusedError(ValueError):
    """The pickle asks for something that is no numpy array and no plain container."""


def load_pickle(path: Path) -> Any:
    """The content of a pickle file: containers, strings, numbers, numpy arrays and scalars.

    Pickles of numpy 1 and 2 and of Python 2 (its strings decoded as latin1) load alike. Arrays may
    hold booleans, integers, floats, strings or objects of these kinds.

    Raises:
        ValueError: the pickle names any other global (the message says which), or is damaged.
    """
    with path.open("rb") as file:
        try:
            return _DataUnpickler(file).load()
        except RefusedError as error:
            raise ValueError(f"{path}: {error}; nothing of it was run") from error
        except Exception as error:  # a malformed stream may fail in any way
            raise ValueError(
                f"{path} cannot be read as a pickle ({type(error).__name__}: {error})"
            ) from error


# Messages show what is wrong by reprlib: a list of a list of ... twice the same, 26 deep, is a few
# bytes here and gigabytes in full.
#
# In Python, not in C: the C unpickler sizes its memo by numbers in the file, and the few thousand
# operations of a file of arrays take no time in either.
class _DataUnpickler(pickle._Unpickler):
    stack: list[Any]

    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding="latin1")
        self._depths: dict[int, tuple[tuple, int]] = {}  # by id, with what keeps the id taken

    def refuse_deep_tuples(self) -> None:
        """Hashing a tuple of twice the same tuple, of twice the same ... would never end."""
        made = self.stack[-1]
        inner = (self._depths[id(v)][1] for v in made if id(v) in self._depths)
        depth = 1 + max(inner, default=0)
        if depth > _DEEPEST:
            raise RefusedError(f"the pickle holds tuples nested more than {_DEEPEST} deep")
        self._depths[id(made)] = made, depth

    def find_class(self, module: str, name: str) -> Any:
        make = _ALLOWED.get(f"{module}.{name}")
        if make is None:
            raise RefusedError(
                f"the pickle asks for {module}.{name}, which is neither numpy nor data"
            )
        return _Global(f"{module}.{name}", make)

    def get_extension(self, code: int) -> None:
        raise RefusedError(f"the pickle asks for the registered extension {code}")

    def persistent_load(self, pid: Any) -> Any:
        raise RefusedError("the pickle refers to an object outside of itself")


def _then_refuse_deep_tuples(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def load_tuple(self: _DataUnpickler) -> None:
        load(self)
        self.refuse_deep_tuples()

    return load_tuple


_DataUnpickler.dispatch = dict(pickle._Unpickler.dispatch)
for _code in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
    _DataUnpickler.dispatch[_code[0]] = _then_refuse_deep_tuples(_DataUnpickler.dispatch[_code[0]])


class _Global:
    """What the pickle holds when it names a global: it can be called, and nothing else."""

    def __init__(self, name: str, make: Callable[..., Any]) -> None:
        self._name, self._make = name, make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise RefusedError(f"the pickle tries to change {self._name}")


class _Type:
    """A numpy dtype as it is pickled: called with its name, then told its byte order."""

    def __init__(self, name: Any, align: Any = False, copy: Any = False) -> None:
        if not isinstance(name, str) or not _TYPE.fullmatch(name):
            raise RefusedError(f"the pickle holds an array of type {reprlib.repr(name)}")
        self.dtype = np.dtype("O" if name.lstrip("|").startswith("O") else name)

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, sub-array, names, fields, size, alignment, flags, ...). Forged
        # fields or flags could make numpy take plain bytes for pointers, so they never reach it.
        order, parts = state[1], state[2:5]
        if any(part is not None for part in parts):
            raise RefusedError("the pickle holds an array of records")
        if order not in ("<", ">", "=", "|"):
            raise RefusedError(f"the pickle holds the byte order {reprlib.repr(order)}")
        self.dtype = self.dtype.newbyteorder(order)


class _Array(np.ndarray):
    """An array as it is pickled: made empty, then told its shape, type and content."""

    def __setstate__(self, state: Any, /) -> None:
        shape, kind, fortran, content = state[-4:]
        if not isinstance(kind, _Type):
            raise RefusedError("the pickle holds an array without a type")
        if isinstance(content, str):  # Python 2
            content = content.encode("latin1")
        wanted = _size(shape)
        if kind.dtype.hasobject:
            fits = isinstance(content, list) and len(content) == wanted
        else:
            fits = (
                isinstance(content, bytes | bytearray)
                and len(content) == wanted * kind.dtype.itemsize
            )
        if not fits:
            raise RefusedError(
                f"the pickle holds an array of shape {reprlib.repr(shape)} with other content"
            )
        checked: Any = (1, shape, kind.dtype, bool(fortran), content)
        super().__setstate__(checked)


def _size(shape: Any) -> int:
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise RefusedError(f"the pickle holds an array of shape {reprlib.repr(shape)}")
    return math.prod(shape)


def _empty_array(*_: Any) -> np.ndarray:
    return _Array((0,), np.uint8)


def _array_of(buffer: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
    array = _Array((0,), np.uint8)
    array.__setstate__((shape, kind, order == "F", bytes(memoryview(buffer))))
    return array


def _scalar(kind: Any, content: Any = None) -> Any:
    array = _Array((0,), np.uint8)
    array.__setstate__(((1,), kind, False, content))
    return array[0]


def _not_callable(*_: Any) -> Any:
    raise RefusedError("the pickle makes an array by itself instead of restoring one")


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    # How Python 3 writes bytes for the readers of Python 2; other codecs could unpack a bomb.
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise RefusedError(f"the pickle asks for the codec {reprlib.repr(encoding)}")
    return text.encode("latin1")


def _no_bytes(*arguments: Any) -> bytes:
    if arguments:  # bytes(10**12) would be a size without content
        raise RefusedError("the pickle makes bytes from a number")
    return b""


_ALLOWED: dict[str, Callable[..., Any]] = {
    "numpy.dtype": _Type,
    "numpy.ndarray": _not_callable,  # only ever handed to _reconstruct
    "_codecs.encode": _encode,
    **{
        f"numpy.{core}.{name}": make
        for core in ("core", "_core")
        for name, make in {
            "multiarray._reconstruct": _empty_array,
            "multiarray.scalar": _scalar,
            "numeric._frombuffer": _array_of,
        }.items()
    },
    **{
        f"{module}.{kind}": make
        for module in ("builtins", "__builtin__")
        for kind, make in (("set", set), ("frozenset", frozenset), ("bytes", _no_bytes))
    },
}
