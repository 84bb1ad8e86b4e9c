"""Load the arrays of an untrusted h5 or npz file, each checked before it is loaded.

Only the requested arrays are read, and what each takes is charged to the file's budget
(`manifests.budget`) before it is loaded.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np

from manifests.budget import Budget
from manifests.h5 import find_dataset, in_memory, load


def npz_arrays(path: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """Load those of the named arrays that an npz file contains; nothing is unpickled.

    Raises:
        ValueError: the file is not an npz, or an array is damaged or does not fit into memory.
    """
    try:
        budget = Budget.of(path)
        with zipfile.ZipFile(path) as archive:
            members = set(archive.namelist())
            return {n: _load_npy(archive, n, budget) for n in names if f"{n}.npy" in members}
    except Exception as error:  # a malformed file may fail in any way
        raise ValueError(f"{path} cannot be read as npz: {error}") from error


def _load_npy(archive: zipfile.ZipFile, name: str, budget: Budget) -> np.ndarray:
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as file:
        shape, kind = _npy_header(file, name)
        size = math.prod(shape) * max(1, kind.itemsize)
        if size != member.file_size - file.tell():
            raise ValueError(f"{name} claims {size} bytes and has {member.file_size - file.tell()}")
    budget.take(name, in_memory(math.prod(shape), kind))
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
        file, budget = h5py.File(path, "r"), Budget.of(path)
        nodes = {name: find_dataset(file, name, budget) for name in names}
        found = {
            name: node if name in lazy else load(node, budget)
            for name, node in nodes.items()
            if node is not None
        }
        return found, {name: _attribute(file, name) for name in attributes if name in file.attrs}
    except Exception as error:  # a malformed file may fail in any way
        raise ValueError(f"{path} cannot be read as HDF5: {error}") from error


def _attribute(file: h5py.File, name: str) -> Any:
    if file.attrs.get_id(name).shape != ():
        raise ValueError(f"the attribute {name} is an array, not one value")
    return file.attrs[name]
