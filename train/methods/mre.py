"""MRE: multimodal relevance estimation; modalities are weighted by estimated relevance.

Letters: B batch, M = 3 modalities (t text, a audio, v vision), D model width, C outputs. h_m is the
mean of the same inputs as in SemanticMAC: the language model's tokens, a perceiver's tokens.

    alpha = softmax_m( w^T tanh(W h_m) ),   h = sum_m alpha_m h_m,   y = MLP(h)

Relevant semantic estimation: a modality that predicts better by itself gets more weight.

    y_m = MLP_m(h_m),   r = softmax_m( -l(y_m, y) / T )   (no gradient through r)
    L_rse = sum_m r_m l(y_m, y) + KL(r || alpha)

Category-level contrast among the B M vectors z = h / ||h||; P(i, m) are the vectors of the same
category in another modality, the utterance's own included:

    L_con = 1/B sum_i sum_m alpha_im -1/|P(i,m)| sum_{p in P(i,m)} log( e^{z_im.z_p / tau}
                                                          / sum_{q != (i,m)} e^{z_im.z_q / tau} )
    L = l(y, y_M) + lambda_1 L_rse + lambda_2 L_con

Only the paper's abstract was available: formulas and defaults are our interpretation. Scores are
divided into categories by ``sccl.bins``. An absent modality has relevance 0 and is excluded from
L_rse and L_con. alpha is reported per utterance as relevance_t, relevance_a, relevance_v.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cache import Packed
from train.config import Config, read_options
from train.data import Batch
from train.method import MODALITY_KEYS, Method, Outputs
from train.model.layers import masked_mean, predictor
from train.model.perceiver import AffectivePerceiver
from train.model.text_features import text_source
from train.ranges import NotNegative, Positive
from train.task import Task


class MRE(Method):
    """Fusion by estimated relevance."""

    @dataclass
    class Options:
        """MRE's own keys."""

        rse: NotNegative[float] = 0.5  # lambda_1
        contrast: NotNegative[float] = 0.1  # lambda_2
        temperature: Positive[float] = 1.0  # T of the target relevance
        tau: Positive[float] = 0.5  # temperature of the contrast

    def __init__(self, config: Config, task: Task, widths: Mapping[str, int]) -> None:
        super().__init__(config, task, widths)
        self.options = read_options(self.Options, config)
        width, dropout = config.width, config.dropout
        self.text = text_source(config.text, widths)
        self.project_text = nn.Linear(self.text.width, width)
        self.audio = AffectivePerceiver(widths["audio"], width, dropout, config.perceiver)
        self.vision = AffectivePerceiver(widths["vision"], width, dropout, config.perceiver)
        self.relevance = nn.Sequential(
            nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1, bias=False)
        )
        self.predictors = nn.ModuleDict(
            {k: predictor(width, task.outputs, dropout) for k in ("M", *MODALITY_KEYS)}
        )

    def forward(self, batch: Batch) -> Outputs:
        """Predict from the fusion and from each modality alone; report the relevance of each."""
        text_BLd, mask_BL = self.text(batch.text)
        h_t = self.project_text(masked_mean(text_BLd, mask_BL))
        h_BMD = torch.stack(
            [h_t, self.audio(batch.audio).mean(1), self.vision(batch.vision).mean(1)], 1
        )
        score_BM = self.relevance(h_BMD)[..., 0].float()
        alpha_BM = score_BM.masked_fill(~present(batch), -torch.inf).softmax(1)
        features = dict(zip(MODALITY_KEYS, h_BMD.unbind(1), strict=True))
        features["M"] = (alpha_BM[..., None] * h_BMD).sum(1)
        predictions = {k: self.predictors[k](features[k]) for k in ("M", *MODALITY_KEYS)}
        reported = {f"relevance_{m}": alpha_BM[:, i] for i, m in enumerate(MODALITY_KEYS)}
        return Outputs(predictions, features, reported=reported)

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Compute l, L_rse and L_con."""
        terms = super().loss(outputs, batch)
        alpha_BM = torch.stack([outputs.reported[f"relevance_{m}"] for m in MODALITY_KEYS], 1)
        each_BM = torch.stack(
            [self.task.loss(outputs.predictions[m], batch.labels) for m in MODALITY_KEYS], 1
        )
        here_BM = present(batch)
        terms["rse"] = relevance_loss(each_BM, alpha_BM, here_BM, self.options.temperature)
        terms["contrast"] = category_contrast(
            torch.stack([outputs.features[m] for m in MODALITY_KEYS], 1),
            alpha_BM,
            here_BM,
            self.task.same_class(batch.labels),
            self.options.tau,
        )
        total = terms["task_M"] + self.options.rse * terms["rse"]
        return {**terms, "total": total + self.options.contrast * terms["contrast"]}


def present(batch: Batch) -> Tensor:
    """Whether each modality is present, ``[B, M]`` bool; all, if an utterance has no modality."""
    audio, vision = batch.audio.lengths, batch.vision.lengths
    # A language model always gets a token; text features may be missing.
    text = batch.text.lengths if isinstance(batch.text, Packed) else torch.ones_like(audio)
    here_BM = torch.stack([text, audio, vision], 1) > 0
    return (here_BM | ~here_BM.any(1, keepdim=True)).to(batch.labels.device)


def relevance_loss(
    each_BM: Tensor, alpha_BM: Tensor, here_BM: Tensor, temperature: float
) -> Tensor:
    """Compute L_rse, a scalar, the mean over the batch.

    Args:
        each_BM: l(y_m, y), the loss of each modality alone.
        alpha_BM: estimated relevance.
        here_BM: which modalities are present.
        temperature: T.
    """
    r_BM = (-each_BM.detach() / temperature).masked_fill(~here_BM, -torch.inf).softmax(1)
    log_alpha_BM = alpha_BM.clamp(min=torch.finfo(alpha_BM.dtype).tiny).log()
    divergence_BM = torch.xlogy(r_BM, r_BM) - r_BM * log_alpha_BM
    return (r_BM * each_BM + divergence_BM).sum(1).mean()


def category_contrast(
    h_BMD: Tensor, alpha_BM: Tensor, here_BM: Tensor, same_class_BB: Tensor, tau: float
) -> Tensor:
    """Compute L_con, a scalar, weighted by alpha, without gradient to alpha."""
    b, m = alpha_BM.shape
    z_ED = F.normalize(h_BMD.float().flatten(0, 1), dim=-1)  # E = B M, modality fastest
    here_E = here_BM.flatten()
    own_EE = torch.eye(b * m, dtype=torch.bool, device=z_ED.device)
    hidden_EE = own_EE | ~here_E[None, :]
    lowest = torch.finfo(z_ED.dtype).min
    log_share_EE = (z_ED @ z_ED.T / tau).masked_fill(hidden_EE, lowest).log_softmax(1)
    same_modality_EE = torch.eye(m, dtype=torch.bool, device=z_ED.device).repeat(b, b)
    same_class_EE = same_class_BB.repeat_interleave(m, 0).repeat_interleave(m, 1)
    positive_EE = same_class_EE & ~same_modality_EE & ~hidden_EE
    count_E = positive_EE.sum(1).clamp(min=1)
    loss_E = -log_share_EE.where(positive_EE, 0.0).sum(1) / count_E
    return (alpha_BM.detach().flatten() * loss_E).sum() / b
