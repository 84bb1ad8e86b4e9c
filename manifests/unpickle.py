"""Restricted unpickler: load numpy arrays and plain containers from an untrusted pickle.

A pickle is a program that may call anything importable. Here it may reference a few globals by
their full names, and each of them is replaced by a function or class of this module: none of these
opens a file, runs code or allocates more memory than the file has bytes.
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

_DEEPEST = 16  # levels of tuples and frozensets inside each other


class RefusedError(ValueError):
    """The pickle references something other than numpy arrays and plain containers."""


def load_pickle(path: Path) -> Any:
    """Load a pickle file: containers, strings, numbers, numpy arrays and scalars.

    Pickles of numpy 1 and 2 and of Python 2 (its strings decoded as latin1) load the same. Arrays
    may contain booleans, integers, floats, strings or objects of these kinds.

    Raises:
        ValueError: the pickle references any other global (the message names it), or is damaged.
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


# Messages use reprlib: a list that contains the same list twice, 26 levels deep, takes a few bytes
# in the file and gigabytes when printed in full.
#
# The base class is pickle's Python implementation: the one in C sizes its memo by numbers in the
# file, and cannot be interrupted. A file of arrays has only a few thousand operations.
class _DataUnpickler(pickle._Unpickler):
    stack: list[Any]

    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding="latin1")
        self._depths: dict[int, tuple[Any, int]] = {}  # by id; the reference keeps the id in use

    def check_depth(self, made: Any) -> None:
        """Refuse deep tuples and frozensets.

        Hashing or comparing a tuple that contains the same tuple twice, which contains the same
        tuple twice and so on, takes time exponential in its depth.
        """
        if not isinstance(made, tuple | frozenset):
            return
        inner = (self._depths[id(v)][1] for v in made if id(v) in self._depths)
        depth = 1 + max(inner, default=0)
        if depth > _DEEPEST:
            raise RefusedError(f"the pickle contains tuples nested more than {_DEEPEST} deep")
        self._depths[id(made)] = made, depth

    def find_class(self, module: str, name: str) -> Any:
        make = _ALLOWED.get(f"{module}.{name}")
        if make is None:
            raise RefusedError(f"the pickle references {module}.{name}, which is not allowed")
        return _Global(f"{module}.{name}", make, self.check_depth)

    def get_extension(self, code: int) -> None:
        raise RefusedError(f"the pickle references the registered extension {code}")

    def persistent_load(self, pid: Any) -> Any:
        raise RefusedError("the pickle refers to an object outside of itself")


def _then_check_depth(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def load_container(self: _DataUnpickler) -> None:
        load(self)
        self.check_depth(self.stack[-1])

    return load_container


_DataUnpickler.dispatch = dict(pickle._Unpickler.dispatch)
for _code in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.FROZENSET):
    _DataUnpickler.dispatch[_code[0]] = _then_check_depth(_DataUnpickler.dispatch[_code[0]])


class _Global:
    """An allowed global as the pickle sees it: it can be called, but not changed."""

    def __init__(self, name: str, make: Callable[..., Any], check: Callable[[Any], None]) -> None:
        self._name, self._make, self._check = name, make, check

    def __call__(self, *arguments: Any) -> Any:
        made = self._make(*arguments)
        self._check(made)
        return made

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
        for kind, make in (("set", set), ("frozenset", frozenset), ("bytes", _no_bytes))
    },
}
