"""EF-LSTM: early fusion, one LSTM over the concatenated modalities.

Williams, Kleinegesse, Comanescu and Radu, "Recognizing Emotions in Video Using Multimodal DNN
Feature Fusion" (Challenge-HML at ACL 2018). Letters: B batch, K steps, H hidden width, D model
width.

    x[k] = [x_t[k], x_a[k], x_v[k]],   (h, c)[k] = LSTM(x[k], (h, c)[k-1])
    F_M = W h[K],   y = MLP(F_M)

The adapter: modalities must share one time axis, so each is resampled to K steps of equal length
(`train.model.frames.pool_to_length`); frames are not aligned to words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from train.config import Config, read_options
from train.data import Batch
from train.method import Method, Outputs
from train.model.frames import Frames, pool_to_length
from train.model.layers import predictor
from train.model.text_features import text_source
from train.ranges import Positive
from train.task import Task


class EFLSTM(Method):
    """Early-fusion LSTM."""

    @dataclass
    class Options:
        """EF-LSTM's own keys."""

        steps: Positive[int] = 20  # K
        hidden: Positive[int] = 128  # H
        layers: Positive[int] = 1

    def __init__(self, config: Config, task: Task, widths: Mapping[str, int]) -> None:
        super().__init__(config, task, widths)
        self.options = read_options(self.Options, config)
        self.text = text_source(config.text, widths)
        self.audio = Frames(widths["audio"], config)
        self.vision = Frames(widths["vision"], config)
        self.dropout = nn.Dropout(config.dropout)
        self.lstm = nn.LSTM(
            self.text.width + widths["audio"] + widths["vision"],
            self.options.hidden,
            self.options.layers,
            batch_first=True,
        )
        self.fuse = nn.Linear(self.options.hidden, config.width)
        self.predict = predictor(config.width, task.outputs, config.dropout)

    def forward(self, batch: Batch) -> Outputs:
        """Predict from the last state."""
        read = self.text(batch.text), self.audio(batch.audio), self.vision(batch.vision)
        x_BKd = torch.cat([pool_to_length(x, mask, self.options.steps) for x, mask in read], 2)
        state_BKH, _ = self.lstm(self.dropout(x_BKd))
        fused_BD = self.fuse(state_BKH[:, -1])
        return Outputs({"M": self.predict(fused_BD)}, {"M": fused_BD})
