"""TFN: Tensor Fusion Network.

Zadeh, Chen, Poria, Cambria and Morency, "Tensor Fusion Network for Multimodal Sentiment Analysis"
(EMNLP 2017). Letters: B batch, H_m width of a modality's embedding, D model width.

    z_t = ReLU(W LSTM(x_t)),   z_a, z_v = three ReLU layers on the mean over the frames
    Z = [z_t; 1] (x) [z_a; 1] (x) [z_v; 1]        all uni-, bi- and trimodal products
    F_M = ReLU(W vec(Z) + b),   y = MLP(F_M)

The paper's inference network has two hidden layers of 128: F_M and that of the shared head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from train.config import Config, read_options
from train.data import Batch
from train.method import Method, Outputs
from train.methods.lf_dnn import subnetwork
from train.model.frames import Frames, LastState
from train.model.layers import masked_mean, predictor
from train.model.text_features import text_source
from train.ranges import Positive
from train.task import Task


class TFN(Method):
    """Tensor Fusion Network."""

    @dataclass
    class Options:
        """TFN's own keys: the widths of the embeddings, with the paper's values."""

        text: Positive[int] = 128
        audio: Positive[int] = 32
        vision: Positive[int] = 32

    text_modules = ("embed.text.encoder",)

    def __init__(self, config: Config, task: Task, widths: Mapping[str, int]) -> None:
        super().__init__(config, task, widths)
        options = read_options(self.Options, config)
        sizes = (options.text, options.audio, options.vision)
        self.embed = Embeddings(config, widths, sizes)
        self.fuse = self.fusion(sizes, options, config.width)
        self.predict = predictor(config.width, task.outputs, config.dropout)

    def forward(self, batch: Batch) -> Outputs:
        """Predict, and return each modality's z_m."""
        features = self.embed(batch)
        features["M"] = self.fuse(list(features.values()))
        return Outputs({"M": self.predict(features["M"])}, features)

    def fusion(self, sizes: tuple[int, int, int], options: Any, width: int) -> nn.Module:
        """Build the module that fuses the three z_m of these sizes to F_M, ``[B, D]``."""
        return TensorFusion(sizes, width)


class TensorFusion(nn.Linear):
    """F_M from the outer product of the embeddings.

    Args:
        sizes: H_t, H_a, H_v.
        width: D.
    """

    def __init__(self, sizes: tuple[int, int, int], width: int) -> None:
        super().__init__((sizes[0] + 1) * (sizes[1] + 1) * (sizes[2] + 1), width)

    def forward(self, z: list[Tensor]) -> Tensor:  # type: ignore[override]  # three, not one
        """Compute F_M, ``[B, D]``."""
        return F.relu(super().forward(outer_product(*z).flatten(1)))


class Embeddings(nn.Module):
    """The sub-networks before the fusion: one vector per modality.

    Args:
        config: the text source and dropout.
        widths: columns of the features per modality.
        sizes: H_t, H_a, H_v.
    """

    def __init__(
        self, config: Config, widths: Mapping[str, int], sizes: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.text = text_source(config.text, widths)
        self.audio = Frames(widths["audio"], config)
        self.vision = Frames(widths["vision"], config)
        self.text_lstm = LastState(self.text.width, sizes[0])
        self.text_net = nn.Sequential(
            nn.Dropout(config.dropout), nn.Linear(sizes[0], sizes[0]), nn.ReLU()
        )
        self.audio_net = subnetwork(widths["audio"], sizes[1], config.dropout)
        self.vision_net = subnetwork(widths["vision"], sizes[2], config.dropout)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``{"t": [B, H_t], "a": [B, H_a], "v": [B, H_v]}``."""
        return {
            "t": self.text_net(self.text_lstm(*self.text(batch.text))),
            "a": self.audio_net(masked_mean(*self.audio(batch.audio))),
            "v": self.vision_net(masked_mean(*self.vision(batch.vision))),
        }


def with_one(z_BH: Tensor) -> Tensor:
    """Append 1, ``[B, H + 1]``, to keep the products of fewer modalities."""
    return F.pad(z_BH, (0, 1), value=1.0)


def outer_product(t_BH: Tensor, a_BI: Tensor, v_BJ: Tensor) -> Tensor:
    """Compute Z, ``[B, H + 1, I + 1, J + 1]``."""
    ta_BHI = with_one(t_BH)[:, :, None] * with_one(a_BI)[:, None, :]
    return ta_BHI[..., None] * with_one(v_BJ)[:, None, None, :]
