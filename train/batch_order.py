"""Batches of an epoch: a pure function of seed and epoch, the same in every process."""

from __future__ import annotations

import torch
from torch import Tensor

WINDOW = 100
"""Batches whose utterances are sorted by length together, at most."""


def epoch_batches(
    lengths: Tensor,
    batch_size: int,
    seed: int,
    epoch: int,
    window: int = WINDOW,
    rank: int = 0,
    ranks: int = 1,
) -> list[Tensor]:
    """Return the batches of one epoch.

    The shuffled utterances are split into even windows of at most ``window`` batches, sorted by
    length within a window and split into batches, which are shuffled again: this keeps padding low
    and batches mixed. A small split gets at least four windows; with one, all epochs would have the
    same batches.

    Each rank takes every ``ranks``-th utterance of a batch: together the ranks see the same batches
    as one process, each utterance once.

    Args:
        lengths: ``[N]``, frames or tokens of each utterance.
        batch_size: utterances in a batch over all ranks; the last one may be smaller.
        seed: the run's seed.
        epoch: number of the epoch.
        window: batches in a window.
        rank: the rank of this process, from 0.
        ranks: the number of processes.

    Returns:
        One int64 tensor of indices per batch, this rank's share; over the ranks each utterance
        occurs exactly once.
    """
    assert 0 <= rank < ranks
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(lengths), generator=generator)
    total = -(-len(lengths) // batch_size)
    windows = max(min(4, total), -(-total // window))
    size = batch_size * -(-total // windows) if windows else 1
    batches: list[Tensor] = []
    for part in order.split(size):
        part = part[lengths[part].argsort(stable=True)]
        batches += part.split(batch_size)
    shuffled = torch.randperm(len(batches), generator=generator).tolist()
    return [batches[i][rank::ranks] for i in shuffled]
