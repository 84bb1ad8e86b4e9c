"""Interface of a competitor in the reading benchmark; our reader, and the limit set by memory."""

# ruff: noqa: D102  # the methods are documented in Competitor

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from cache import Features, FeatureStore, Packed

Batch = dict[str, Packed]
PaddedBatch = dict[str, tuple[Tensor, Tensor]]


class Competitor(ABC):
    """A store opened for reading; the benchmark times ``__init__`` as opening.

    Args:
        store: our published store, from which all competitors were written.
        folder: the folder that :meth:`write` wrote to.
    """

    title: ClassVar[str]
    ours: ClassVar[bool] = False
    limit: ClassVar[bool] = False
    subset: ClassVar[int | None] = None
    """Number of utterances written if all would take too long; indices wrap around."""

    @abstractmethod
    def __init__(self, store: Path, folder: Path) -> None: ...

    @classmethod  # noqa: B027  # empty: readers of our published store write nothing
    def write(cls, features: Features, folder: Path) -> None:
        """Write all of ``features`` into ``folder``."""

    def plan(self, batches: list[Tensor]) -> list[Any]:
        """Prepare the arguments of :meth:`packed` and :meth:`padded`; not timed."""
        return batches

    @abstractmethod
    def packed(self, indices: Any) -> Batch:
        """Return the utterances at ``indices``, concatenated."""

    @abstractmethod
    def padded(self, indices: Any) -> PaddedBatch:
        """Return the utterances at ``indices``, ``[B, T, d]``, and their mask ``[B, T]``."""


class Resident(Competitor):
    """Our reader with the rows in memory."""

    title = "ours, resident"
    ours = True
    resident = True

    def __init__(self, store: Path, folder: Path) -> None:
        cache = FeatureStore.open(store)
        self.features = cache.select(cache.ids, resident=self.resident)

    def packed(self, indices: Tensor) -> Batch:
        return self.features.batch(indices)

    def padded(self, indices: Tensor) -> PaddedBatch:
        return {m: packed.padded() for m, packed in self.features.batch(indices).items()}


class Mapped(Resident):
    """Our reader with the store's files mapped."""

    title = "ours, mapped"
    resident = False


class Gather(Competitor):
    """The limit set by memory: one ``index_select`` with row numbers computed beforehand."""

    title = "in-RAM gather (the limit)"
    limit = True

    def __init__(self, store: Path, folder: Path) -> None:
        cache = FeatureStore.open(store)
        self.features = cache.select(cache.ids, resident=True)
        # Padding points to the last row, which is zero. NumPy asks for huge pages, as our reader
        # does; torch.cat does not, which would lower the limit.
        self.values = {
            m: torch.from_numpy(np.append(values.numpy(), np.zeros_like(values[:1]), axis=0))
            for m, values in self.features.values.items()
        }

    def plan(self, batches: list[Tensor]) -> list[Any]:
        return [
            {m: self._rows(m, indices) for m in self.values} | {"B": len(indices)}
            for indices in batches
        ]

    def _rows(self, modality: str, indices: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        lengths = self.features.lengths[modality][indices]
        steps = torch.arange(int(lengths.max()))
        mask = steps < lengths[:, None]
        rows = self.features.starts[modality][indices][:, None] + steps
        zero_row = len(self.values[modality]) - 1
        return rows[mask], lengths, rows.where(mask, zero_row).flatten(), mask

    def packed(self, indices: dict[str, Any]) -> Batch:
        return {
            m: Packed(values.index_select(0, indices[m][0]), indices[m][1])
            for m, values in self.values.items()
        }

    def padded(self, indices: dict[str, Any]) -> PaddedBatch:
        return {
            m: (values.index_select(0, indices[m][2]).view(indices["B"], -1, values.shape[1]), mask)
            for m, values in self.values.items()
            for mask in [indices[m][3]]
        }
