"""Semantic-centric Label Generation (SCLG): pseudo labels for the sub-tasks, (13) to (15).

Letters: N training utterances, D feature width, C outputs, K neighbours.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from train.config import SCLGConfig

log = logging.getLogger(__name__)

# Distances held at once while searching neighbours: 64 MiB of float32, whatever N is.
CELLS = 1 << 24


class PseudoLabels(nn.Module):
    """The pseudo labels of all training utterances, moved once per epoch.

    They are state, not parameters: buffers, so that a checkpoint carries them.

    Args:
        truth_NC: y, the multimodal ground truth of the training split.
        subtasks: names of the sub-tasks with pseudo labels.
        width: D.
        clamp: keeps labels in their range.
        config: neighbours, sigma, momentum.

    Raises:
        ValueError: there is no neighbour: only one training utterance.
    """

    truth: Tensor
    labels: Tensor
    features: Tensor

    def __init__(
        self,
        truth_NC: Tensor,
        subtasks: Sequence[str],
        width: int,
        clamp: Callable[[Tensor], Tensor],
        config: SCLGConfig,
    ) -> None:
        super().__init__()
        # A split of k utterances or fewer has fewer neighbours than asked for: take them all.
        self.knn = min(config.knn, len(truth_NC) - 1)
        if config.enabled and self.knn < config.knn:
            if not self.knn:
                raise ValueError("pseudo labels need at least 2 training utterances, there is 1")
            log.warning("sclg.knn=%d is more than there are; using %d", config.knn, self.knn)
        self.subtasks = tuple(subtasks)
        self.clamp, self.config = clamp, config
        count = len(self.subtasks)
        self.register_buffer("truth", truth_NC.clone())
        self.register_buffer("labels", truth_NC.expand(count, -1, -1).clone())
        self.register_buffer("features", truth_NC.new_zeros(count, len(truth_NC), width))

    def of(self, subtask: str, index_B: Tensor) -> Tensor:
        """The present pseudo labels of some utterances, ``[B, C]``."""
        return self.labels[self.subtasks.index(subtask)].index_select(0, index_B)

    @torch.no_grad()
    def gather(self, subtask: str, index_B: Tensor, feature_BD: Tensor) -> None:
        """Keep this epoch's features of some utterances for the coming move."""
        kept_ND = self.features[self.subtasks.index(subtask)]
        kept_ND.index_copy_(0, index_B, feature_BD.detach().to(kept_ND.dtype))

    @torch.no_grad()
    def move(self, epoch: int) -> None:
        """Equation (15) after epoch ``epoch`` (from 1), once every utterance was gathered."""
        if not self.config.enabled or epoch < self.config.start_epoch:
            return
        for k in range(len(self.subtasks)):
            distance_NK, neighbour_NK = nearest(self.features[k], self.knn)
            delta_NC = movement(
                self.truth, distance_NK, neighbour_NK, self.config.sigma, self.config.reduction
            )
            moved_NC = self.truth + delta_NC
            if self.config.momentum:
                old = (epoch - 1) / (epoch + 1)
                moved_NC = old * self.labels[k] + 2 / (epoch + 1) * moved_NC
            self.labels[k] = self.clamp(moved_NC)


def nearest(features_ND: Tensor, knn: int) -> tuple[Tensor, Tensor]:
    """The nearest other rows of each row, exactly; equation (13).

    Returns:
        ``D_ij = ||F_i - F_j||_2 / sqrt(D)`` and ``j``, both ``[N, knn]``, nearest first. Rows are
        searched in chunks, so memory grows with N, not with its square.
    """
    n, width = features_ND.shape
    # Distances do not change under a shift, and small numbers lose less when squared.
    x_ND = features_ND.float() - features_ND.float().mean(0)
    squared_N = x_ND.square().sum(1)
    rows = max(1, CELLS // n)
    neighbours = []
    for start in range(0, n, rows):
        chunk_RD = x_ND[start : start + rows]
        # ||x_i||^2 is the same for all j and does not change the order.
        order_RN = torch.addmm(squared_N, chunk_RD, x_ND.T, alpha=-2.0)
        own_R1 = torch.arange(start, start + len(chunk_RD), device=x_ND.device)[:, None]
        order_RN.scatter_(1, own_R1, torch.inf)
        neighbours.append(order_RN.topk(knn, dim=1, largest=False).indices)
    neighbour_NK = torch.cat(neighbours)
    # The product above ranks well but is inexact for near rows; the distance itself is not.
    rows = max(1, CELLS // (knn * width))
    distances = [
        (x_RD[:, None] - x_ND[neighbour_RK]).norm(dim=2)
        for x_RD, neighbour_RK in zip(x_ND.split(rows), neighbour_NK.split(rows), strict=True)
    ]
    distance_NK = torch.cat(distances) / width**0.5
    distance_NK, order_NK = distance_NK.sort(dim=1, stable=True)
    return distance_NK, neighbour_NK.gather(1, order_NK)


def movement(
    truth_NC: Tensor, distance_NK: Tensor, neighbour_NK: Tensor, sigma: float, reduction: str
) -> Tensor:
    """Delta ``[N, C]``: each label's movement towards its neighbours'; equation (14)."""
    scale_NK = torch.exp(-distance_NK.square() / (2 * sigma**2))
    shift_NKC = truth_NC[neighbour_NK] - truth_NC[:, None]
    delta_NC = (scale_NK[..., None] * shift_NKC).sum(1)
    return delta_NC / neighbour_NK.shape[1] if reduction == "mean" else delta_NC
