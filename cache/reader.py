"""The one way features are read: raw chunk files into one tensor, then one gather per batch.

Chunks are uncompressed, so a chunk file *is* the array: reading it costs what copying memory costs,
and no Zarr call is on the training path.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch import Tensor

from cache.recipe import FORMAT_VERSION, MODALITIES
from cache.store import is_published

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Packed:
    """Sequences of different lengths, one after the other without padding.

    Attributes:
        values: ``[sum T, d]``, the stored dtype.
        lengths: ``[B]`` int64; 0 where the modality is absent.
    """

    values: Tensor
    lengths: Tensor

    def padded(self) -> tuple[Tensor, Tensor]:
        """Padded with zeros at the end: ``x [B, T, d]`` and ``mask [B, T]``, True on real rows.

        T is the longest length, at least 1.
        """
        longest = max(1, int(self.lengths.max())) if len(self.lengths) else 1
        steps_T = torch.arange(longest, device=self.lengths.device)
        mask_BT = steps_T[None, :] < self.lengths[:, None]
        x_BTD = self.values.new_zeros((*mask_BT.shape, self.values.shape[1]))
        x_BTD[mask_BT] = self.values
        return x_BTD, mask_BT

    def to(self, device: torch.device | str) -> Packed:
        """The same on another device."""
        return Packed(self.values.to(device), self.lengths.to(device))


@dataclass(frozen=True)
class Features:
    """The features of some utterances, resident in memory; row ``i`` belongs to ``ids[i]``.

    Attributes:
        ids: utterance ids, in the order asked for.
        values: per modality ``[sum T, d]``.
        offsets: per modality ``[N + 1]`` int64: row ``i`` is ``values[offsets[i]:offsets[i + 1]]``.
    """

    ids: list[str]
    values: dict[str, Tensor]
    offsets: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def lengths(self) -> dict[str, Tensor]:
        """Per modality ``[N]`` int64: frames of each utterance."""
        return {modality: offsets.diff() for modality, offsets in self.offsets.items()}

    def batch(self, indices: Tensor) -> dict[str, Packed]:
        """The utterances at ``indices`` ``[B]`` (int64), packed: one gather per modality."""
        batch = {}
        for modality, values in self.values.items():
            lengths = self.lengths[modality][indices]
            starts = self.offsets[modality][indices]
            # Row r of the batch lies r - (rows before its utterance) after its utterance's start.
            before = lengths.cumsum(0) - lengths
            rows = torch.repeat_interleave(starts - before, lengths)
            rows += torch.arange(len(rows), device=rows.device)
            batch[modality] = Packed(values.index_select(0, rows), lengths)
        return batch


class FeatureCache:
    """A published store, open for reading."""

    def __init__(self, path: Path, attributes: dict[str, Any]) -> None:
        self.path = path
        self.attributes = attributes

    @classmethod
    def open(cls, path: str | Path) -> FeatureCache:
        """Open the store at ``path``.

        Raises:
            ValueError: there is no published store, or its format is newer than this reader.
        """
        path = Path(path)
        if not is_published(path):
            raise ValueError(f"{path} is no published feature store")
        attributes = json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"]
        version = attributes["format_version"]
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{path} has format version {version}, this release reads {FORMAT_VERSION}; "
                "install a release that knows it, or extract again"
            )
        return cls(path, attributes)

    @property
    def recipe(self) -> dict[str, Any]:
        """What the features were made from."""
        return dict(self.attributes["recipe"])

    @property
    def digest(self) -> str:
        """The recipe's digest, 64 hex digits."""
        return str(self.attributes["digest"])

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return str(self.recipe["dataset"])

    @property
    def widths(self) -> dict[str, int]:
        """Columns per modality."""
        return dict(self.attributes["widths"])

    @property
    def counts(self) -> dict[str, int]:
        """Utterances in all and per status, frames per modality."""
        return dict(self.attributes["counts"])

    @cached_property
    def ids(self) -> list[str]:
        """All utterance ids, in the order of the rows (sorted)."""
        return [str(i) for i in self.column("id")]

    @cached_property
    def status(self) -> dict[str, str]:
        """Per utterance id: ``ok``, ``no_audio``, ``no_video`` or ``failed``."""
        return dict(zip(self.ids, (str(s) for s in self.column("status")), strict=True))

    def column(self, name: str) -> np.ndarray:
        """A column of the ``utterances`` table, ``[N]``."""
        array = zarr.open_array(self.path / "utterances" / name, mode="r")
        return np.asarray(array[:])

    def offsets(self, modality: str) -> np.ndarray:
        """``[N + 1]`` int64: utterance ``i`` is ``values[offsets[i]:offsets[i + 1]]``."""
        return np.asarray(zarr.open_array(self.path / modality / "offsets", mode="r")[:])

    def select(self, ids: Sequence[str]) -> Features:
        """Load the features of ``ids`` into memory, in that order.

        Raises:
            ValueError: the store does not hold one of them.
        """
        position = {i: row for row, i in enumerate(self.ids)}
        unknown = [i for i in ids if i not in position]
        if unknown:
            raise ValueError(
                f"{self.path} holds no features of {len(unknown)} utterances, the first is "
                f"{unknown[0]!r}; it was extracted from another manifest: extract again"
            )
        rows = np.array([position[i] for i in ids], dtype=np.int64)
        values, offsets = {}, {}
        for modality in MODALITIES:
            stored = self.offsets(modality)
            starts, lengths = stored[rows], np.diff(stored)[rows]
            offsets[modality] = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]))
            values[modality] = torch.from_numpy(
                _read_rows(self.path / modality / "values", starts, lengths)
            )
        return Features(list(ids), values, offsets)


