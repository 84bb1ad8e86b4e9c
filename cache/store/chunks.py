"""The rows of a Zarr array straight from its chunk files: read into memory, or mapped in place.

A chunk of an uncompressed, unsharded array *is* that piece of the array. So the rows are read with
``readinto`` at the speed of a copy, or all chunk files are mapped side by side into one range of
addresses: then a tensor over that range is the whole array, and the system loads what is touched.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr

from cache.store.disk import read_regular
from cache.store.metadata import read_array_metadata
from cache.store.recipe import DTYPES

_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0x40  # Python names it from 3.13 on
_LARGEST_COLUMN = 2 << 30  # bytes of one chunk, which has up to 2**20 entries
_MAP_FAILED = ctypes.c_void_p(-1).value


@dataclass(frozen=True)
class ChunkedRows:
    """A two-dimensional Zarr array, ``[rows, width]``.

    Attributes:
        folder: the array's folder.
        shape: ``(rows, width)``.
        chunk_rows: rows in a chunk file.
        dtype: little-endian element type.
        raw: whether chunk files are the plain array: no codec, no shards.
    """

    folder: Path
    shape: tuple[int, int]
    chunk_rows: int
    dtype: np.dtype
    raw: bool

    @classmethod
    def open(cls, folder: Path) -> ChunkedRows:
        """Read the array's metadata, nothing else.

        Raises:
            ValueError: it is no array of features.
        """
        (rows, width), (chunk_rows, chunk_width), kind, plain = read_array_metadata(folder, 2)
        if kind not in DTYPES:
            raise ValueError(f"{folder} holds {kind}, which are no features")
        dtype = np.dtype(kind).newbyteorder("<")
        return cls(folder, (rows, width), chunk_rows, dtype, plain and chunk_width == width)

    @property
    def bytes(self) -> int:
        """Size of the array."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def chunk(self, index: int) -> Path:
        """The file of one chunk of rows."""
        return self.folder / "c" / str(index) / "0"

    def read(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The runs of rows ``starts[i] .. starts[i] + lengths[i]``, one after the other.

        Raises:
            ValueError: a chunk file is missing or too short.
        """
        if not self.raw:  # somebody re-compressed the store: correct, but slower
            everything = np.asarray(zarr.open_array(self.folder, mode="r")[:])
            runs = [everything[s : s + n] for s, n in zip(starts, lengths, strict=True)]
            return np.concatenate([everything[:0], *runs])
        out = np.empty((int(lengths.sum()), self.shape[1]), self.dtype)
        target = out.reshape(-1).view(np.uint8).data
        row_bytes = self.shape[1] * self.dtype.itemsize
        for index, first, count in self._pieces(starts, lengths):
            size = count * row_bytes
            try:
                with self.chunk(index).open("rb", buffering=0) as file:
                    file.seek(first * row_bytes)
                    got = 0
                    while got < size:
                        step = file.readinto(target[got:size])
                        if not step:
                            raise EOFError("file is too short")
                        got += step
            except (OSError, EOFError) as error:
                raise _damaged(self.chunk(index), error) from error
            target = target[size:]
        return out

    def map(self) -> np.ndarray | None:
        """The whole array ``[rows, width]`` over its mapped chunk files, or None.

        Pages are loaded when touched and given back by the system under pressure: memory stays
        bounded whatever the array's size. None where chunks are no whole pages, or compressed, or
        the system cannot place a mapping: then :meth:`read` is the way.

        Raises:
            ValueError: a chunk file is missing or too short.
        """
        chunk_bytes = self.chunk_rows * self.shape[1] * self.dtype.itemsize
        chunks = -(-self.shape[0] // self.chunk_rows)
        whole_pages = chunks <= 1 or chunk_bytes % mmap.ALLOCATIONGRANULARITY == 0
        if not (self.raw and self.bytes and whole_pages and sys.platform in ("linux", "darwin")):
            return None
        # An anonymous mapping holds the range of addresses; each file takes its place in it.
        # Without the reservation it may be larger than the memory: no page of it is ever written.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        try:
            room = mmap.mmap(-1, chunks * chunk_bytes, flags=flags)
        except OSError:
            return None
        place = ctypes.addressof(ctypes.c_char.from_buffer(room))
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
                    # Touching a page behind the end of a file would kill the process.
                    raise _damaged(path, EOFError("file is too short"))
                mapped = system_mmap(
                    place + index * chunk_bytes,
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
        return np.frombuffer(room, self.dtype, count).reshape(self.shape)

    def _pieces(self, starts: np.ndarray, lengths: np.ndarray) -> list[tuple[int, int, int]]:
        """Neighbouring runs joined, then cut at chunk borders: ``(chunk, first row, rows)``."""
        starts, lengths = starts[lengths > 0], lengths[lengths > 0]
        if not len(starts):
            return []
        opens = np.flatnonzero(np.append(True, starts[1:] != starts[:-1] + lengths[:-1]))
        begins = starts[opens]
        counts = np.add.reduceat(lengths, opens)
        pieces = []
        for begin, count in zip(begins.tolist(), counts.tolist(), strict=True):
            row, stop = begin, begin + count
            while row < stop:
                index, first = divmod(row, self.chunk_rows)
                taken = min(stop - row, self.chunk_rows - first)
                pieces.append((index, first, taken))
                row += taken
        return pieces


def read_column(folder: Path) -> np.ndarray:
    """A one-dimensional array ``[N]`` of numbers or strings.

    Read without Zarr where that is possible: its event loop does not survive a fork, and a forked
    process must be able to read.

    Raises:
        ValueError: it is no such array, or a chunk file is missing or too short.
    """
    (count,), (step,), kind, plain = read_array_metadata(folder, 1)
    if not plain:
        return np.asarray(zarr.open_array(folder, mode="r")[:])
    pieces: list[np.ndarray] = []
    for index in range(-(-count // step)):
        path = folder / "c" / str(index)
        try:
            if path.stat().st_size > _LARGEST_COLUMN:
                raise ValueError("it is larger than any")
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
    """Zarr's vlen-utf8: a count, then per string its length in bytes and the bytes; all uint32."""
    (count,) = struct.unpack_from("<I", data)
    strings, at = [], 4
    for _ in range(count):
        (size,) = struct.unpack_from("<I", data, at)
        strings.append(data[at + 4 : at + 4 + size].decode("utf-8"))
        at += 4 + size
    if at != len(data):
        raise ValueError("its size is not what its strings need")
    return strings


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} cannot be read ({error}); run: python -m cache verify")
