"""MMIM: hierarchical mutual information maximisation (MultiModal InfoMax).

Han, Chen and Poria, "Improving Multimodal Fusion with Hierarchical Mutual Information Maximization
for Multimodal Sentiment Analysis" (EMNLP 2021). Letters: B batch, d_m width of a modality's vector,
D model width. h_t is the mean of the tokens, h_a and h_v are a biLSTM's last states.

    F_M = ReLU(W [h_t, h_a, h_v]),   y = MLP(F_M),   L = l(y, y_M) + a L_CPC + b L_BA

Between text and each other modality m (Barber and Agakov's lower bound of their information):

    I(h_m; h_t) >= E[ log q(h_m | h_t) ] + H(h_m) = -L_BA (summed over m = a, v)
    q(h_m | h_t) = N( mu(h_t), diag(exp(s(h_t))) ),   s = tanh(...)
    H(h_m) = mean over groups g of 1/2 log det(Sigma_g)

up to constants; Sigma_g is the covariance of h_m over the utterances of one group, in this batch
and in a memory of recent ones. Between the fusion and each modality (contrastive predictive
coding), with both vectors of length one and i, j utterances of the batch:

    L_CPC = -1/B sum_m sum_i log( exp(h_mi . G_m(F_M,i)) / sum_j exp(h_mj . G_m(F_M,i)) )

The paper fits q in a separate step before each main step; here one step raises the bound in q and
in the encoders: both maximise it. Its groups are negative and positive scores (here:
below and from the middle of the range); for classes there is one group per class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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

RIDGE = 1e-3  # added to variances: a group of few utterances spans few directions


class MMIM(Method):
    """Fusion that maximises its mutual information with the modalities."""

    @dataclass
    class Options:
        """MMIM's own keys, with the paper's values except for the size of the memory."""

        cpc: NotNegative[float] = 0.1  # a
        bound: NotNegative[float] = 0.1  # b
        audio: Positive[int] = 16  # width of an LSTM, in each direction
        vision: Positive[int] = 16
        memory: Positive[int] = 128  # utterances in the memory of the covariances

    training_state = ("memory",)
    memory: Memory

    def __init__(self, config: Config, task: Task, widths: Mapping[str, int]) -> None:
        super().__init__(config, task, widths)
        self.options = options = read_options(self.Options, config)
        self.text = text_source(config.text, widths)
        self.audio = Frames(widths["audio"], config)
        self.vision = Frames(widths["vision"], config)
        self.audio_lstm = LastState(widths["audio"], options.audio, bidirectional=True)
        self.vision_lstm = LastState(widths["vision"], options.vision, bidirectional=True)
        sizes = {
            "t": self.text.width,
            "a": self.audio_lstm.width,
            "v": self.vision_lstm.width,
        }
        self.fuse = nn.Sequential(
            nn.Dropout(config.dropout), nn.Linear(sum(sizes.values()), config.width), nn.ReLU()
        )
        self.predict = predictor(config.width, task.outputs, config.dropout)
        self.from_text = nn.ModuleDict({m: Gaussian(sizes["t"], sizes[m]) for m in "av"})
        self.from_fusion = nn.ModuleDict({m: nn.Linear(config.width, sizes[m]) for m in sizes})

    def forward(self, batch: Batch) -> Outputs:
        """Predict, and return each modality's h_m."""
        features = {
            "t": masked_mean(*self.text(batch.text)),
            "a": self.audio_lstm(*self.audio(batch.audio)),
            "v": self.vision_lstm(*self.vision(batch.vision)),
        }
        features["M"] = self.fuse(torch.cat(list(features.values()), 1))
        return Outputs({"M": self.predict(features["M"])}, features)

    def begin(self, labels_NC: Tensor) -> None:
        """Start with an empty memory."""
        groups = 2 if self.task.kind == "regression" else self.task.outputs
        sizes = {"a": self.audio_lstm.width, "v": self.vision_lstm.width}
        self.memory = Memory(sizes, groups, self.options.memory)
        self.memory.to(next(self.parameters()).device)

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Compute l, L_CPC and L_BA."""
        terms = super().loss(outputs, batch)
        features, member_BG = outputs.features, self._groups(batch.labels)
        terms["bound"] = -torch.stack(
            [
                self.from_text[m](features["t"], features[m])
                + self.memory.entropy(m, features[m], member_BG)
                for m in "av"
            ]
        ).sum()
        terms["cpc"] = torch.stack(
            [
                predictive_coding(features[m], self.from_fusion[m](features["M"]))
                for m in MODALITY_KEYS
            ]
        ).sum()
        self.memory.remember(features, member_BG)
        extra = self.options.cpc * terms["cpc"] + self.options.bound * terms["bound"]
        return {**terms, "total": terms["task_M"] + extra}

    def _groups(self, labels_BC: Tensor) -> Tensor:
        """Membership of utterances in groups, ``[B, G]``, 0 or 1."""
        if self.task.kind != "regression":
            return labels_BC
        upper_B1 = (labels_BC >= (self.task.low + self.task.high) / 2).to(labels_BC.dtype)
        return torch.cat([1 - upper_B1, upper_B1], 1)


class Gaussian(nn.Module):
    """q(h_m | h_t), a diagonal Gaussian."""

    def __init__(self, given: int, width: int) -> None:
        super().__init__()
        self.mean = nn.Sequential(nn.Linear(given, width), nn.ReLU(), nn.Linear(width, width))
        # Bounded, since the density of exactly predicted vectors is unbounded.
        self.log_variance = nn.Sequential(
            nn.Linear(given, width), nn.ReLU(), nn.Linear(width, width), nn.Tanh()
        )

    def forward(self, given_Bd: Tensor, h_Be: Tensor) -> Tensor:
        """Compute E[log q] up to a constant, a scalar."""
        log_variance_Be = self.log_variance(given_Bd)
        error_Be = (h_Be - self.mean(given_Bd)).square() / log_variance_Be.exp()
        return -(error_Be + log_variance_Be).sum(1).mean() / 2


class Memory(nn.Module):
    """Vectors of recent utterances, to estimate covariances from more than one batch.

    Args:
        sizes: d_m of each modality.
        groups: G.
        capacity: number of utterances.
    """

    member: Tensor

    def __init__(self, sizes: Mapping[str, int], groups: int, capacity: int) -> None:
        super().__init__()
        self.modalities = tuple(sizes)
        self.register_buffer("member", torch.zeros(capacity, groups))  # no group: an empty slot
        for m, size in sizes.items():
            self.register_buffer(m, torch.zeros(capacity, size))

    def entropy(self, modality: str, h_Be: Tensor, member_BG: Tensor) -> Tensor:
        """Compute H(h_m) up to a constant, a scalar; skips groups of fewer than two utterances."""
        h_Ne = torch.cat([h_Be.float(), getattr(self, modality)])
        member_NG = torch.cat([member_BG, self.member])
        entropies = []
        for g in range(member_NG.shape[1]):
            h_ne = h_Ne[member_NG[:, g] > 0.5]
            if len(h_ne) > 1:
                covariance = torch.cov(h_ne.T) + RIDGE * torch.eye(
                    h_ne.shape[1], device=h_ne.device
                )
                entropies.append(torch.linalg.slogdet(covariance).logabsdet / 2)
        return torch.stack(entropies).mean() if entropies else h_Ne.sum() * 0

    @torch.no_grad()
    def remember(self, features: Mapping[str, Tensor], member_BG: Tensor) -> None:
        """Add a batch and drop the oldest utterances."""
        newest = {m: features[m].detach().float() for m in self.modalities} | {"member": member_BG}
        for name, new in newest.items():
            kept = getattr(self, name)
            kept.copy_(torch.cat([new, kept])[: len(kept)])


def predictive_coding(h_Bd: Tensor, guess_Bd: Tensor) -> Tensor:
    """Compute one modality's part of L_CPC, a scalar."""
    similarity_BB = F.normalize(guess_Bd, dim=1) @ F.normalize(h_Bd, dim=1).T
    return -similarity_BB.log_softmax(1).diagonal().mean()
