"""MISA: modality-invariant and -specific representations.

Hazarika, Zimmermann and Poria, "MISA: Modality-Invariant and -Specific Representations for
Multimodal Sentiment Analysis" (ACM MM 2020). Letters: B batch, M = 3 modalities, D model width.

    u_m = LN(ReLU(W_m x_m))            x_t: mean of the tokens, x_a, x_v: a 2-layer biLSTM's states
    h_m^p = sigma(W_m^p u_m)           private to modality m
    h_m^c = sigma(W^c u_m)             one encoder for all
    F_M = W Transformer([h_t^p, h_a^p, h_v^p, h_t^c, h_a^c, h_v^c]),   y = MLP(F_M)

    L = l(y, y_M) + a L_sim + b L_diff + g L_recon
    L_sim   = mean over pairs CMD_5(H_m^c, H_n^c)
    CMD_K(X, Y) = ||E X - E Y|| + sum_{k=2..K} ||C_k(X) - C_k(Y)||,   C_k(X) = E (X - E X)^k
    L_diff  = sum_m ||H_m^c' H_m^p||_F^2 + sum_{m<n} ||H_m^p' H_n^p||_F^2
    L_recon = mean over m of ||u_m - W^d(h_m^c + h_m^p)||_2^2 / D

H are the batch's vectors as rows, centred over the batch and of length one. The Frobenius norm is
taken per entry (divided by D^2), to match the authors' weight b.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.config import Config, read_options
from train.data import Batch
from train.method import MODALITY_KEYS, Method, Outputs
from train.model.frames import Frames, LastState
from train.model.layers import masked_mean, predictor
from train.model.text_features import text_source
from train.ranges import NotNegative, Positive
from train.task import Task


class MISA(Method):
    """Private and shared encoders, separated by the loss."""

    @dataclass
    class Options:
        """MISA's own keys."""

        similarity: NotNegative[float] = 1.0  # a
        difference: NotNegative[float] = 0.3  # b
        reconstruction: NotNegative[float] = 1.0  # g
        moments: Positive[int] = 5  # K of CMD_K
        lstm: Positive[int] = 64  # width of each of the four states of a biLSTM
        heads: Positive[int] = 2  # of the Transformer layer

    def __init__(self, config: Config, task: Task, widths: Mapping[str, int]) -> None:
        super().__init__(config, task, widths)
        self.options = options = read_options(self.Options, config)
        width, dropout = config.width, config.dropout
        if width % options.heads:
            raise ValueError(f"width={width} is not divisible by options.heads={options.heads}")
        self.text = text_source(config.text, widths)
        self.audio = Frames(widths["audio"], config)
        self.vision = Frames(widths["vision"], config)
        self.audio_lstm = LastState(widths["audio"], options.lstm, 2, bidirectional=True)
        self.vision_lstm = LastState(widths["vision"], options.lstm, 2, bidirectional=True)
        self.project = nn.ModuleList(
            nn.Sequential(nn.Linear(read, width), nn.ReLU(), nn.LayerNorm(width))
            for read in (self.text.width, self.audio_lstm.width, self.vision_lstm.width)
        )
        self.private = nn.ModuleList(nn.Linear(width, width) for _ in MODALITY_KEYS)
        self.common = nn.Linear(width, width)
        self.decode = nn.Linear(width, width)
        self.transformer = nn.TransformerEncoderLayer(
            width, options.heads, 4 * width, dropout, batch_first=True
        )
        self.fuse = nn.Linear(6 * width, width)
        self.predict = predictor(width, task.outputs, dropout)

    def forward(self, batch: Batch) -> Outputs:
        """Predict, and return u_m and the private and shared vectors."""
        read = (
            masked_mean(*self.text(batch.text)),
            self.audio_lstm(*self.audio(batch.audio)),
            self.vision_lstm(*self.vision(batch.vision)),
        )
        u = [project(x) for project, x in zip(self.project, read, strict=True)]
        private_BMD = torch.stack(
            [private(u_BD).sigmoid() for private, u_BD in zip(self.private, u, strict=True)], 1
        )
        shared_BMD = self.common(torch.stack(u, 1)).sigmoid()
        mixed_BED = self.transformer(torch.cat([private_BMD, shared_BMD], 1))  # E = 2 M
        features = dict(zip(MODALITY_KEYS, u, strict=True))
        features["M"] = self.fuse(mixed_BED.flatten(1))
        return Outputs({"M": self.predict(features["M"])}, features, private_BMD, shared_BMD)

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Compute l, L_sim, L_diff and L_recon."""
        terms = super().loss(outputs, batch)
        private_BMD, shared_BMD = outputs.specific, outputs.shared
        assert private_BMD is not None
        assert shared_BMD is not None
        terms["similarity"] = similarity(shared_BMD, self.options.moments)
        terms["difference"] = difference(private_BMD, shared_BMD)
        u_BMD = torch.stack([outputs.features[m] for m in MODALITY_KEYS], 1)
        terms["reconstruction"] = F.mse_loss(self.decode(private_BMD + shared_BMD), u_BMD)
        weighted = sum(
            getattr(self.options, name) * terms[name]
            for name in ("similarity", "difference", "reconstruction")
        )
        return {**terms, "total": terms["task_M"] + weighted}


def similarity(shared_BMD: Tensor, moments: int) -> Tensor:
    """Compute L_sim, a scalar."""
    pairs = list(combinations(shared_BMD.unbind(1), 2))
    return torch.stack([central_moment_discrepancy(x, y, moments) for x, y in pairs]).mean()


def central_moment_discrepancy(x_BD: Tensor, y_BD: Tensor, moments: int) -> Tensor:
    """Compute CMD_K of two samples with values in [0, 1], a scalar."""
    mean_x, mean_y = x_BD.mean(0), y_BD.mean(0)
    distance = (mean_x - mean_y).norm()
    for k in range(2, moments + 1):
        moment_x, moment_y = ((x_BD - mean_x) ** k).mean(0), ((y_BD - mean_y) ** k).mean(0)
        distance = distance + (moment_x - moment_y).norm()
    return distance


def difference(private_BMD: Tensor, shared_BMD: Tensor) -> Tensor:
    """Compute L_diff, a scalar: 0 if every pair of spaces is orthogonal."""
    private, shared = (
        F.normalize(h_BMD - h_BMD.mean(0), dim=-1).unbind(1) for h_BMD in (private_BMD, shared_BMD)
    )
    pairs = [*zip(shared, private, strict=True), *combinations(private, 2)]
    return torch.stack([(x_BD.T @ y_BD).square().mean() for x_BD, y_BD in pairs]).sum()
