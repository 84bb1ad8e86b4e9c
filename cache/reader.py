"""Published stores, open for reading.

Opening reads the metadata, selecting reads or maps the rows; no Zarr call is on the training path.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from cache.chunks import ChunkedRows, read_column
from cache.features import Features
from cache.recipe import FORMAT_VERSION
from cache.store import is_published

log = logging.getLogger(__name__)


class FeatureCache:
    """A published store, open for reading.

    Any number of threads and processes may read a store, spawned or forked; a pickle carries its
    path. In a forked process call ``torch.set_num_threads(1)`` first, as all of PyTorch needs it.
    """

    def __init__(self, path: Path, attributes: dict[str, Any]) -> None:
        self.path = path
        self.attributes = attributes

    @classmethod
    def open(cls, path: str | Path) -> FeatureCache:
        """Open the store at ``path``; one at a URL is mirrored first, verified, and read there.

        Raises:
            ValueError: there is no published store, or its format is newer than this reader.
        """
        if "://" in str(path):
            from cache.mirror import mirror  # most readers never go beyond the disk

            path = mirror(str(path))
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
        return list(self.column("id"))

    @cached_property
    def status(self) -> dict[str, str]:
        """Per utterance id: ``ok``, ``no_audio``, ``no_video`` or ``failed``."""
        return dict(zip(self.ids, self.column("status"), strict=True))

    def column(self, name: str) -> np.ndarray:
        """A column of the ``utterances`` table, ``[N]``."""
        return read_column(self.path / "utterances" / name)

    def offsets(self, modality: str) -> np.ndarray:
        """``[N + 1]`` int64: utterance ``i`` is ``values[offsets[i]:offsets[i + 1]]``."""
        return read_column(self.path / modality / "offsets")

    def select(self, ids: Sequence[str], resident: bool | None = None) -> Features:
        """The features of ``ids``, in that order.

        Args:
            ids: utterance ids.
            resident: True loads the rows into memory, False maps the store's files, None loads
                what fits into half of the free memory. What was chosen is logged.

        Raises:
            ValueError: the store does not hold one of the ids, or is damaged.
        """
        position = {i: row for row, i in enumerate(self.ids)}
        unknown = [i for i in ids if i not in position]
        if unknown:
            raise ValueError(
                f"{self.path} holds no features of {len(unknown)} utterances, the first is "
                f"{unknown[0]!r}; it was extracted from another manifest: extract again"
            )
        rows = np.array([position[i] for i in ids], dtype=np.int64)
        arrays = {m: ChunkedRows.open(self.path / m / "values") for m in self.widths}
        offsets = {m: self.offsets(m) for m in self.widths}
        starts = {m: offsets[m][rows] for m in self.widths}
        lengths = {m: np.diff(offsets[m])[rows] for m in self.widths}
        needed = sum(
            int(lengths[m].sum()) * arrays[m].shape[1] * arrays[m].dtype.itemsize for m in arrays
        )
        free = psutil.virtual_memory().available
        if resident is None:
            resident = needed <= free // 2
        values = None if resident else _mapped(arrays)
        if values is None:
            values = {m: arrays[m].read(starts[m], lengths[m]) for m in arrays}
            starts = {m: np.cumsum(lengths[m]) - lengths[m] for m in arrays}
            resident = True
        how = "loaded into memory" if resident else "mapped from the files"
        log.info("%s: %.2f GB %s (%.1f GB free)", self.path.name, needed / 1e9, how, free / 1e9)
        again = partial(_select, self.path, list(ids), resident)
        tensors = _tensors(values), _tensors(starts), _tensors(lengths)
        return Features(list(ids), *tensors, resident, again)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by path: another process opens the store itself."""
        return FeatureCache.open, (self.path,)


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


def _select(path: Path, ids: list[str], resident: bool) -> Features:
    return FeatureCache.open(path).select(ids, resident)


def _tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {modality: torch.from_numpy(array) for modality, array in arrays.items()}


def _mapped(arrays: Mapping[str, ChunkedRows]) -> dict[str, np.ndarray] | None:
    """All arrays mapped; None if one has to be read."""
    mapped = {}
    for modality, array in arrays.items():
        values = np.empty(array.shape, array.dtype) if not array.bytes else array.map()
        if values is None:
            log.info("%s cannot be mapped; reading it instead", array.folder)
            return None
        mapped[modality] = values
    return mapped
