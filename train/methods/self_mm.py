"""Self-MM: self-supervised multi-task learning of each modality.

Yu, Xu, Yuan and Wu, "Learning Modality-Specific Representations with Self-Supervised Multi-Task
Learning for Multimodal Sentiment Analysis" (AAAI 2021). Letters: B batch, N training utterances, D
model width, C outputs; sub-tasks M (all modalities) and s in {t, a, v}.

    F_t: mean of the tokens, F_a, F_v: an LSTM's last state
    F_M* = ReLU(W [F_t, F_a, F_v]),   F_s* = ReLU(W_s F_s),   y_k = MLP_k(F_k*)
    L = 1/B sum_i ( l(y_M, y) + sum_s w_s l(y_s, y_s^(e)) ),   w_s = tanh |y_s^(e) - y|

Labels of the modalities are generated. C_k^+ and C_k^- are the mean F_k* of the training utterances
whose label of sub-task k (generated, except for M) is positive and negative, and D_k^+, D_k^- an
utterance's distances to them:

    D = ||F_k* - C_k||_2^2 / sqrt(D),   alpha_k = (D_k^- - D_k^+) / (D_k^+ + eps)
    delta = (alpha_s - alpha_M) / 2 * (y + alpha_M) / alpha_M
    y_s^(1) = y,   y_s^(e+1) = (e-1)/(e+1) y_s^(e) + 2/(e+1) (y + delta)   after epoch e >= 2

and clamped to the label's range. The paper's labels are scores around 0. Generalised: labels are
relative to the middle of their range, and each output is one score. For classes (range 0 to 1) the
utterances of a class are positive and all others negative, every class has its own centres and
alpha, and w_s is the mean over the classes. If the training split has no positive or no negative
utterance, the label stays the ground truth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train import distributed
from train.config import Config, read_options
from train.data import Batch
from train.method import MODALITY_KEYS, Method, Outputs
from train.model.frames import Frames, LastState
from train.model.layers import masked_mean, predictor
from train.model.text_features import text_source
from train.ranges import Positive
from train.task import Task

SUBTASKS = ("M", *MODALITY_KEYS)


class SelfMM(Method):
    """Four tasks, three of them with generated labels."""

    @dataclass
    class Options:
        """Self-MM's own keys: the widths of the LSTMs."""

        audio: Positive[int] = 16
        vision: Positive[int] = 32

    training_state = ("generated",)
    generated: UnimodalLabels

    def __init__(self, config: Config, task: Task, widths: Mapping[str, int]) -> None:
        super().__init__(config, task, widths)
        options, width = read_options(self.Options, config), config.width
        self.text = text_source(config.text, widths)
        self.audio = Frames(widths["audio"], config)
        self.vision = Frames(widths["vision"], config)
        self.audio_lstm = LastState(widths["audio"], options.audio)
        self.vision_lstm = LastState(widths["vision"], options.vision)
        sizes = {"t": self.text.width, "a": options.audio, "v": options.vision}
        sizes["M"] = sum(sizes.values())
        self.project = nn.ModuleDict(
            {
                k: nn.Sequential(nn.Dropout(config.dropout), nn.Linear(sizes[k], width), nn.ReLU())
                for k in SUBTASKS
            }
        )
        self.predictors = nn.ModuleDict(
            {k: predictor(width, task.outputs, config.dropout) for k in SUBTASKS}
        )

    def forward(self, batch: Batch) -> Outputs:
        """Predict all four sub-tasks, and return their F*."""
        read = {
            "t": masked_mean(*self.text(batch.text)),
            "a": self.audio_lstm(*self.audio(batch.audio)),
            "v": self.vision_lstm(*self.vision(batch.vision)),
        }
        read["M"] = torch.cat(list(read.values()), 1)
        features = {k: self.project[k](read[k]) for k in SUBTASKS}
        return Outputs({k: self.predictors[k](features[k]) for k in SUBTASKS}, features)

    def begin(self, labels_NC: Tensor) -> None:
        """Initialise the modalities' labels with the ground truth."""
        device = next(self.parameters()).device
        self.generated = UnimodalLabels(labels_NC.to(device), self.config.width, self.task)

    def end_epoch(self, epoch: int) -> None:
        """Update the modalities' labels."""
        self.generated.update(epoch)

    def exports(self) -> dict[str, Tensor]:
        """Return the final labels of the modalities."""
        return dict(zip(MODALITY_KEYS, self.generated.labels, strict=True))

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Compute the weighted terms of all sub-tasks."""
        terms = super().loss(outputs, batch)
        total = terms["task_M"]
        self.generated.collect(batch.index, outputs.features)
        for s, labels_NC in zip(MODALITY_KEYS, self.generated.labels, strict=True):
            label_BC = labels_NC[batch.index]
            weight_B = (label_BC - batch.labels).abs().tanh().mean(1)
            terms[f"task_{s}"] = (
                weight_B * self.task.loss(outputs.predictions[s], label_BC)
            ).mean()
            total = total + terms[f"task_{s}"]
        return {**terms, "total": total}


class UnimodalLabels(nn.Module):
    """The generated labels of the training split, as buffers.

    Args:
        truth_NC: y.
        width: D.
        task: the range of labels.
    """

    truth: Tensor
    labels: Tensor
    features: Tensor

    def __init__(self, truth_NC: Tensor, width: int, task: Task) -> None:
        super().__init__()
        self.task = task
        self.register_buffer("truth", truth_NC.clone())
        self.register_buffer("labels", truth_NC.expand(len(MODALITY_KEYS), -1, -1).clone())
        self.register_buffer("features", truth_NC.new_zeros(len(SUBTASKS), len(truth_NC), width))

    @torch.no_grad()
    def collect(self, index_B: Tensor, features: Mapping[str, Tensor]) -> None:
        """Store this epoch's F* of some utterances for the next update."""
        for k, kept_ND in zip(SUBTASKS, self.features, strict=True):
            kept_ND[index_B] = features[k].detach().to(kept_ND.dtype)

    @torch.no_grad()
    def update(self, epoch: int) -> None:
        """Compute y_s^(e+1) after epoch e (from 1), when all utterances are collected."""
        if epoch >= 2:
            distributed.all_reduce_sum(self.features)  # each rank has collected its own shards
            middle = (self.task.low + self.task.high) / 2
            signed_NC = self.truth - middle
            alpha_M, *alphas = (
                relative_distance(kept_ND, label_NC - middle)
                for kept_ND, label_NC in zip(self.features, (self.truth, *self.labels), strict=True)
            )
            old = (epoch - 1) / (epoch + 1)
            for s, alpha_s in enumerate(alphas):
                moved_NC = self.task.clamp(self.truth + shift(signed_NC, alpha_s, alpha_M))
                self.labels[s] = old * self.labels[s] + 2 / (epoch + 1) * moved_NC
        self.features.zero_()  # the next epoch's sum over processes starts from zero


