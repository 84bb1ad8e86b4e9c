"""Semantic-centric Label Generation (SCLG): pseudo labels of the sub-tasks, (13) to (15).

Letters: N training utterances, R rows of one process, D feature width, C outputs,
K neighbours (in features_KBD: sub-tasks).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from manifests.printing import get_logger
from train import distributed
from train.config import SCLGConfig
from train.model import neighbours

log = get_logger(__name__)


class PseudoLabels(nn.Module):
    """The pseudo labels of all training utterances, updated once per epoch.

    They are buffers, not parameters, so that a checkpoint contains them. All processes hold the
    same labels; each collects the features of its own utterances and searches neighbours for its
    share of the rows.

    Args:
        truth_NC: y, the multimodal ground truth of the training split.
        subtasks: names of the sub-tasks with pseudo labels.
        width: D.
        clamp: clamps labels to their range.
        config: neighbours, sigma, momentum.

    Raises:
        ValueError: only one training utterance, or ``sclg.index=faiss`` without FAISS.
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
        # A small split has fewer than knn neighbours: use all of them.
        self.knn = min(config.knn, len(truth_NC) - 1)
        if config.enabled and self.knn < config.knn:
            if not self.knn:
                raise ValueError("pseudo labels need at least 2 training utterances, not 1")
            log.warning(
                "sclg.knn=%d exceeds the number of neighbours; using %d", config.knn, self.knn
            )
        if config.enabled:
            neighbours.check(config.index)
        self.subtasks = tuple(subtasks)
        self.clamp, self.config = clamp, config
        count = len(self.subtasks)
        self.register_buffer("truth", truth_NC.clone())
        self.register_buffer("labels", truth_NC.expand(count, -1, -1).clone())
        self.register_buffer("features", truth_NC.new_zeros(count, len(truth_NC), width))

    def lookup(self, index_B: Tensor) -> Tensor:
        """Return the current pseudo labels of some utterances, ``[sub-tasks, B, C]``."""
        return self.labels.index_select(1, index_B)

    @torch.no_grad()
    def collect(self, index_B: Tensor, features_KBD: Tensor) -> None:
        """Store this epoch's features of some utterances for the next update.

        In an epoch each utterance is collected once, by one of the processes.
        """
        self.features.index_copy_(1, index_B, features_KBD.detach().to(self.features.dtype))

    @torch.no_grad()
    def update(self, epoch: int) -> None:
        """Apply equation (15) after epoch ``epoch`` (from 1), when all utterances are collected."""
        if self.config.enabled and epoch >= self.config.start_epoch:
            distributed.all_reduce_sum(self.features)
            for k in range(len(self.subtasks)):
                moved_NC = self.truth + self._delta(self.features[k])
                if self.config.momentum:
                    old = (epoch - 1) / (epoch + 1)
                    moved_NC = old * self.labels[k] + 2 / (epoch + 1) * moved_NC
                self.labels[k] = self.clamp(moved_NC)
        self.features.zero_()  # the next epoch's sum over processes starts from zero

    def _delta(self, features_ND: Tensor) -> Tensor:
        """Compute equation (14), ``[N, C]``: each process computes its rows, all get the sum."""
        n, config = len(features_ND), self.config
        rows_R = torch.arange(n, device=features_ND.device)
        rows_R = rows_R.tensor_split(distributed.world_size())[distributed.rank()]
        distance_RK, neighbour_RK = neighbours.nearest(features_ND, self.knn, rows_R, config.index)
        delta_NC = torch.zeros_like(self.truth)
        delta_NC[rows_R] = label_shift(
            self.truth, rows_R, distance_RK, neighbour_RK, config.sigma, config.reduction
        )
        distributed.all_reduce_sum(delta_NC)
        return delta_NC


def label_shift(
    truth_NC: Tensor,
    rows_R: Tensor,
    distance_RK: Tensor,
    neighbour_RK: Tensor,
    sigma: float,
    reduction: str,
) -> Tensor:
    """Compute delta ``[R, C]``, the shift of labels towards their neighbours'; equation (14).

    Args:
        truth_NC: y of all utterances.
        rows_R: i, the rows to compute.
        distance_RK: D_ij.
        neighbour_RK: j, the neighbours of each row.
        sigma: width of the Gaussian potential.
        reduction: "mean" or "sum" over the neighbours.
    """
    scale_RK = torch.exp(-distance_RK.square() / (2 * sigma**2))
    shift_RKC = truth_NC[neighbour_RK] - truth_NC[rows_R, None]
    delta_RC = (scale_RK[..., None] * shift_RKC).sum(1)
    return delta_RC / neighbour_RK.shape[1] if reduction == "mean" else delta_RC
