"""Semantic-centric Contrastive Learning (SCCL), equations (16) to (19).

Letters: B batch, M = 3 modalities, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def intra_sample(specific_BMD: Tensor, shared_BMD: Tensor, tau: float) -> Tensor:
    """L_intra, equations (16) and (17): a scalar, the mean over the batch.

    Within one utterance the shared vectors s_m attract each other; the specific vectors p_m repel
    each other and repel the shared vector of their own modality. Pairs are ordered: 6 positive,
    6 + 3 negative.
    """
    m = shared_BMD.shape[1]
    z_BED = F.normalize(torch.cat([shared_BMD, specific_BMD], dim=1), dim=-1)  # E = 2M
    similarity_BEE = z_BED @ z_BED.transpose(1, 2) / tau
    other = ~torch.eye(m, dtype=torch.bool, device=z_BED.device)
    none = torch.zeros_like(other)
    positive_EE = torch.cat([torch.cat([other, none], 1), torch.cat([none, none], 1)])
    negative_EE = torch.cat([torch.cat([none, ~other], 1), torch.cat([none, other], 1)])
    positive_B = _logsumexp(similarity_BEE, positive_EE)
    return (_logsumexp(similarity_BEE, positive_EE | negative_EE) - positive_B).mean()


def _logsumexp(similarity_BEE: Tensor, chosen_EE: Tensor) -> Tensor:
    return similarity_BEE.masked_fill(~chosen_EE, -torch.inf).flatten(1).logsumexp(1)


def inter_sample(features_BD: Tensor, alike_BB: Tensor, tau: float) -> Tensor:
    """L_inter, equation (18): supervised contrast among the multimodal vectors, a scalar.

    Args:
        features_BD: F_M.
        alike_BB: True where two utterances are of one class; the diagonal is ignored.
        tau: temperature tau'.

    An utterance with nothing alike in the batch adds 0, and still counts in the mean.
    """
    z_BD = F.normalize(features_BD, dim=-1)
    own_BB = torch.eye(len(z_BD), dtype=torch.bool, device=z_BD.device)
    # Finite, so that a batch of one utterance gives 0 and no NaN.
    similarity_BB = (z_BD @ z_BD.T / tau).masked_fill(own_BB, torch.finfo(z_BD.dtype).min)
    log_share_BB = similarity_BB.log_softmax(1)
    positive_BB = alike_BB & ~own_BB
    count_B = positive_BB.sum(1).clamp(min=1)
    return -(log_share_BB.where(positive_BB, 0.0).sum(1) / count_B).mean()
