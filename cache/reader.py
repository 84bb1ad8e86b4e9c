"""Published stores, open for reading.

Opening reads the metadata, selecting reads or maps the rows; no Zarr call is on the training path.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache.features import Features
from cache.store.checksums import CHECKSUMS
from cache.store.chunks import ChunkedRows
from cache.store.memory import free_memory
from cache.store.metadata import NewerFormatError, read_attributes
from cache.store.publish import is_published, published_in
from cache.store.table import check, read_offsets, read_table_column

log = logging.getLogger(__name__)


class ReplacedError(ValueError):
    """Another store stands where the one that was opened did."""


class FeatureStore:
    """A published store, open for reading.

    Any number of threads and processes may read a store, spawned or forked; a pickle carries its
    path. In a forked process call ``torch.set_num_threads(1)`` first, as all of PyTorch needs it.

    A store is replaced in one case: when its failed utterances were extracted again. Features
    selected before stay as they are, and what is selected afterwards comes from the new store: all
    of it, for rows of the one never meet rows of the other. The other rows are the same in both.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seal = _seal_of(path)
        if self._seal is None:
            raise ReplacedError(f"{path} is not there, or not there just now")
        with self._as_opened():
            self.attributes = read_attributes(path)

    @classmethod
    def open(cls, path: str | Path) -> FeatureStore:
        """Open the store at ``path``; for a URL use :func:`cache.open_store`.

        Raises:
            NewerFormatError: the store's format is newer than this reader.
            ValueError: there is no published store, its metadata is invalid, or it is a URL.
        """
        if "://" in str(path):
            raise ValueError(f"{path} is a URL, not a path: open it with cache.open_store")
        path = Path(path)
        path = path if path.name else path.absolute()  # that one is in
        if not is_published(path):
            raise ValueError(f"{path} is not a published feature store")
        try:
            return cls(path)
        except ReplacedError:  # at this very moment
            return cls.open(path)

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
        """A column of the ``utterances`` table, ``[N]``.

        Raises:
            ReplacedError: it would not be that of the store that was opened.
            ValueError: it is damaged.
        """
        with self._as_opened():
            return read_table_column(self.path, name, self.counts)

    def offsets(self, modality: str) -> np.ndarray:
        """``[N + 1]`` int64: utterance ``i`` is ``values[offsets[i]:offsets[i + 1]]``.

        Raises:
            ReplacedError: they would not be those of the store that was opened.
            ValueError: they are damaged.
        """
        with self._as_opened():
            return read_offsets(self.path, modality, self.counts)

    def select(
        self,
        ids: Sequence[str],
        resident: bool | None = None,
        modalities: Sequence[str] | None = None,
    ) -> Features:
        """The features of ``ids``, in that order.

        Args:
            ids: utterance ids.
            resident: True loads the rows into memory, False maps the store's files, None loads
                what fits into half of the free memory. What was chosen is logged.
            modalities: which ones are wanted; None takes all that the store has. Of the others
                nothing is read.

        Raises:
            ValueError: the store does not hold one of the ids or modalities, or is damaged.
        """
        wanted = list(self.widths if modalities is None else modalities)
        absent = [m for m in wanted if m not in self.widths]
        if absent:
            raise ValueError(f"{self.path} holds {', '.join(self.widths)}, but no {absent[0]}")
        try:
            with self._as_opened():
                return self._select(list(ids), resident, wanted)
        except ReplacedError:
            log.warning("%s was replaced by another run meanwhile; reading the new one", self.path)
            return FeatureStore.open(self.path).select(ids, resident, wanted)

    def _select(self, ids: list[str], resident: bool | None, wanted: list[str]) -> Features:
        rows = self._rows_of(ids)
        arrays = {m: ChunkedRows.open(self.path / m / "values") for m in wanted}
        for m, array in arrays.items():
            shape = self.counts[f"{m}_frames"], self.widths[m]
            check(array.shape == shape, self.path / m / "values")
        offsets = {m: self.offsets(m) for m in wanted}
        # Audio and vision mostly lie alike: one index then serves both.
        like = {
            m: next(o for o in wanted if np.array_equal(offsets[o], offsets[m])) for m in wanted
        }
        starts = {m: offsets[m][rows] for m in wanted if like[m] == m}
        lengths = {m: offsets[m][rows + 1] - starts[m] for m in starts}
        needed = sum(
            int(lengths[like[m]].sum()) * array.shape[1] * array.dtype.itemsize
            for m, array in arrays.items()
        )
        free = free_memory()
        if resident is None:
            resident = needed <= free // 2
        values = None if resident else _mapped(arrays)
        if values is None:
            values = {m: arrays[m].read(starts[like[m]], lengths[like[m]]) for m in wanted}
            starts = {m: np.cumsum(lengths[m]) - lengths[m] for m in starts}
            resident = True
        how = "loaded into memory" if resident else "mapped from the files"
        log.info("%s: %.2f GB %s (%.1f GB free)", self.path.name, needed / 1e9, how, free / 1e9)
        first, count = _tensors(starts), _tensors(lengths)
        return Features(
            ids,
            _tensors(values),
            {m: first[like[m]] for m in wanted},
            {m: count[like[m]] for m in wanted},
            resident,
            partial(_open_and_select, self.path, ids, resident, wanted),
        )

    def _rows_of(self, ids: list[str]) -> np.ndarray:
        """Where the utterances stand in the store, ``[N]`` int64."""
        position = {i: row for row, i in enumerate(self.ids)}
        unknown = [i for i in ids if i not in position]
        if unknown:
            raise ValueError(
                f"{self.path} holds no features of {len(unknown)} utterances, the first is "
                f"{unknown[0]!r}; it was extracted from another manifest: extract again"
            )
        return np.fromiter((position[i] for i in ids), np.int64, len(ids))

    @contextmanager
    def _as_opened(self) -> Iterator[None]:
        """What is read within comes from the store that was opened, or an error says otherwise."""
        try:
            yield
        except (OSError, ValueError):
            self._refuse_another()  # it would look like damage
            raise
        self._refuse_another()

    def _refuse_another(self) -> None:
        if _seal_of(self.path) != self._seal:
            raise ReplacedError(
                f"{self.path} was replaced by another run while it was in use; open it again"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by path: another process opens the store itself."""
        return FeatureStore.open, (self.path,)


def find(
    dataset: str,
    root: str | Path = "stores",
    manifest_digest: str | None = None,
    utterances: str | None = None,
) -> Path:
    """The one published store of a dataset below ``root``.

    Where several lie, those are preferred whose features were cut as the manifest says, and among
    them one that was extracted from exactly this manifest, labels and all. A store that was cut
    otherwise is taken if it is the only choice, with a warning; an imported one, of which nobody
    knows, without. Where there are others, one of a newer format is passed over with a warning.

    Args:
        dataset: name of the dataset.
        root: the folder of the stores.
        manifest_digest: of the manifest's whole content.
        utterances: of what it cuts out of which video, from
            :func:`cache.store.recipe.digest_of_utterances`; None does not look at it.

    Raises:
        ValueError: there is none, or the choice is not clear.
    """
    stores = published_in(Path(root, dataset))
    if not stores:
        raise ValueError(
            f"no published store of {dataset!r} in {Path(root, dataset)}; "
            f"run: python -m extract {dataset}"
        )
    made = _attributes_of_all(stores)
    stores = list(made)
    if utterances is not None:
        stores = [p for p in stores if made[p]["recipe"]["utterances"] == utterances] or stores
    if len(stores) > 1 and manifest_digest is not None:
        stores = [p for p in stores if made[p].get("manifest_digest") == manifest_digest] or stores
    if len(stores) > 1:
        listed = "\n  ".join(str(path) for path in stores)
        raise ValueError(f"several stores of {dataset!r}; name one with cache=<path>:\n  {listed}")
    (store,) = stores
    cut = made[store]["recipe"]["utterances"]
    if utterances not in (None, cut) and "imported" not in made[store]:
        log.warning(
            "%s was extracted from other utterances, times or crops than the manifest has now; "
            "if that is not what you want: python -m extract %s",
            *(store, dataset),
        )
    return store


def _attributes_of_all(stores: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    """The root attributes of the stores that this release can read, if it can read any."""
    made, newer = {}, []
    for path in stores:
        try:
            made[path] = FeatureStore.open(path).attributes
        except NewerFormatError as error:
            newer.append(error)
    if not made:
        raise newer[0]
    for reason in newer:
        log.warning("passing over a store: %s", reason)
    return made


def _seal_of(store: Path) -> tuple[int, ...] | None:
    """What tells a store from one that takes its place: the last of its files to be written."""
    try:
        status = (store / CHECKSUMS).stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _open_and_select(path: Path, ids: list[str], resident: bool, wanted: list[str]) -> Features:
    return FeatureStore.open(path).select(ids, resident, wanted)


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
