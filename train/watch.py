"""Keeps the terms of the loss, and stops the run when one is not finite."""

from __future__ import annotations

import torch
from torch import Tensor


class LossWatch:
    """Takes the terms of each step; asks the device for them only now and then.

    Args:
        ids: utterance ids of the training split.
        every: steps between two looks; the device must be waited for at each.
    """

    def __init__(self, ids: list[str], every: int) -> None:
        self.ids, self.every = ids, every
        self._names: list[str] = []
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._sums: Tensor | None = None

    def see(self, index_B: Tensor, terms: dict[str, Tensor]) -> None:
        """Take one step's scalar terms.

        Raises:
            ValueError: a term of this step or of one before is not finite.
        """
        self._names = list(terms)
        self._waiting.append((index_B, torch.stack([term.detach() for term in terms.values()])))
        if len(self._waiting) >= self.every:
            self._look()

    def end_epoch(self) -> dict[str, float]:
        """The mean of each term over the utterances of the epoch, which is closed by this."""
        self._look()
        assert self._sums is not None, "an epoch has at least one step"
        means = (self._sums / len(self.ids)).tolist()
        self._sums = None
        return dict(zip(self._names, means, strict=True))

    def _look(self) -> None:
        if not self._waiting:
            return
        rows = torch.stack([row for _, row in self._waiting]).double().cpu()
        for (index_B, _), row in zip(self._waiting, rows, strict=True):
            if not row.isfinite().all():
                broken = [n for n, x in zip(self._names, row, strict=True) if not x.isfinite()]
                batch = ", ".join(self.ids[i] for i in index_B.tolist())
                raise ValueError(f"the loss term {broken[0]!r} is not finite in the batch: {batch}")
            weighted = row * len(index_B)
            self._sums = weighted if self._sums is None else self._sums + weighted
        self._waiting = []
