"""Features of selected utterances: packed batches by one gather per modality."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """Concatenated sequences of different lengths, without padding.

    Attributes:
        values: ``[sum T, d]``, the stored dtype, on any device.
        lengths: ``[B]`` int64 on the CPU, so that shapes are known without synchronising with a
            device; 0 where the modality is absent.
    """

    values: Tensor
    lengths: Tensor

    def padded(self) -> tuple[Tensor, Tensor]:
        """Pad with zeros at the end: ``x [B, T, d]`` and ``mask [B, T]``, True on real rows.

        T is the longest length, at least 1.
        """
        lengths_B, device = self.lengths.numpy(), self.values.device
        shape = len(lengths_B), max(1, int(lengths_B.max(initial=0)))
        mask_BT = np.arange(shape[1]) < lengths_B[:, None]
        places = torch.from_numpy(np.flatnonzero(mask_BT)).to(device)
        width = self.values.shape[1]
        if device.type == "cpu" and self.values.dtype in (torch.float16, torch.float32):
            # The system zeroes pages on first access, so padding costs nothing here.
            dtype = np.float16 if self.values.dtype == torch.float16 else np.float32
            x = torch.from_numpy(np.zeros((shape[0] * shape[1], width), dtype))
        else:
            x = self.values.new_zeros((shape[0] * shape[1], width))
        x.index_copy_(0, places, self.values)
        return x.view(*shape, width), torch.from_numpy(mask_BT).to(device)

    def to(self, device: torch.device | str) -> Packed:
        """Copy with the values on another device."""
        return Packed(self.values.to(device, non_blocking=True), self.lengths)


@dataclass(frozen=True)
class Features:
    """Features of selected utterances, in memory or mapped; index ``i`` belongs to ``ids[i]``.

    Utterance ``i`` is ``values[m][starts[m][i] : starts[m][i] + lengths[m][i]]``.

    Attributes:
        ids: utterance ids, in the order of the selection.
        values: per modality ``[rows, d]``: only the utterances' rows if resident, all rows of the
            store if mapped.
        starts: per modality ``[N]`` int64 on the CPU, first row of each utterance. Modalities
            with equal offsets, as audio and vision mostly have, share one tensor.
        lengths: per modality ``[N]`` int64 on the CPU, rows of each utterance; 0 where absent;
            shared where ``starts`` is.
        resident: whether the values are in memory rather than mapped from files.
        again: repeats the selection from the store; None for a copy.
    """

    ids: list[str]
    values: dict[str, Tensor]
    starts: dict[str, Tensor]
    lengths: dict[str, Tensor]
    resident: bool = True
    again: partial[Features] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: Tensor) -> dict[str, Packed]:
        """Gather the utterances at ``indices`` ``[B]`` (int64, on the CPU), per modality."""
        batch: dict[str, Packed] = {}
        places = indices.numpy()
        for starts, lengths, modalities in self._indices:
            rows, lengths_B = _rows(starts, lengths, places)
            rows = rows.to(self.values[modalities[0]].device)
            for modality in modalities:
                batch[modality] = Packed(self.values[modality].index_select(0, rows), lengths_B)
        return batch

    @cached_property
    def _indices(self) -> list[tuple[np.ndarray, np.ndarray, list[str]]]:
        """The distinct indices ``(starts, lengths)``, each with the modalities that share it."""
        modalities: dict[int, list[str]] = {}
        for modality in self.values:
            modalities.setdefault(id(self.starts[modality]), []).append(modality)
        return [
            (self.starts[first].numpy(), self.lengths[first].numpy(), [first, *others])
            for first, *others in modalities.values()
        ]

    def to(self, device: torch.device | str) -> Features:
        """Copy with the values on another device; a GPU that holds them gathers fastest."""
        values = {modality: tensor.to(device) for modality, tensor in self.values.items()}
        return Features(self.ids, values, self.starts, self.lengths)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the selection, not the values, if they come from a store."""
        if self.again is None:
            return Features, (self.ids, self.values, self.starts, self.lengths)
        return self.again.func, self.again.args


def _rows(starts: np.ndarray, lengths: np.ndarray, places: np.ndarray) -> tuple[Tensor, Tensor]:
    """Compute the rows of a batch, ``[sum T]``, and the length of each utterance, ``[B]``."""
    lengths_B = lengths.take(places)
    # Row r of the batch is r - (rows of earlier utterances) after the start of its utterance.
    rows = (starts.take(places) + lengths_B - lengths_B.cumsum()).repeat(lengths_B)
    rows += np.arange(len(rows))  # NumPy is faster than torch for so few numbers
    return torch.from_numpy(rows), torch.from_numpy(lengths_B)
