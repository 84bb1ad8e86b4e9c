"""What the processes of one run tell each other; a process alone tells nobody and waits for nobody.

Accelerate starts them and averages their gradients. Every function here is called by all of them
at the same point of the program, or they would wait for each other for ever.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

T = TypeVar("T")


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if _several() else 0


def count() -> int:
    """How many processes work on this run."""
    return dist.get_world_size() if _several() else 1


def wait() -> None:
    """Go on when all have come here."""
    if _several():
        dist.barrier()


def all_of(thing: T) -> list[T]:
    """What each process gave, in the order of their ranks."""
    if not _several():
        return [thing]
    things: list[Any] = [None] * count()
    dist.all_gather_object(things, thing)
    return things


def share(index_B: Tensor, pieces: int) -> tuple[Tensor, ...]:
    """What this process takes of a batch, in at most ``pieces``; every process has as many.

    The batch has as many utterances as there are processes, or more.
    """
    pieces = min(pieces, len(index_B) // count())
    return index_B[rank() :: count()].tensor_split(pieces)


def add_up(x: Tensor) -> None:
    """Replace a tensor, in its place, by the sum of what each process holds."""
    if _several():
        dist.all_reduce(x)


def gather_batch(
    features_BD: Tensor, labels_BC: Tensor, batch_size: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The rows of all processes, for a loss among the utterances of a whole batch.

    The gradient of the features reaches the process that they came from. Shares may differ in
    length; they are filled up to a length that all know, so that no size has to be asked for.

    Args:
        features_BD: this process's features.
        labels_BC: its targets.
        batch_size: utterances of a step over all processes.

    Returns:
        Features and targets of all, and ``[rows]`` bool, False where a row only fills up; None
        where no row does.
    """
    if not _several():
        return features_BD, labels_BC, None
    # One more: a batch of fewer utterances than processes has joined another one.
    rows = -(-batch_size // count()) + 1
    assert len(features_BD) <= rows
    fill = (0, 0, 0, rows - len(features_BD))
    real_B1 = F.pad(torch.ones_like(labels_BC[:, :1]), fill)
    labels, real = _Gather.apply(F.pad(labels_BC, fill)), _Gather.apply(real_B1)
    return _Gather.apply(F.pad(features_BD, fill)), labels, real[:, 0] > 0


class _Gather(torch.autograd.Function):
    """Rows of equal number from every process, below each other."""

    @staticmethod
    def forward(ctx: Any, x_RD: Tensor) -> Tensor:
        parts = [torch.empty_like(x_RD) for _ in range(count())]
        dist.all_gather(parts, x_RD.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Each process has its own loss of all rows: a row's gradient is the sum of what they say.
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total.chunk(count())[rank()]


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()
