"""Other storage formats, read one utterance at a time; and the list of all competitors.

Each is written from the same features and returns the same batches.
"""

# ruff: noqa: D102  # the methods are documented in Competitor

from __future__ import annotations

import pickle
from abc import abstractmethod
from pathlib import Path
from typing import Any

import h5py
import lmdb
import numpy as np
import pyarrow as pa
import safetensors
import safetensors.numpy
import torch
import zarr
from torch import Tensor

from benchmarks.competitor import Batch, Competitor, Gather, Mapped, PaddedBatch, Resident
from cache import MODALITIES, Features, Packed


class PerSample(Competitor):
    """A store that is read one utterance at a time; the rows are then concatenated."""

    @abstractmethod
    def sample(self, index: int) -> dict[str, np.ndarray]:
        """Return the rows of one utterance, ``[T, d]`` per modality."""

    def packed(self, indices: Tensor) -> Batch:
        samples = [self.sample(index) for index in indices.tolist()]
        return {
            m: Packed(
                torch.from_numpy(np.concatenate([sample[m] for sample in samples])),
                torch.tensor([len(sample[m]) for sample in samples]),
            )
            for m in MODALITIES
        }

    def padded(self, indices: Tensor) -> PaddedBatch:
        samples = [self.sample(index) for index in indices.tolist()]
        batch = {}
        for m in MODALITIES:
            lengths = torch.tensor([len(sample[m]) for sample in samples])
            longest = int(lengths.max())
            x = np.empty((len(samples), longest, samples[0][m].shape[1]), samples[0][m].dtype)
            for place, sample in zip(x, samples, strict=True):
                place[: len(sample[m])] = sample[m]
                place[len(sample[m]) :] = 0
            batch[m] = torch.from_numpy(x), torch.arange(longest) < lengths[:, None]
        return batch


class LmdbPickle(PerSample):
    """LMDB, a pickled dictionary per utterance: the paper's store."""

    title = "LMDB, pickled arrays"

    def __init__(self, store: Path, folder: Path) -> None:
        self.transaction = _open_lmdb(folder).begin()

    @classmethod
    def write(cls, features: Features, folder: Path) -> None:
        _write_lmdb(folder, len(features), lambda i: pickle.dumps(_rows_of(features, i)))

    def sample(self, index: int) -> dict[str, np.ndarray]:
        # Only bytes that `write` wrote in this run are unpickled.
        sample: dict[str, np.ndarray] = pickle.loads(self.transaction.get(_key(index), b""))
        return sample


class LmdbRaw(PerSample):
    """LMDB, the bytes of both arrays per utterance, read without a copy."""

    title = "LMDB, raw bytes"

    def __init__(self, store: Path, folder: Path) -> None:
        self.transaction = _open_lmdb(folder).begin(buffers=True)
        self.lengths = np.load(folder / "lengths.npy")
        self.widths = np.load(folder / "widths.npy").tolist()

    @classmethod
    def write(cls, features: Features, folder: Path) -> None:
        def value(index: int) -> bytes:
            return b"".join(rows.tobytes() for rows in _rows_of(features, index).values())

        _write_lmdb(folder, len(features), value)
        np.save(folder / "lengths.npy", np.stack([features.lengths[m] for m in MODALITIES], axis=1))
        np.save(folder / "widths.npy", [features.values[m].shape[1] for m in MODALITIES])

    def sample(self, index: int) -> dict[str, np.ndarray]:
        values = np.frombuffer(self.transaction.get(_key(index), b""), np.float16)
        border = self.lengths[index, 0] * self.widths[0]
        audio, vision = values[:border], values[border:]
        return {
            "audio": audio.reshape(-1, self.widths[0]),
            "vision": vision.reshape(-1, self.widths[1]),
        }


class Ragged(PerSample):
    """All rows in one array, and the offsets of the utterances: one slice per sample."""

    values: dict[str, Any]
    offsets: dict[str, list[int]]

    def sample(self, index: int) -> dict[str, np.ndarray]:
        return {
            m: values[self.offsets[m][index] : self.offsets[m][index + 1]]
            for m, values in self.values.items()
        }


class Hdf5Ragged(Ragged):
    """HDF5, contiguous data sets."""

    title = "HDF5, ragged"

    def __init__(self, store: Path, folder: Path) -> None:
        self.file = h5py.File(folder / "features.h5", "r")
        self.values = {m: self.file[f"{m}/values"] for m in MODALITIES}
        self.offsets = {m: self.file[f"{m}/offsets"][:].tolist() for m in MODALITIES}

    @classmethod
    def write(cls, features: Features, folder: Path) -> None:
        with h5py.File(folder / "features.h5", "w") as file:
            for m in MODALITIES:
                file[f"{m}/values"] = features.values[m].numpy()
                file[f"{m}/offsets"] = _offsets(features, m)


