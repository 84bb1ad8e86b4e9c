"""Read the rows of a Zarr array directly from its chunk files, or map the files into memory.

A chunk file of an uncompressed, unsharded array holds that piece of the array as plain bytes. So
rows are read with ``readinto`` at the speed of a copy, or all chunk files are mapped into one
contiguous address range: a tensor over it is the whole array, loaded page by page on access.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import zarr

from cache.store.disk import read_regular
from cache.store.metadata import read_array_metadata
from cache.store.recipe import DTYPES
from manifests.budget import check_fits

_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0x40  # a constant of mmap from Python 3.13
_LARGEST_COLUMN = 512 << 20  # bytes of one chunk, which has up to 2**20 entries
_PER_STRING = 100  # bytes
_MAP_FAILED = ctypes.c_void_p(-1).value


@dataclass(frozen=True)
class ChunkedRows:
    """A two-dimensional Zarr array, ``[rows, width]``.

    Attributes:
        folder: the array's folder.
        shape: ``(rows, width)``.
        chunk_rows: rows in a chunk file.
        dtype: little-endian element type.
        raw: whether chunk files are plain bytes: no compression, no shards.
    """

    folder: Path
    shape: tuple[int, int]
    chunk_rows: int
    dtype: np.dtype
    raw: bool

    @classmethod
    def open(cls, folder: Path) -> ChunkedRows:
        """Read the array's metadata only.

        Raises:
            ValueError: it is not an array of features.
        """
        (rows, width), (chunk_rows, chunk_width), kind, plain = read_array_metadata(folder, 2)
        if kind not in DTYPES:
            raise ValueError(f"{folder} holds {kind} values, which is not a type of features")
        dtype = np.dtype(kind).newbyteorder("<")
        return cls(folder, (rows, width), chunk_rows, dtype, plain and chunk_width == width)

    @property
    def bytes(self) -> int:
        """Size of the array in bytes."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def chunk(self, index: int) -> Path:
        """The file of the chunk ``index`` of rows."""
        return self.folder / "c" / str(index) / "0"

    def read(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Read and concatenate the rows ``starts[i] .. starts[i] + lengths[i]`` for every ``i``.

        Raises:
            ValueError: a chunk file is missing or too short.
        """
        if not self.raw:  # the store was re-compressed: slower
            begin = int(starts.min()) if len(starts) else 0
            stop = int((starts + lengths).max(initial=begin))
            check_fits(str(self.folder), 2 * (stop - begin) * self.shape[1] * self.dtype.itemsize)
            values = np.asarray(zarr.open_array(self.folder, mode="r")[begin:stop])
            return values[row_numbers(starts - begin, lengths)]
        out = np.empty((int(lengths.sum()), self.shape[1]), self.dtype)
        target = out.reshape(-1).view(np.uint8).data
        row_bytes = self.shape[1] * self.dtype.itemsize
        for index, pieces in groupby(self._pieces(starts, lengths), key=itemgetter(0)):
            try:
                with self.chunk(index).open("rb", buffering=0) as file:
                    for _, first, count, place in pieces:
                        got, end = place * row_bytes, (place + count) * row_bytes
                        file.seek(first * row_bytes)
                        while got < end:
                            step = file.readinto(target[got:end])
                            if not step:
                                raise EOFError("file is too short")
                            got += step
            except (OSError, EOFError) as error:
                raise _damaged(self.chunk(index), error) from error
        return out

    def map(self) -> np.ndarray | None:
        """Map the chunk files as one array ``[rows, width]``; None if that is impossible.

        Pages are loaded on access and evicted under memory pressure, so arrays may be larger than
        the memory. None if chunks are compressed or not a whole number of pages, or if the system
        cannot map them: then use :meth:`read`.

        Raises:
            ValueError: a chunk file is missing or too short.
        """
        chunk_bytes = self.chunk_rows * self.shape[1] * self.dtype.itemsize
        chunks = -(-self.shape[0] // self.chunk_rows)
        whole_pages = chunks <= 1 or chunk_bytes % mmap.ALLOCATIONGRANULARITY == 0
        if not (self.raw and self.bytes and whole_pages and sys.platform in ("linux", "darwin")):
            return None
        # An anonymous mapping reserves the address range; each file is then mapped into it.
        # NORESERVE allows a range larger than the memory: none of its pages is ever written.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        try:
            reserved = mmap.mmap(-1, chunks * chunk_bytes, flags=flags)
        except OSError:
            return None
        address = ctypes.addressof(ctypes.c_char.from_buffer(reserved))
        system_mmap = ctypes.CDLL(None, use_errno=True).mmap
        system_mmap.restype = ctypes.c_void_p
        system_mmap.argtypes = [
            *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int),
            ctypes.c_int64,
        ]
        for index in range(chunks):
            path = self.chunk(index)
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except OSError as error:
                raise _damaged(path, error) from error
            try:
                if os.fstat(descriptor).st_size != chunk_bytes:
                    # Access beyond the end of a file would kill the process (SIGBUS).
                    raise _damaged(path, EOFError("file is too short"))
                mapped = system_mmap(
                    address + index * chunk_bytes,
                    chunk_bytes,
                    mmap.PROT_READ | mmap.PROT_WRITE,  # private: a write never reaches the file
                    mmap.MAP_PRIVATE | _MAP_FIXED,
                    descriptor,
                    0,
                )
            finally:
                os.close(descriptor)
            if mapped == _MAP_FAILED:
                raise OSError(ctypes.get_errno(), f"cannot map {path}")
        count = self.shape[0] * self.shape[1]
        return np.frombuffer(reserved, self.dtype, count).reshape(self.shape)

    def _pieces(
        self, starts: np.ndarray, lengths: np.ndarray
    ) -> Iterator[tuple[int, int, int, int]]:
        """Join adjacent runs and split them at chunk borders, in the order of the files.

        Yields ``(chunk, first row in the chunk, rows, first row in the result)``.
        """
        starts, lengths = starts[lengths > 0], lengths[lengths > 0]
        if not len(starts):
            return
        opens = np.flatnonzero(np.append(True, starts[1:] != starts[:-1] + lengths[:-1]))
        begins, places = starts[opens], (np.cumsum(lengths) - lengths)[opens]
        counts = np.add.reduceat(lengths, opens)
        order = np.argsort(begins, kind="stable")
        runs = (each[order].tolist() for each in (begins, counts, places))
        for begin, count, place in zip(*runs, strict=True):
            row, stop = begin, begin + count
            while row < stop:
                index, first = divmod(row, self.chunk_rows)
                taken = min(stop - row, self.chunk_rows - first)
                yield index, first, taken, place + row - begin
                row += taken


def row_numbers(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenate the ranges ``starts[i] .. starts[i] + lengths[i]``, ``[sum lengths]`` int64."""
    # Row r of the result is r - (rows of earlier ranges) after the start of its range.
    return np.repeat(starts + lengths - np.cumsum(lengths), lengths) + np.arange(lengths.sum())


def read_column(folder: Path) -> np.ndarray:
    """Read a one-dimensional array ``[N]`` of numbers or strings.

    Uncompressed arrays are read without Zarr, whose event loop does not survive a fork: a forked
    process must be able to read.

    Raises:
        ValueError: it is not such an array, or a chunk file is missing or too short.
    """
    (count,), (step,), kind, plain = read_array_metadata(folder, 1)
    if not plain:
        check_fits(str(folder), count * (_PER_STRING if kind == "string" else 8))
        return np.asarray(zarr.open_array(folder, mode="r")[:])
    pieces: list[np.ndarray] = []
    for index in range(-(-count // step)):
        path = folder / "c" / str(index)
        try:
            if path.stat().st_size > _LARGEST_COLUMN:
                raise ValueError("it is too large")
            data = read_regular(path, _LARGEST_COLUMN)
            if kind == "string":
                pieces.append(np.array(_strings(data), dtype=object))
            else:
                little = np.dtype(kind).newbyteorder("<")
                pieces.append(np.frombuffer(data, little, step))
        except (OSError, ValueError, struct.error) as error:
            raise _damaged(path, error) from error
    return np.concatenate(pieces)[:count] if pieces else np.array([], dtype=object)


def _strings(data: bytes) -> list[str]:
    """Decode Zarr's vlen-utf8: a count, then per string its size and bytes (sizes: uint32).

    Equal strings in a row are one object: a column may have millions of them.
    """
    (count,) = struct.unpack_from("<I", data)
    strings, at = [], 4
    last, text = b"", ""
    for _ in range(count):
        (size,) = struct.unpack_from("<I", data, at)
        encoded = data[at + 4 : at + 4 + size]
        if encoded != last:
            last, text = encoded, encoded.decode("utf-8")
        strings.append(text)
        at += 4 + size
    if at != len(data):
        raise ValueError("its size does not match its strings")
    return strings


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} cannot be read ({error}); run: python -m cache verify")
