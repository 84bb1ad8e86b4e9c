"""Reading the pickled tables of a release as data: containers, text and numbers, never a program.

A pickle is a program that may call anything importable. This one may name nothing but what numpy
writes for plain arrays of numbers; what it gets for those names are stand-ins that make lists.
"""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_PLAIN = re.compile(r"[<>=|]?(?:b1|[iu][1248]|f[248]|O8?)")


def load_pickle(path: Path) -> Any:
    """The content of a pickle of any protocol; arrays become lists, numpy's numbers Python's.

    Raises:
        ValueError: the pickle names anything else (the message says what), or is damaged.
    """
    with path.open("rb") as file:
        try:
            return _Unpickler(file, encoding="latin1").load()
        except Exception as error:  # a malformed stream may fail in any way
            raise ValueError(
                f"{path} cannot be read as plain data ({error or type(error).__name__}); nothing "
                "of it was run. Download it again from its authors"
            ) from error


# In Python, not in C: the C unpickler sizes its memo by numbers in the file.
class _Unpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get(f"{module}.{name}".replace("._core.", ".core."))
        if known is None:
            raise ValueError(f"it asks for {module}.{name}, which is no data")
        return _Global(known)

    def get_extension(self, code: int) -> None:
        raise ValueError(f"it asks for the registered extension {code}")

    def persistent_load(self, pid: Any) -> Any:
        raise ValueError("it refers to an object outside of itself")


class _Global:
    """What the pickle holds when it names something: it can be called, and not be changed."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("it tries to change what it asks for")


class _Type:
    """A dtype as it is pickled: called with its name, then told its byte order."""

    def __init__(self, name: str, *_: Any) -> None:
        if not _PLAIN.fullmatch(name):
            raise ValueError(f"it holds an array of {name}")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])

    def read(self, content: Any) -> np.ndarray:
        raw = content.encode("latin1") if isinstance(content, str) else content  # str: Python 2
        return np.frombuffer(raw, self.dtype)


class _Array(list[Any]):
    """An array as it is pickled: made empty, then told version, shape, type, order and content."""

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, content = state
        if isinstance(content, list):  # of objects, each pickled by itself; they stay in a row
            self[:] = content
            return
        values = kind.read(content).reshape(shape, order="F" if fortran else "C")
        self[:] = values.tolist()


class _Scalar:
    """One of numpy's numbers as it is pickled; what comes out is Python's."""

    def __new__(cls, kind: Any, content: Any) -> Any:
        return kind.read(content)[0].item()


class _Bytes:
    """How Python 3 writes bytes for Python 2: as text in Latin-1."""

    def __new__(cls, text: str, encoding: str) -> Any:
        if encoding not in ("latin1", "latin-1"):
            raise ValueError(f"it asks for the codec {encoding!r}")
        return text.encode("latin1")


_KNOWN = {
    "numpy.dtype": _Type,
    "numpy.ndarray": _Array,
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy.core.multiarray.scalar": _Scalar,
    "_codecs.encode": _Bytes,
}
