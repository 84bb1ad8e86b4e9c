"""FeatureStore: open a published store and select features from it.

Opening reads the metadata, selecting reads or maps the rows. Training calls no Zarr function.
"""

from __future__ import annotations

import shlex
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache.features import Features
from cache.names import is_url
from cache.store.checksums import identity_of
from cache.store.chunks import ChunkedRows
from cache.store.metadata import (
    read_attributes,
)
from cache.store.publish import is_published
from cache.store.recipe import Recipe
from cache.store.table import check, read_offsets, read_table_column
from manifests.budget import free_memory
from manifests.printing import get_logger

log = get_logger(__name__)


class ReplacedError(ValueError):
    """The opened store has been replaced by another one."""


class FeatureStore:
    """A published store, open for reading.

    Any number of threads and processes may read a store, spawned or forked; a pickle carries its
    path. In a forked process call ``torch.set_num_threads(1)`` first, as all of PyTorch needs it.

    A store is replaced in one case: when its failed utterances were extracted again. Features
    selected before stay valid; a later selection reads the new store only. Rows of the old and the
    new store are never mixed. Rows of other utterances are equal in both.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._noted_forms = False
        self._identity = identity_of(path)
        if self._identity is None:
            raise ReplacedError(f"{path} does not exist, or is being replaced")
        with self._as_opened():
            self.attributes = read_attributes(path)

    @classmethod
    def open(cls, path: str | Path) -> FeatureStore:
        """Open the store at ``path``; for a URL use :func:`cache.open_store`.

        Raises:
            NewerFormatError: the store's format is newer than this reader.
            ValueError: it is not a published store, its metadata is invalid, or it is a URL.
        """
        if is_url(path):
            raise ValueError(f"{path} is a URL, not a path: open it with cache.open_store")
        path = Path(path)
        path = path if path.name else path.absolute()  # "." or ""
        if not is_published(path):
            raise ValueError(f"{path} is not a published feature store")
        try:
            return cls(path)
        except ReplacedError:  # at this moment
            return cls.open(path)

    @property
    def recipe(self) -> Recipe:
        """Everything that decides the values."""
        return Recipe.of_store(self.attributes)

    @property
    def digest(self) -> str:
        """The recipe's digest, 64 hex digits."""
        return str(self.attributes["digest"])

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return self.recipe.dataset

    @property
    def widths(self) -> dict[str, int]:
        """Columns per modality."""
        return dict(self.attributes["widths"])

    @property
    def counts(self) -> dict[str, int]:
        """Number of utterances, utterances per status, and frames per modality."""
        return dict(self.attributes["counts"])

    @cached_property
    def ids(self) -> list[str]:
        """All utterance ids, in the order of the rows (sorted)."""
        return list(self.column("id"))

    @cached_property
    def status(self) -> dict[str, str]:
        """Per utterance id: ``ok``, ``no_audio``, ``no_video`` or ``failed``."""
        return dict(zip(self.ids, self.column("status"), strict=True))

    def match(self, ids: Iterable[str]) -> dict[str, str]:
        """Map ids to the store's own spelling of them; without the ids that the store lacks.

        The same text can be written with composed or with separate accents (NFC, NFD), and file
        systems change one into the other. An id that the store lacks is found in its other form, if
        no other id has that form; a warning is logged once.
        """
        wanted, own = dict.fromkeys(ids), set(self.ids)
        found = {i: i for i in wanted if i in own}
        missing = [i for i in wanted if i not in own]
        if not missing:
            return found
        form = partial(unicodedata.normalize, "NFC")
        free = [i for i in self.ids if i not in found and not i.isascii()]
        spelled = {form(i): i for i in free}
        in_store, in_ids = Counter(map(form, free)), Counter(map(form, missing))
        others = [i for i in missing if in_store[form(i)] == in_ids[form(i)] == 1]
        found |= {i: spelled[form(i)] for i in others}
        if others and not self._noted_forms:
            self._noted_forms = True
            log.warning(
                "%s spells %d ids with other Unicode characters of the same text, the first is %r; "
                "they are taken as equal",
                *(self.path, len(others), others[0]),
            )
        return found

    def column(self, name: str) -> np.ndarray:
        """Read a column of the ``utterances`` table, ``[N]``.

        Raises:
            ReplacedError: the opened store has been replaced.
            ValueError: it is damaged.
        """
        with self._as_opened():
            return read_table_column(self.path, name, self.counts)

    def offsets(self, modality: str) -> np.ndarray:
        """Read ``[N + 1]`` int64: utterance ``i`` is ``values[offsets[i]:offsets[i + 1]]``.

        Raises:
            ReplacedError: the opened store has been replaced.
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
        """Load or map the features of ``ids``, in that order.

        Args:
            ids: utterance ids.
            resident: True loads the rows into memory, False maps the store's files, None loads
                them if they fit into half of the free memory. The choice is logged.
            modalities: the modalities to read; None for all of the store.

        Raises:
            ValueError: an id or modality is not in the store, or the store is damaged.
        """
        wanted = list(self.widths if modalities is None else modalities)
        absent = [m for m in wanted if m not in self.widths]
        if absent:
            raise ValueError(f"{self.path} has {', '.join(self.widths)} features, not {absent[0]}")
        try:
            with self._as_opened():
                return self._select(list(ids), resident, wanted)
        except ReplacedError:
            log.warning("%s was replaced by another run; reading the new store", self.path)
            return FeatureStore.open(self.path).select(ids, resident, wanted)

    def _select(self, ids: list[str], resident: bool | None, wanted: list[str]) -> Features:
        rows = self._rows_of(ids)
        arrays = {m: ChunkedRows.open(self.path / m / "values") for m in wanted}
        for m, array in arrays.items():
            shape = self.counts[f"{m}_frames"], self.widths[m]
            check(array.shape == shape, self.path / m / "values")
        offsets = {m: self.offsets(m) for m in wanted}
        # Audio and vision mostly have equal offsets: then they share one index.
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
        """Row of each utterance in the store's table, ``[N]`` int64."""
        position = {i: row for row, i in enumerate(self.ids)}
        own = self.match(ids)
        unknown = [i for i in ids if i not in own]
        if unknown:
            raise ValueError(
                f"{self.path} lacks {len(unknown)} utterances, the first is {unknown[0]!r}; it was "
                "extracted from another manifest: extract again"
            )
        return np.fromiter((position[own[i]] for i in ids), np.int64, len(ids))

    @contextmanager
    def _as_opened(self) -> Iterator[None]:
        """Raise a ReplacedError if the store is replaced while it is read inside this context."""
        try:
            yield
        except (OSError, ValueError) as error:
            self._check_not_replaced()  # a replacement looks like damage
            if not isinstance(error, FileNotFoundError):
                raise
            command = f"python -m cache verify {shlex.quote(str(self.path))} --repair COPY"
            raise ValueError(f"{error.filename} is missing; run: {command}") from error
        self._check_not_replaced()

    def _check_not_replaced(self) -> None:
        if identity_of(self.path) != self._identity:
            raise ReplacedError(
                f"{self.path} was replaced by another run while it was in use; open it again"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path: another process opens the store itself."""
        return FeatureStore.open, (self.path,)


def _open_and_select(path: Path, ids: list[str], resident: bool, wanted: list[str]) -> Features:
    return FeatureStore.open(path).select(ids, resident, wanted)


def _tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {modality: torch.from_numpy(array) for modality, array in arrays.items()}


def _mapped(arrays: Mapping[str, ChunkedRows]) -> dict[str, np.ndarray] | None:
    """Map all arrays; None if one of them cannot be mapped."""
    mapped = {}
    for modality, array in arrays.items():
        values = np.empty(array.shape, array.dtype) if not array.bytes else array.map()
        if values is None:
            log.info("%s cannot be mapped; reading it instead", array.folder)
            return None
        mapped[modality] = values
    return mapped
