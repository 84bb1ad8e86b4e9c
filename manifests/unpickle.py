"""Restricted unpickler: load numpy arrays and plain containers from an untrusted pickle.

A pickle is a program that may call anything importable. Here it may reference a few globals by
their full names, and each of them is replaced by a function or class of this module: none of these
opens a file or runs code. What the objects take is charged to the file's budget as they are made,
and keys are of types whose hashes cannot be made to collide.
"""

from __future__ import annotations

import math
import os
import pickle
import re
import reprlib
import stat
import struct
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from manifests.budget import Budget, OverBudgetError

_TYPE = re.compile(r"[<>=|]?(?:b1|[iu][1248]|f[248]|[SU]\d+|O[48]?)")

_EXPANSION = 64
"""How many times the size of the file its content may take: a list of numpy's numbers takes 40."""
_LARGEST_KEY = 2**61 - 1
"""Integers from this on have the hashes of smaller ones: a dictionary of them takes forever."""
_OWED = 1 << 20
"""Bytes of small objects that are charged together, since charging each takes longer."""
_OBJECT = 16
"""Bytes that most instructions take: an entry of the stack."""
_COSTS = {
    pickle.MARK: 88,
    pickle.EMPTY_LIST: 88,
    pickle.LIST: 88,
    pickle.EMPTY_DICT: 96,
    pickle.DICT: 96,
    pickle.EMPTY_SET: 240,
    pickle.FROZENSET: 240,
    pickle.MEMOIZE: 128,
    pickle.PUT: 128,
    pickle.BINPUT: 128,
    pickle.LONG_BINPUT: 128,
    pickle.BINFLOAT: 40,
    pickle.BININT: 48,
    pickle.REDUCE: 256,
}
"""Bytes that the other instructions take at most, where their content is not counted."""
_TEXTS = b"".join(
    (
        *(pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING, pickle.UNICODE),
        *(pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINUNICODE8),
        *(pickle.LONG, pickle.LONG1, pickle.LONG4, pickle.TUPLE),
    )
)
"""Instructions whose result is counted as it is: its size is not in proportion to the file's."""
_KEYED = b"".join((pickle.SETITEM, pickle.SETITEMS, pickle.ADDITEMS, pickle.DICT, pickle.FROZENSET))
"""Instructions that hash what is on the stack."""


class RefusedError(ValueError):
    """The pickle references something other than numpy arrays and plain containers."""