def relative_distance(features_ND: Tensor, signed_NC: Tensor) -> Tensor:
    """Compute alpha, ``[N, C]``: above 0 for utterances nearer to the positive centre.

    0 for outputs without positive or without negative utterances.
    """
    positive_NC, negative_NC = (signed_NC > 0).float(), (signed_NC < 0).float()
    distances = []
    for member_NC in (positive_NC, negative_NC):
        centre_CD = member_NC.T @ features_ND / member_NC.sum(0).clamp(min=1)[:, None]
        squared_NC = (features_ND[:, None] - centre_CD).square().sum(2)
        distances.append(squared_NC / features_ND.shape[1] ** 0.5)
    to_positive_NC, to_negative_NC = distances
    both_C = positive_NC.any(0) & negative_NC.any(0)
    return ((to_negative_NC - to_positive_NC) / (to_positive_NC + 1e-8)).where(both_C, 0.0)


def shift(signed_NC: Tensor, alpha_s: Tensor, alpha_m: Tensor) -> Tensor:
    """Compute delta, ``[N, C]``: half the difference, half the ratio of the relative distances."""
    away_NC = torch.where(alpha_m < 0, alpha_m - 1e-8, alpha_m + 1e-8)  # avoids division by 0
    return (alpha_s - alpha_m) / 2 * (signed_NC + alpha_m) / away_NC
