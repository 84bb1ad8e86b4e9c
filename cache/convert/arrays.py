"""Load the arrays of an untrusted h5 or npz file, each checked before it is loaded.

A file of a few kilobytes may claim terabytes, in a header or by compression, and an h5 file may
refer to the content of another file. Only the requested arrays are read, and the size of each is
compared with the free memory before it is loaded.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np

from cache.store.memory import free_memory

_PER_STRING = 200  # bytes that a string takes in addition to its letters: the object, list entries


def check_fits(what: str, needed: float, remedy: str = "") -> None:
    """Check that the free memory suffices.

    Args:
        what: what needs the memory: the beginning of the message.
        needed: bytes.
        remedy: the end of the message.

    Raises:
        ValueError: less than `needed` is free.
    """
    free = free_memory()
    if needed > free:
        raise ValueError(
            f"{what} needs {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free{remedy}"
        )


def npz_arrays(path: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """Load those of the named arrays that an npz file contains; nothing is unpickled.

    Raises:
        ValueError: the file is not an npz, or an array is damaged or does not fit into memory.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = set(archive.namelist())
            return {n: _load_npy(archive, n) for n in names if f"{n}.npy" in members}
    except Exception as error:  # a malformed file may fail in any way
        raise ValueError(f"{path} cannot be read as npz: {error}") from error


def _load_npy(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as file:
        shape, kind = _npy_header(file, name)
        size = math.prod(shape) * max(1, kind.itemsize)
        if size != member.file_size - file.tell():
            raise ValueError(f"{name} claims {size} bytes and has {member.file_size - file.tell()}")
    check_fits(name, _in_memory(math.prod(shape), kind))
    with archive.open(member) as file:
        array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _npy_header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], np.dtype]:
    # numpy writes version 1; a header of a later version may itself be gigabytes.
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError(f"{name} has a header that arrays of numbers or strings do not need")
    shape, _, kind = np.lib.format.read_array_header_1_0(file)
    if kind.hasobject:
        raise ValueError(
            f"{name} contains Python objects; save strings as strings, {name}.astype(str)"
        )
    return shape, kind


def h5_arrays(
    path: Path, names: Collection[str], lazy: Collection[str], attributes: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Load those of the named arrays and attributes that an HDF5 file contains.

    Args:
        path: the file; it stays open.
        names: the requested arrays.
        lazy: those of them that stay in the file, to be read row by row.
        attributes: the requested attributes.

    Raises:
        ValueError: the file is not HDF5 or is damaged, an array does not fit into memory, or its
            content is in another file.
    """
    try:
        file = h5py.File(path, "r")
        nodes = {name: _node(file, name) for name in names}
        found = {
            name: node if name in lazy else _load_h5(name, node)
            for name, node in nodes.items()
            if node is not None
        }
        return found, {name: file.attrs[name] for name in attributes if name in file.attrs}
    except Exception as error:  # a malformed file may fail in any way
        raise ValueError(f"{path} cannot be read as HDF5: {error}") from error


def _node(file: h5py.File, name: str) -> h5py.Dataset | None:
    """Return the dataset called `name`, which must be in this very file; None: no such dataset."""
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
    # A chunk is decompressed as a whole, however little of it is read.
    check_fits(f"a chunk of {name}", math.prod(node.chunks or ()) * node.dtype.itemsize)
    return node


def _load_h5(name: str, node: h5py.Dataset) -> np.ndarray:
    check_fits(name, _in_memory(node.size, node.dtype))
    text = h5py.check_string_dtype(node.dtype)
    return np.asarray(node.asstr(errors="surrogateescape")[()] if text else node[()])


def _in_memory(count: int, kind: np.dtype) -> int:
    return count * (kind.itemsize + (0 if kind.kind in "biuf" else _PER_STRING))
