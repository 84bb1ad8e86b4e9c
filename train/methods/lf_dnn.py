"""LF-DNN: late fusion of three deep networks.

Cambria, Hazarika, Poria, Howard and Subramanyam, "Benchmarking Multimodal Sentiment Analysis"
(CICLing 2017). Letters: B batch, T frames, H_m hidden width, D model width. Each modality has its
own network before the fusion:

    h_m = ReLU(W_3 ReLU(W_2 ReLU(W_1 mean_t x_m[t])))
    F_M = W [h_t, h_a, h_v],   y = MLP(F_M)

The mean over the real frames is one vector for any number of frames, so no adapter is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from train.config import Config, read_options
from train.data import Batch
from train.method import Method, Outputs
from train.model.frames import Frames
from train.model.layers import masked_mean, predictor
from train.model.text_features import text_source
from train.ranges import Positive
from train.task import Task


class LFDNN(Method):
    """Late-fusion DNN."""

    @dataclass
    class Options:
        """LF-DNN's own keys: the hidden widths."""

        text: Positive[int] = 128
        audio: Positive[int] = 32
        vision: Positive[int] = 32

    def __init__(self, config: Config, task: Task, widths: Mapping[str, int]) -> None:
        super().__init__(config, task, widths)
        options, dropout = read_options(self.Options, config), config.dropout
        self.text = text_source(config.text, widths)
        self.audio = Frames(widths["audio"], config)
        self.vision = Frames(widths["vision"], config)
        self.text_net = subnetwork(self.text.width, options.text, dropout)
        self.audio_net = subnetwork(widths["audio"], options.audio, dropout)
        self.vision_net = subnetwork(widths["vision"], options.vision, dropout)
        self.fuse = nn.Linear(options.text + options.audio + options.vision, config.width)
        self.predict = predictor(config.width, task.outputs, dropout)

    def forward(self, batch: Batch) -> Outputs:
        """Predict, and return each modality's h_m."""
        features = {
            "t": self.text_net(masked_mean(*self.text(batch.text))),
            "a": self.audio_net(masked_mean(*self.audio(batch.audio))),
            "v": self.vision_net(masked_mean(*self.vision(batch.vision))),
        }
        features["M"] = self.fuse(torch.cat(list(features.values()), 1))
        return Outputs({"M": self.predict(features["M"])}, features)


def subnetwork(width: int, hidden: int, dropout: float) -> nn.Sequential:
    """Build three hidden layers with ReLU, ``[B, width]`` to ``[B, hidden]``."""
    layers: list[nn.Module] = [nn.Dropout(dropout)]
    for inputs in (width, hidden, hidden):
        layers += [nn.Linear(inputs, hidden), nn.ReLU()]
    return nn.Sequential(*layers)
