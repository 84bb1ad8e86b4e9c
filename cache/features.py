"""Features in use: packed batches by one gather per modality."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """Sequences of different lengths, one after the other without padding.

    Attributes:
        values: ``[sum T, d]``, the stored dtype, on any device.
        lengths: ``[B]`` int64 on the CPU, so that shapes are known without waiting for a device;
            0 where the modality is absent.
    """

    values: Tensor
    lengths: Tensor

    def padded(self) -> tuple[Tensor, Tensor]:
        """Padded with zeros at the end: ``x [B, T, d]`` and ``mask [B, T]``, True on real rows.

        T is the longest length, at least 1.
        """
        lengths_B, device = self.lengths.numpy(), self.values.device
        shape = len(lengths_B), max(1, int(lengths_B.max(initial=0)))
        mask_BT = np.arange(shape[1]) < lengths_B[:, None]
        places = torch.from_numpy(np.flatnonzero(mask_BT)).to(device)
        width = self.values.shape[1]
        if device.type == "cpu" and self.values.dtype in (torch.float16, torch.float32):
            # The system hands out zeroed pages when they are touched: padding costs nothing yet.
            dtype = np.float16 if self.values.dtype == torch.float16 else np.float32
            x = torch.from_numpy(np.zeros((shape[0] * shape[1], width), dtype))
        else:
            x = self.values.new_zeros((shape[0] * shape[1], width))
        x.index_copy_(0, places, self.values)
        return x.view(*shape, width), torch.from_numpy(mask_BT).to(device)

    def to(self, device: torch.device | str) -> Packed:
        """The same with the values on another device."""
        return Packed(self.values.to(device, non_blocking=True), self.lengths)


@dataclass(frozen=True)
class Features:
    """The features of some utterances, in memory or mapped; row ``i`` belongs to ``ids[i]``.

    Utterance ``i`` is ``values[m][starts[m][i] : starts[m][i] + lengths[m][i]]``.

    Attributes:
        ids: utterance ids, in the order asked for.
        values: per modality ``[rows, d]``; resident: exactly the utterances' rows, mapped: the
            store's.
        starts: per modality ``[N]`` int64 on the CPU, first row of each utterance. Modalities whose
            utterances lie alike, as audio and vision mostly do, share one tensor.
        lengths: per modality ``[N]`` int64 on the CPU, rows of each utterance; 0 where absent;
            shared where ``starts`` is.
        resident: whether the values lie in memory rather than in mapped files.
        again: selects the same from the store once more; None where they are a copy.
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
        """The utterances at ``indices`` ``[B]`` (int64, on the CPU): one gather per modality."""
        batch: dict[str, Packed] = {}
        places = indices.numpy()
        for starts, lengths, modalities in self._alike:
            rows, lengths_B = _rows(starts, lengths, places)
            rows = rows.to(self.values[modalities[0]].device)
            for modality in modalities:
                batch[modality] = Packed(self.values[modality].index_select(0, rows), lengths_B)
        return batch

    @cached_property
    def _alike(self) -> list[tuple[np.ndarray, np.ndarray, list[str]]]:
        """Each index, ``(starts, lengths)``, and the modalities that it is true of."""
        modalities: dict[int, list[str]] = {}
        for modality in self.values:
            modalities.setdefault(id(self.starts[modality]), []).append(modality)
        return [
            (self.starts[first].numpy(), self.lengths[first].numpy(), [first, *others])
            for first, *others in modalities.values()
        ]

    def to(self, device: torch.device | str) -> Features:
        """The same with the values on another device: a GPU that holds them gathers fastest."""
        values = {modality: tensor.to(device) for modality, tensor in self.values.items()}
        return Features(self.ids, values, self.starts, self.lengths)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by path where they come from a store: a process reads or maps its own."""
        if self.again is None:
            return Features, (self.ids, self.values, self.starts, self.lengths)
        return self.again.func, self.again.args


def _rows(starts: np.ndarray, lengths: np.ndarray, places: np.ndarray) -> tuple[Tensor, Tensor]:
    """Which rows a batch needs, and how many of them belong to each utterance."""
    lengths_B = lengths.take(places)
    # Row r of the batch lies r - (rows before its utterance) after its utterance's start.
    rows = (starts.take(places) + lengths_B - lengths_B.cumsum()).repeat(lengths_B)
    rows += np.arange(len(rows))  # for so few numbers NumPy is quicker than torch
    return torch.from_numpy(rows), torch.from_numpy(lengths_B)
