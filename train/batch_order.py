"""Which utterances make up which batch: a pure function of (seed, epoch), whoever asks."""

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
    """The batches of one epoch.

    The shuffled utterances are cut into even windows of at most ``window`` batches, sorted by
    length within a window and cut into batches, which are shuffled again: little padding, batches
    still mixed. A small split gets at least four windows, or its batches would always be the same.

    Several ranks divide each batch among themselves, every ``ranks``-th utterance each: together
    they see the same batches as one process, without overlap or loss.

    Args:
        lengths: ``[N]``, what padding costs (frames or tokens of each utterance).
        batch_size: utterances in a batch over all ranks; the last one may be smaller.
        seed: the run's seed.
        epoch: number of the epoch.
        window: batches in a window.
        rank: which of the processes asks.
        ranks: how many there are.

    Returns:
        One int64 tensor of indices per batch, this rank's share; over the ranks each utterance
        occurs exactly once.
    """
    assert 0 <= rank < ranks
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(lengths), generator=generator)
    batches_in_all = -(-len(lengths) // batch_size)
    windows = max(min(4, batches_in_all), -(-batches_in_all // window))
    size = batch_size * -(-batches_in_all // windows) if windows else 1
    batches: list[Tensor] = []
    for part in order.split(size):
        part = part[lengths[part].argsort(stable=True)]
        batches += part.split(batch_size)
    shuffled = torch.randperm(len(batches), generator=generator).tolist()
    return [batches[i][rank::ranks] for i in shuffled]
