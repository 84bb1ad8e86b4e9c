"""Features in use: packed batches by one gather per modality."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor


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
    """The features of some utterances, in memory or mapped; row ``i`` belongs to ``ids[i]``.

    Utterance ``i`` is ``values[m][starts[m][i] : starts[m][i] + lengths[m][i]]``.

    Attributes:
        ids: utterance ids, in the order asked for.
        values: per modality ``[rows, d]``; resident: exactly the utterances' rows, mapped: the
            store's.
        starts: per modality ``[N]`` int64, first row of each utterance.
        lengths: per modality ``[N]`` int64, rows of each utterance; 0 where it is absent.
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
        """The utterances at ``indices`` ``[B]`` (int64), packed: one gather per modality."""
        batch = {}
        for modality, values in self.values.items():
            lengths = self.lengths[modality][indices]
            # Row r of the batch lies r - (rows before its utterance) after its utterance's start.
            before = lengths.cumsum(0) - lengths
            rows = torch.repeat_interleave(self.starts[modality][indices] - before, lengths)
            rows += torch.arange(len(rows), device=rows.device)
            batch[modality] = Packed(values.index_select(0, rows), lengths)
        return batch

    def to(self, device: torch.device | str) -> Features:
        """The same on another device: a GPU that can hold them gathers fastest."""
        values, starts, lengths = (
            {m: tensor.to(device) for m, tensor in tensors.items()}
            for tensors in (self.values, self.starts, self.lengths)
        )
        return Features(self.ids, values, starts, lengths)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by path where they come from a store: a process reads or maps its own."""
        if self.again is None:
            return Features, (self.ids, self.values, self.starts, self.lengths)
        return self.again.func, self.again.args
