"""Read datasets of an untrusted HDF5 file: nothing of other files, and within a budget."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from manifests.budget import Budget, OverBudgetError

PER_STRING = 200
"""Bytes that a string takes in addition to its letters: the object, list entries."""
_DESCRIPTOR = np.dtype([("length", "<u4"), ("heap", "<u8"), ("index", "<u4")])
"""What HDF5 stores of a string of variable length in the place of an element."""
_STEP = 64 << 20


def in_memory(count: int, kind: np.dtype) -> int:
    """Bytes that an array takes, as an array or as a list of strings."""
    return count * (kind.itemsize + (0 if kind.kind in "biuf" else PER_STRING))


def find_dataset(file: h5py.File | h5py.Group, name: str, budget: Budget) -> h5py.Dataset | None:
    """Return the dataset called `name` of numbers or strings; None: no such dataset.

    Raises:
        ValueError: its content is in another file, it has references, sequences or other objects as
            elements, or one of its chunks takes more memory than is left.
    """
    node: Any = file
    for part in name.split("/"):
        link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
        if link is None:
            return None
        # Any other link may lead to another file, whose content would be taken for this file's.
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{name} is a link, perhaps to another file; copy its content in")
        node = node[part]
    if not isinstance(node, h5py.Dataset):
        return None
    if node.is_virtual or node.external:
        raise ValueError(f"{name}: its content is in other files; copy it in")
    if node.shape is None:
        raise ValueError(f"{name} has no shape, not even zero rows")
    if node.dtype.kind not in "biufSU" and h5py.check_string_dtype(node.dtype) is None:
        what = "references" if h5py.check_ref_dtype(node.dtype) else f"elements of {node.dtype}"
        raise ValueError(f"{name} has {what}; it must have numbers or strings")
    # A chunk is decompressed as a whole, however little of it is read.
    budget.take(f"a chunk of {name}", math.prod(node.chunks or (0,)) * node.dtype.itemsize)
    return node


def load(node: h5py.Dataset, budget: Budget) -> np.ndarray:
    """Load a dataset from :func:`find_dataset`; strings become Python's.

    Raises:
        OverBudgetError: it takes more memory than is left.
    """
    name = str(node.name).removeprefix("/")
    budget.take(name, in_memory(node.size, node.dtype))
    text = h5py.check_string_dtype(node.dtype)
    if text is None:
        return np.asarray(node[()])
    strings = node.asstr(errors="surrogateescape")
    if text.length is not None or not node.size:
        return np.asarray(strings[()])
    # A string of variable length is stored once, and any number of elements may refer to it.
    lengths = _lengths(node)
    if lengths is not None:
        _check_strings(node, int(lengths.sum(dtype=np.int64)))
        return np.asarray(strings[()])
    if not node.shape:
        raise ValueError(f"{name} is one string; it must have a row for each utterance")
    pieces, total = [], 0
    for start, stop in pairwise(_steps(node)):
        pieces.append(np.asarray(strings[start:stop]))
        total += sum(map(len, pieces[-1].ravel().tolist()))
        _check_strings(node, total)
    return np.concatenate(pieces)


def _check_strings(node: h5py.Dataset, total: int) -> None:
    if total > node.file.id.get_filesize():
        raise OverBudgetError(
            f"{str(node.name).removeprefix('/')} has {total / 1e6:.0f} MB of strings, more than "
            "its file: save each string by itself"
        )


def _lengths(node: h5py.Dataset) -> np.ndarray | None:
    """Return the bytes of each string as the file states them; None: they cannot be looked up."""
    stored = node.id.get_storage_size()
    if node.id.get_offset() is None or stored != node.size * _DESCRIPTOR.itemsize:
        return None  # in chunks, or of another version of HDF5
    if node.file.userblock_size:
        return None
    with Path(node.file.filename).open("rb") as file:
        file.seek(node.id.get_offset())
        return np.frombuffer(file.read(stored), _DESCRIPTOR)["length"]


def _steps(node: h5py.Dataset) -> Iterator[int]:
    """Yield the first rows of slices that are small even if each string were the whole file."""
    size = min(node.file.id.get_filesize(), 1 << 32)  # of the longest string
    per_row = max(1, math.prod(node.shape[1:]))
    yield from range(0, node.shape[0], max(1, _STEP // (size * per_row)))
    yield node.shape[0]
