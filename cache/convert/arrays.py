"""The arrays of a foreign h5 or npz file, none of them believed before it is checked.

A file of a few kilobytes may claim terabytes, in a header or by compression, and an h5 file may
show what lies in another one. Only the arrays asked for are looked at, and each one's size is
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

_PER_STRING = 200  # bytes that a string takes beside its letters: the object, places in lists


def check_fits(what: str, needed: float, remedy: str = "") -> None:
    """Refuse what the memory cannot hold.

    Args:
        what: what needs it, the beginning of the message.
        needed: bytes.
        remedy: the end of the message.

    Raises:
        ValueError: less memory is free.
    """
    free = free_memory()
    if needed > free:
        raise ValueError(
            f"{what} needs {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free{remedy}"
        )


def npz_arrays(path: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """Those of the named arrays that an npz file holds; it is never unpickled.

    Raises:
        ValueError: the file is no npz, or an array is damaged or does not fit into memory.
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
    # Version 1 is what numpy writes; a header of the later ones may itself be gigabytes.
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError(f"{name} has a header that arrays of numbers or strings do not need")
    shape, _, kind = np.lib.format.read_array_header_1_0(file)
    if kind.hasobject:
        raise ValueError(
            f"{name} holds Python objects; save strings as strings, {name}.astype(str)"
        )
    return shape, kind


def h5_arrays(
    path: Path, names: Collection[str], left: Collection[str], attributes: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those of the named arrays and attributes that an HDF5 file holds.

    Args:
        path: the file; it stays open.
        names: the arrays that are wanted.
        left: those of them that are left in the file, to be read row by row.
        attributes: the attributes that are wanted.

    Raises:
        ValueError: the file is no HDF5 or damaged, an array does not fit into memory, or its
            content lies in another file.
    """
    try:
        file = h5py.File(path, "r")
        nodes = {name: _node(file, name) for name in names}
        found = {
            name: node if name in left else _load_h5(name, node)
            for name, node in nodes.items()
            if node is not None
        }
        return found, {name: file.attrs[name] for name in attributes if name in file.attrs}
    except Exception as error:  # a malformed file may fail in any way
        raise ValueError(f"{path} cannot be read as HDF5: {error}") from error


def _node(file: h5py.File, name: str) -> h5py.Dataset | None:
    """The dataset of this name, None if there is none; it lies in this very file."""
    node: Any = file
    for part in name.split("/"):
        link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
        if link is None:
            return None
        # Any other link may lead to another file, whose content this one would be taken for.
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{name} is a link, perhaps to another file; copy its content in")
        node = node[part]
    if not isinstance(node, h5py.Dataset):
        return None
    if node.is_virtual or node.external:
        raise ValueError(f"{name}: its content lies in other files; copy it in")
    if node.shape is None:
        raise ValueError(f"{name} holds nothing, not even zero rows")
    # A chunk is unpacked as a whole, whatever little of it is asked for.
    check_fits(f"a chunk of {name}", math.prod(node.chunks or ()) * node.dtype.itemsize)
    return node


def _load_h5(name: str, node: h5py.Dataset) -> np.ndarray:
    check_fits(name, _in_memory(node.size, node.dtype))
    text = h5py.check_string_dtype(node.dtype)
    return np.asarray(node.asstr(errors="surrogateescape")[()] if text else node[()])


def _in_memory(count: int, kind: np.dtype) -> int:
    return count * (kind.itemsize + (0 if kind.kind in "biuf" else _PER_STRING))