def load_pickle(path: Path) -> Any:
    """Load a pickle file: containers, strings, numbers, numpy arrays and scalars.

    Pickles of numpy 1 and 2 and of Python 2 (its strings decoded as latin1) load the same. Arrays
    may contain booleans, integers, floats, strings or objects of these kinds.

    Raises:
        ValueError: the pickle references any other global (the message names it), or is damaged.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(f"{path} is not a regular file")
        try:
            return _DataUnpickler(file, Budget.of(file.fileno(), _EXPANSION)).load()
        except (RefusedError, OverBudgetError) as error:
            raise ValueError(f"{path}: {error}; nothing of it was run") from error
        except Exception as error:  # a malformed stream may fail in any way
            raise ValueError(
                f"{path} cannot be read as a pickle ({type(error).__name__}: {error})"
            ) from error


class _Content:
    """The bytes of the file: not more than it has, and charged to its budget."""

    def __init__(self, file: IO[bytes], budget: Budget) -> None:
        self._file, self._budget = file, budget
        self._left = os.fstat(file.fileno()).st_size

    def read(self, count: int) -> bytes:
        count = min(count, self._left)
        self._budget.take("what it contains", count)
        self._left -= count
        return self._file.read(count)

    def readline(self) -> bytes:
        line = self._file.readline(self._budget.left + 1)
        self._budget.take("what it contains", len(line))
        self._left -= len(line)
        return line


_PLAIN: dict[int, Callable[[Any], None]] = dict(pickle._Unpickler.dispatch)


# Messages use reprlib: a list that contains the same list twice, 26 levels deep, takes a few bytes
# in the file and gigabytes when printed in full.
#
# The base class is pickle's Python implementation: the one in C sizes its memo by numbers in the
# file, and cannot be interrupted. A file of arrays has only a few thousand operations.
class _DataUnpickler(pickle._Unpickler):
    stack: list[Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]

    def __init__(self, file: IO[bytes], budget: Budget) -> None:
        super().__init__(_Content(file, budget), encoding="latin1")
        self.owed = 0
        self.take = partial(budget.take, "what it contains")

    def find_class(self, module: str, name: str) -> Any:
        make = _ALLOWED.get(f"{module}.{name}")
        if make is None:
            raise RefusedError(f"the pickle references {module}.{name}, which is not allowed")
        return _Global(f"{module}.{name}", make, self.take)

    def get_extension(self, code: int) -> None:
        raise RefusedError(f"the pickle references the registered extension {code}")

    def persistent_load(self, pid: Any) -> Any:
        raise RefusedError("the pickle refers to an object outside of itself")

    def load_bytearray8(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(size)))  # pickle's own allocates the size that is claimed

    def load_build(self) -> None:
        self.take(_content_size(self.stack[-1]))
        _PLAIN[pickle.BUILD[0]](self)

    def keys(self, code: int) -> Iterable[Any]:
        """What the next instruction hashes."""
        if code == pickle.SETITEM[0]:
            return self.stack[-2:-1]
        return self.stack[:: 1 if code in (pickle.ADDITEMS[0], pickle.FROZENSET[0]) else 2]


def _charged(code: int, load: Callable[[Any], None]) -> Any:
    """Wrap what an instruction does, so that it is charged, and its keys are checked."""
    cost = _COSTS.get(bytes([code]), _OBJECT)

    keyed, counted = code in _KEYED, code in _TEXTS

    def run(self: _DataUnpickler) -> None:
        self.owed += cost
        if keyed:
            _check_keys(self.keys(code))
        load(self)
        if counted:
            self.owed += sys.getsizeof(self.stack[-1])
        if self.owed > _OWED:
            self.take(self.owed)
            self.owed = 0

    return run


_DataUnpickler.dispatch = {
    code: _charged(code, load)
    for code, load in {
        **_PLAIN,
        pickle.BYTEARRAY8[0]: _DataUnpickler.load_bytearray8,
        pickle.BUILD[0]: _DataUnpickler.load_build,
    }.items()
}


def _check_keys(keys: Iterable[Any]) -> None:
    """Check that keys of a dictionary, or elements of a set, are of plain types.

    Hashing a tuple that contains the same tuple twice, which contains the same tuple twice and so
    on, takes time exponential in its depth; and of tuples and large integers any number can have
    the same hash, which makes a dictionary of them quadratic in time.
    """
    for key in keys:
        if isinstance(key, np.generic):
            good = key.dtype.kind in "biufSU"
        elif type(key) is int:
            good = abs(key) < _LARGEST_KEY
        else:
            good = key is None or type(key) in (str, bytes, bool, float)
        if not good:
            raise RefusedError(
                f"the pickle has a key of type {type(key).__name__} in a dictionary or set"
                f"{' that is 2^61 or more' if type(key) is int else ''}; save it with strings or "
                "numbers as keys"
            )


def _content_size(state: Any) -> int:
    """Bytes that an array takes that is made from this state, or an object from these arguments."""
    parts = state if isinstance(state, tuple) else (state,)
    size = 0
    for part in parts:
        if isinstance(part, list | tuple | set | frozenset):
            size += 64 * len(part)
        elif isinstance(part, str | bytes | bytearray):
            size += len(part)
        elif isinstance(part, memoryview | np.ndarray):
            size += 2 * part.nbytes
    return size


class _Global:
    """An allowed global as the pickle sees it: it can be called, but not changed."""

    def __init__(self, name: str, make: Callable[..., Any], take: Callable[[float], None]) -> None:
        self._name, self._make, self._take = name, make, take

    def __call__(self, *arguments: Any) -> Any:
        self._take(_content_size(arguments))
        return self._make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise RefusedError(f"the pickle tries to change {self._name}")


class _Type:
    """A numpy dtype as pickled: made from its name; `__setstate__` sets its byte order."""

    def __init__(self, name: Any, align: Any = False, copy: Any = False) -> None:
        if not isinstance(name, str) or not _TYPE.fullmatch(name):
            raise RefusedError(f"the pickle contains an array of type {reprlib.repr(name)}")
        self.dtype = np.dtype("O" if name.lstrip("|").startswith("O") else name)

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, sub-array, names, fields, size, alignment, flags, ...). Forged
        # fields or flags could make numpy treat plain bytes as pointers, so they never reach it.
        order, parts = state[1], state[2:5]
        if any(part is not None for part in parts):
            raise RefusedError("the pickle contains an array of records")
        if order not in ("<", ">", "=", "|"):
            raise RefusedError(f"the pickle contains the byte order {reprlib.repr(order)}")
        self.dtype = self.dtype.newbyteorder(order)


class _Array(np.ndarray):
    """An array as pickled: made empty; `__setstate__` sets its shape, dtype and content."""

    def __setstate__(self, state: Any, /) -> None:
        shape, kind, fortran, content = state[-4:]
        if not isinstance(kind, _Type):
            raise RefusedError("the pickle contains an array without a type")
        if isinstance(content, str):  # Python 2
            content = content.encode("latin1")
        wanted = _size(shape)
        if not kind.dtype.itemsize and wanted:  # any number of them takes no byte
            raise RefusedError(f"the pickle contains {wanted} strings of length 0 as an array")
        if kind.dtype.hasobject:
            fits = isinstance(content, list) and len(content) == wanted
        else:
            fits = (
                isinstance(content, bytes | bytearray)
                and len(content) == wanted * kind.dtype.itemsize
            )
        if not fits:
            raise RefusedError(
                f"the pickle contains an array of shape {reprlib.repr(shape)} with other content"
            )
        checked: Any = (1, shape, kind.dtype, bool(fortran), content)
        super().__setstate__(checked)


def _size(shape: Any) -> int:
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise RefusedError(f"the pickle contains an array of shape {reprlib.repr(shape)}")
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
    # Python 3 writes bytes for Python 2 in this way; other codecs could decompress without bound.
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise RefusedError(f"the pickle references the codec {reprlib.repr(encoding)}")
    return text.encode("latin1")


def _set_of(make: Callable[..., Any], *arguments: Any) -> Any:
    for argument in arguments:
        if not isinstance(argument, list | tuple | set | frozenset):
            raise RefusedError(f"the pickle makes a set of a {type(argument).__name__}")
        _check_keys(argument)
    return make(*arguments)


def _no_bytes(*arguments: Any) -> bytes:
    if arguments:  # bytes(10**12) would be a size without content
        raise RefusedError("the pickle makes bytes from a number")
    return b""


_ALLOWED: dict[str, Callable[..., Any]] = {
    "numpy.dtype": _Type,
    "numpy.ndarray": _not_callable,  # only an argument of _reconstruct
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
        for kind, make in (
            ("set", partial(_set_of, set)),
            ("frozenset", partial(_set_of, frozenset)),
            ("bytes", _no_bytes),
        )
    },
}
