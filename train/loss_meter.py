"""Running means of the loss terms; stops training on NaN or infinity."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from train import distributed


class LossMeter:
    """Accumulates the loss terms on the device and copies them to the CPU every few calls.

    Each rank accumulates its own shards. All synchronise at the same steps; if a term is not finite
    on one rank, all ranks raise.

    Args:
        ids: utterance ids of the training split.
        every: calls of `update` between two copies.
    """

    def __init__(self, ids: list[str], every: int) -> None:
        self.ids, self.every = ids, every
        self._names: list[str] = []
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._sums: Tensor | None = None

    def update(self, index_B: Tensor, terms: dict[str, Tensor]) -> None:
        """Add the scalar terms, detached, of some utterances.

        Raises:
            ValueError: one of these or of earlier terms is not finite.
        """
        self._names = list(terms)
        self._waiting.append((index_B, torch.stack(list(terms.values()))))
        if len(self._waiting) >= self.every:
            self._flush()

    def end_epoch(self) -> dict[str, float]:
        """Return the mean of each term over the utterances of the epoch, and start the next."""
        self._flush()
        assert self._sums is not None, "an epoch has at least one step"
        sums = torch.stack(distributed.all_gather(self._sums)).sum(0)
        self._sums = None
        return dict(zip(self._names, (sums / len(self.ids)).tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of the current epoch, ready for JSON."""
        self._flush()
        return {"names": self._names, "sums": None if self._sums is None else self._sums.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the sums from a `state_dict`."""
        sums = state["sums"]
        self._names = state["names"]
        self._sums = None if sums is None else torch.tensor(sums, dtype=torch.float64)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        rows = torch.stack([row for _, row in waiting]).cpu().double()
        broken = None
        for call, ((index_B, _), row) in enumerate(zip(waiting, rows, strict=True)):
            if broken is None and not row.isfinite().all():
                terms = [n for n, x in zip(self._names, row, strict=True) if not x.isfinite()]
                terms.sort(key="total".__eq__)  # not finite if any other term is
                batch = ", ".join(self.ids[i] for i in index_B.tolist())
                broken = call, f"the loss term {terms[0]!r} is not finite in the batch: {batch}"
            weighted = row * len(index_B)
            self._sums = weighted if self._sums is None else self._sums + weighted
        found = [each for each in distributed.all_gather(broken) if each is not None]
        if found:  # the first one: after it, all weights and all later losses are NaN
            raise ValueError(min(found)[1])