class ZarrSlices(Ragged):
    """Our store read with zarr-python, as another program reads it."""

    title = "Zarr, a slice per sample"

    def __init__(self, store: Path, folder: Path) -> None:
        group = zarr.open_group(store, mode="r")
        self.values = {m: group[f"{m}/values"] for m in MODALITIES}
        self.offsets = {m: np.asarray(group[f"{m}/offsets"]).tolist() for m in MODALITIES}


class ZarrArrays(PerSample):
    """Zarr, one array per utterance and modality."""

    title = "Zarr, an array per utterance"
    subset = 500

    def __init__(self, store: Path, folder: Path) -> None:
        self.group = zarr.open_group(folder / "features.zarr", mode="r")
        self.written = int(str(self.group.attrs["written"]))

    @classmethod
    def write(cls, features: Features, folder: Path) -> None:
        written = min(cls.subset, len(features))
        group = zarr.create_group(folder / "features.zarr", attributes={"written": written})
        for index in range(written):
            for m, rows in _rows_of(features, index).items():
                group.create_array(f"{index}/{m}", data=rows, chunks=rows.shape, compressors=None)

    def sample(self, index: int) -> dict[str, np.ndarray]:
        index %= self.written
        return {m: np.asarray(self.group[f"{index}/{m}"]) for m in MODALITIES}


class Safetensors(Ragged):
    """One safetensors file."""

    title = "safetensors, a slice per sample"

    def __init__(self, store: Path, folder: Path) -> None:
        path = folder / "features.safetensors"
        self.file = safetensors.safe_open(path, framework="numpy")
        self.values = {m: self.file.get_slice(f"{m}.values") for m in MODALITIES}
        self.offsets = {m: self.file.get_tensor(f"{m}.offsets").tolist() for m in MODALITIES}

    @classmethod
    def write(cls, features: Features, folder: Path) -> None:
        tensors = {f"{m}.values": features.values[m].numpy() for m in MODALITIES}
        tensors |= {f"{m}.offsets": _offsets(features, m) for m in MODALITIES}
        safetensors.numpy.save_file(tensors, folder / "features.safetensors")


class Arrow(PerSample):
    """Arrow, a mapped file: a list of fixed-size rows per utterance."""

    title = "Arrow, mapped lists"

    def __init__(self, store: Path, folder: Path) -> None:
        self.file = pa.memory_map(str(folder / "features.arrow"))
        batch = pa.ipc.open_file(self.file).get_batch(0)
        self.columns = {m: batch.column(m) for m in MODALITIES}

    @classmethod
    def write(cls, features: Features, folder: Path) -> None:
        columns = []
        for m in MODALITIES:
            values = features.values[m].numpy()
            rows = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
            columns.append(pa.LargeListArray.from_arrays(_offsets(features, m), rows))
        batch = pa.record_batch(columns, names=list(MODALITIES))
        path = str(folder / "features.arrow")
        with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)

    def sample(self, index: int) -> dict[str, np.ndarray]:
        sample = {}
        for m, column in self.columns.items():
            rows = column[index].values
            sample[m] = rows.flatten().to_numpy().reshape(len(rows), rows.type.list_size)
        return sample


COMPETITORS: dict[str, type[Competitor]] = {
    "gather": Gather,
    "resident": Resident,
    "mapped": Mapped,
    "lmdb_raw": LmdbRaw,
    "lmdb_pickle": LmdbPickle,
    "arrow": Arrow,
    "safetensors": Safetensors,
    "hdf5": Hdf5Ragged,
    "zarr_slices": ZarrSlices,
    "zarr_arrays": ZarrArrays,
}


def _rows_of(features: Features, index: int) -> dict[str, np.ndarray]:
    """Return both modalities of one utterance, as views."""
    rows = {}
    for m in MODALITIES:
        start, length = int(features.starts[m][index]), int(features.lengths[m][index])
        rows[m] = features.values[m][start : start + length].numpy()
    return rows


def _offsets(features: Features, modality: str) -> np.ndarray:
    return np.concatenate([[0], features.lengths[modality].numpy().cumsum()])


def _key(index: int) -> bytes:
    return b"%08d" % index


def _open_lmdb(folder: Path) -> lmdb.Environment:
    return lmdb.open(str(folder), readonly=True, lock=False, readahead=False)


def _write_lmdb(folder: Path, count: int, value: Any) -> None:
    # map_size limits the file, which is sparse; no run needs 64 GB.
    with lmdb.open(str(folder), map_size=64 << 30) as environment:
        for start in range(0, count, 1000):
            with environment.begin(write=True) as transaction:
                for index in range(start, min(start + 1000, count)):
                    transaction.put(_key(index), value(index), append=True)
