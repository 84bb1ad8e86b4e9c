"""Collective operations among the ranks of a run; no-ops in a single process.

Accelerate starts the processes and averages their gradients. Every rank must call a collective at
the same point of the program, else the run hangs.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

T = TypeVar("T")


def rank() -> int:
    """Return the rank of this process, from 0."""
    return dist.get_rank() if _several() else 0


def world_size() -> int:
    """Return the number of processes of this run."""
    return dist.get_world_size() if _several() else 1


def barrier() -> None:
    """Return once every rank has called it."""
    if _several():
        dist.barrier()


def all_gather(thing: T) -> list[T]:
    """Gather a picklable object from each rank, in the order of ranks."""
    if not _several():
        return [thing]
    things: list[Any] = [None] * world_size()
    dist.all_gather_object(things, thing)
    return things


def shard(index_B: Tensor, pieces: int) -> tuple[Tensor, ...]:
    """Split this rank's share of a batch into at most ``pieces`` micro-batches.

    Every rank gets the same number of micro-batches; a batch has at least one utterance per rank.
    """
    pieces = min(pieces, len(index_B) // world_size())
    return index_B[rank() :: world_size()].tensor_split(pieces)


def all_reduce_sum(x: Tensor) -> None:
    """Replace a tensor, in place, by its sum over all ranks."""
    if _several():
        dist.all_reduce(x)


def gather_batch(
    features_BD: Tensor, labels_BC: Tensor, batch_size: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """All-gather the rows of a batch, with gradient, for a contrastive loss over the whole batch.

    Shards may differ in length; all are padded to the same length, which needs no communication.
    The backward pass gives each rank the gradient of its own rows.

    Args:
        features_BD: features of this rank.
        labels_BC: targets of this rank.
        batch_size: global batch size of a step.

    Returns:
        Features and targets of all ranks, and ``[rows]`` bool, False on padding; None without
        padding.
    """
    if not _several():
        return features_BD, labels_BC, None
    # One extra row: a batch with fewer utterances than processes is merged into another one.
    rows = -(-batch_size // world_size()) + 1
    assert len(features_BD) <= rows
    fill = (0, 0, 0, rows - len(features_BD))
    real_B1 = F.pad(torch.ones_like(labels_BC[:, :1]), fill)
    labels, real = _Gather.apply(F.pad(labels_BC, fill)), _Gather.apply(real_B1)
    return _Gather.apply(F.pad(features_BD, fill)), labels, real[:, 0] > 0


class _Gather(torch.autograd.Function):
    """Differentiable all-gather along the first axis; every rank has the same number of rows."""

    @staticmethod
    def forward(ctx: Any, x_RD: Tensor) -> Tensor:
        parts = [torch.empty_like(x_RD) for _ in range(world_size())]
        dist.all_gather(parts, x_RD.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Each rank computes its own loss over all rows: gradients of a row are summed over ranks.
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total.chunk(world_size())[rank()]


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()