def find(dataset: str, root: str | Path = "stores", manifest_digest: str | None = None) -> Path:
    """The one published store of a dataset below ``root``.

    Where several lie, one that was extracted from exactly this manifest is preferred.

    Raises:
        ValueError: there is none, or the choice is not clear.
    """
    stores = sorted(p for p in Path(root, dataset).glob("*.zarr") if is_published(p))
    if not stores:
        raise ValueError(
            f"no published store of {dataset!r} in {Path(root, dataset)}; "
            f"run: make extract DATASET={dataset}"
        )
    if len(stores) > 1 and manifest_digest is not None:
        made_from = {p: FeatureCache.open(p).attributes.get("manifest_digest") for p in stores}
        stores = [p for p in stores if made_from[p] == manifest_digest] or stores
    if len(stores) > 1:
        listed = "\n  ".join(str(path) for path in stores)
        raise ValueError(f"several stores of {dataset!r}; name one with cache=<path>:\n  {listed}")
    return stores[0]


def _read_rows(array: Path, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The runs of rows ``starts[i] .. starts[i] + lengths[i]``, one after the other ``[n, d]``."""
    meta = json.loads((array / "zarr.json").read_text(encoding="utf-8"))
    if [codec["name"] for codec in meta["codecs"]] != ["bytes"]:
        everything = np.asarray(zarr.open_array(array, mode="r")[:])  # somebody re-compressed it
        runs = [everything[s : s + n] for s, n in zip(starts, lengths, strict=True)]
        return np.concatenate([everything[:0], *runs])
    chunk_rows, width = meta["chunk_grid"]["configuration"]["chunk_shape"]
    dtype = np.dtype(meta["data_type"]).newbyteorder("<")
    out = np.empty((int(lengths.sum()), width), dtype)
    row_bytes = width * dtype.itemsize
    raw = out.reshape(-1).view(np.uint8).data
    filled = 0
    for chunk, first, count in _runs(starts, lengths, chunk_rows):
        with (array / "c" / str(chunk) / "0").open("rb", buffering=0) as file:
            file.seek(first * row_bytes)
            target = raw[filled : filled + count * row_bytes]
            while target:  # one read returns at most 2 GiB
                got = file.readinto(target)
                if not got:
                    raise ValueError(f"{file.name} is shorter than its array; verify the store")
                target = target[got:]
        filled += count * row_bytes
    return out


def _runs(starts: np.ndarray, lengths: np.ndarray, chunk_rows: int) -> list[tuple[int, int, int]]:
    """Neighbouring runs joined, then cut at chunk borders: ``(chunk, first row in it, rows)``."""
    joined: list[list[int]] = []
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        if joined and joined[-1][0] + joined[-1][1] == start:
            joined[-1][1] += length
        elif length:
            joined.append([start, length])
    runs = []
    for start, length in joined:
        while length:
            chunk, first = divmod(start, chunk_rows)
            count = min(length, chunk_rows - first)
            runs.append((chunk, first, count))
            start, length = start + count, length - count
    return runs
