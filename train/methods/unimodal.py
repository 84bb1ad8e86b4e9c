"""Unimodal baselines: text, audio or vision alone.

Letters: B batch, L tokens, N latent tokens, D model width, C outputs. Each reads its modality as
SemanticMAC does, equations (1) and (4), averages over the positions and predicts, (20):

    F_M = mean_l X_m[l],   y = MLP(F_M),   L = l(y, y_M)

Audio and vision alone build no language model.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from train.config import Config
from train.data import Batch
from train.method import Method, Outputs
from train.model.layers import masked_mean, predictor
from train.model.perceiver import AffectivePerceiver
from train.model.text_features import text_source
from train.task import Task


class TextAlone(Method):
    """Predicts from the language model or the store's text features."""

    def __init__(self, config: Config, task: Task, widths: Mapping[str, int]) -> None:
        super().__init__(config, task, widths)
        self.text = text_source(config.text, widths)
        self.project = nn.Linear(self.text.width, config.width)
        self.predict = predictor(config.width, task.outputs, config.dropout)

    def forward(self, batch: Batch) -> Outputs:
        """Predict from the mean over the tokens."""
        x_BLd, mask_BL = self.text(batch.text)
        fused_BD = self.project(masked_mean(x_BLd, mask_BL))
        return Outputs({"M": self.predict(fused_BD)}, {"M": fused_BD})


class FramesAlone(Method):
    """Predicts from one perceiver; sub-classes name the modality."""

    text_modules = ()
    modality: str

    def __init__(self, config: Config, task: Task, widths: Mapping[str, int]) -> None:
        super().__init__(config, task, widths)
        self.perceiver = AffectivePerceiver(
            widths[self.modality], config.width, config.dropout, config.perceiver
        )
        self.predict = predictor(config.width, task.outputs, config.dropout)

    def forward(self, batch: Batch) -> Outputs:
        """Predict from the mean over the latent tokens."""
        fused_BD = self.perceiver(getattr(batch, self.modality)).mean(1)
        return Outputs({"M": self.predict(fused_BD)}, {"M": fused_BD})


class AudioAlone(FramesAlone):
    """Predicts from audio."""

    modality = "audio"


class VisionAlone(FramesAlone):
    """Predicts from vision."""

    modality = "vision"
