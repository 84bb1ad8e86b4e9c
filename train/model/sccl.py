"""Semantic-centric Contrastive Learning (SCCL), equations (16) to (19).

Letters: B batch, M = 3 modalities, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def intra_sample(specific_BMD: Tensor, shared_BMD: Tensor, tau: float) -> Tensor:
    """Compute L_intra, equations (16) and (17): a scalar, the mean over the batch.

    Within one utterance the shared vectors s_m attract each other; the specific vectors p_m repel
    each other and repel the shared vector of their own modality. Pairs are ordered: 6 positive,
    6 + 3 negative.
    """
    s_BMD, p_BMD = F.normalize(shared_BMD, dim=-1), F.normalize(specific_BMD, dim=-1)
    own_MM = torch.eye(s_BMD.shape[1], dtype=torch.bool, device=s_BMD.device)
    attract_BE = _pairs(s_BMD, own_MM) / tau
    repel_BE = torch.cat([_pairs(p_BMD, own_MM), (s_BMD * p_BMD).sum(-1)], dim=1) / tau
    # -log(P / (P + N)) = log(1 + N / P)
    return F.softplus(repel_BE.logsumexp(1) - attract_BE.logsumexp(1)).mean()


def _pairs(z_BMD: Tensor, own_MM: Tensor) -> Tensor:
    """Dot products z_m . z_n of all ordered pairs, ``[B, M M]``; -inf (excluded) where m = n."""
    return (z_BMD @ z_BMD.transpose(1, 2)).masked_fill(own_MM, -torch.inf).flatten(1)


def inter_sample(
    features_BD: Tensor, same_class_BB: Tensor, tau: float, real_B: Tensor | None = None
) -> Tensor:
    """Compute L_inter, equation (18): supervised contrast of the multimodal vectors, a scalar.

    Args:
        features_BD: F_M.
        same_class_BB: True where two utterances are of the same class; the diagonal is ignored.
        tau: temperature tau'.
        real_B: False on padding rows; None: no padding.

    An utterance without another one of its class in the batch adds 0 and still counts in the mean.
    """
    z_BD = F.normalize(features_BD, dim=-1)
    ignored_BB = torch.eye(len(z_BD), dtype=torch.bool, device=z_BD.device)
    if real_B is not None:
        ignored_BB = ignored_BB | ~(real_B[:, None] & real_B[None, :])
    similarity_BB = z_BD @ z_BD.T / tau
    # Finite, so that a batch of one utterance gives 0 and not NaN.
    lowest = torch.finfo(similarity_BB.dtype).min
    log_share_BB = similarity_BB.masked_fill(ignored_BB, lowest).log_softmax(1)
    positive_BB = same_class_BB & ~ignored_BB
    count_B = positive_BB.sum(1).clamp(min=1)
    loss_B = -(log_share_BB.where(positive_BB, 0.0).sum(1) / count_B)
    return loss_B.mean() if real_B is None else loss_B.sum() / real_B.sum()
