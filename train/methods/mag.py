"""MAG: the language model's hidden states, shifted by audio and vision.

Rahman, Hasan, Lee, Zadeh, Mao, Morency and Hoque, "Integrating Multimodal Information in Large
Pretrained Transformers" (ACL 2020). Letters: B batch, L tokens, d_m width of a modality. Per token
z (text), a and v (audio and vision of the same time), beta a constant:

    g_a = ReLU(W_ga [z; a] + b_a),   g_v = ReLU(W_gv [z; v] + b_v)
    h = g_a * (W_a a) + g_v * (W_v v) + b_h
    z' = LN(z + alpha h),   alpha = min( ||z|| / ||h|| beta, 1 )

The gate precedes a layer of the language model (``options.layer``, from 0; the authors use 0 for
BERT and 1 for XLNet), which reads the shifted states. If no language model is trained
(text.source=features, text.trainable=none) the gate shifts the final states. F_M is the mean over
the last states, and y = MLP(F_M).

The adapter: a token needs one frame per modality. Time is divided into one equal span per token,
and a token gets the mean frame of its span (`train.model.frames.align`); the paper uses word
times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.config import Config, read_options
from train.data import Batch
from train.method import Method, Outputs
from train.model.frames import Frames, align
from train.model.language_model import LanguageModel, Tokens, layers_of
from train.model.layers import masked_mean, predictor
from train.model.text_features import text_source
from train.ranges import Fraction, NotNegative
from train.task import Task


class MAG(Method):
    """A multimodal adaptation gate inside the language model."""

    @dataclass
    class Options:
        """MAG's own keys."""

        layer: NotNegative[int] = 0  # layer of the language model that the gate precedes
        beta: NotNegative[float] = 1.0
        dropout: Fraction[float] = 0.5  # after the gate

    def __init__(self, config: Config, task: Task, widths: Mapping[str, int]) -> None:
        super().__init__(config, task, widths)
        options = read_options(self.Options, config)
        self.text = text_source(config.text, widths)
        self.audio = Frames(widths["audio"], config)
        self.vision = Frames(widths["vision"], config)
        self.gate = AdaptationGate(
            self.text.width, widths["audio"], widths["vision"], options.beta, options.dropout
        )
        self.layer = options.layer
        self.inside = isinstance(self.text, LanguageModel) and not self.text.frozen
        if self.inside and self.layer not in range(len(layers_of(self._encoder))):
            last = len(layers_of(self._encoder)) - 1
            raise ValueError(
                f"options.layer={self.layer}: the language model has the layers 0 to {last}"
            )
        self.project = nn.Linear(self.text.width, config.width)
        self.predict = predictor(config.width, task.outputs, config.dropout)

    def forward(self, batch: Batch) -> Outputs:
        """Predict from the shifted states."""
        if isinstance(batch.text, Tokens) and self.inside:
            x_BLd, mask_BL = self._read_shifted(batch.text, batch)
        else:
            x_BLd, mask_BL = self.text(batch.text)
            x_BLd = self.gate(x_BLd, *self._align(mask_BL, batch))
        fused_BD = self.project(masked_mean(x_BLd, mask_BL))
        return Outputs({"M": self.predict(fused_BD)}, {"M": fused_BD})

    def _align(self, mask_BL: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Align audio and vision to the tokens, ``[B, L, d_a]`` and ``[B, L, d_v]``."""
        x_a, mask_a = self.audio(batch.audio)
        x_v, mask_v = self.vision(batch.vision)
        return align(x_a, mask_a, mask_BL), align(x_v, mask_v, mask_BL)

    def _read_shifted(self, tokens: Tokens, batch: Batch) -> tuple[Tensor, Tensor]:
        """Run the language model with the gate before one of its layers."""
        aligned = self._align(tokens.mask, batch)
        # The states are the first input of a layer in every architecture; XLNet's are [L, B, d].
        turned = self._encoder.config.model_type == "xlnet"

        def shift(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            x, *rest = inputs
            x_BLd = self.gate(x.transpose(0, 1) if turned else x, *aligned)
            return x_BLd.transpose(0, 1) if turned else x_BLd, *rest

        hook = layers_of(self._encoder)[self.layer].register_forward_pre_hook(shift)
        try:
            x_BLd, mask_BL = self.text(tokens)
        finally:
            hook.remove()
        return x_BLd, mask_BL

    @property
    def _encoder(self) -> Any:
        return self.text.encoder


class AdaptationGate(nn.Module):
    """The gate: z' of every token.

    Args:
        text: width of z.
        audio: width of a.
        vision: width of v.
        beta: largest length of the shift, in lengths of z.
        dropout: applied to z'.
    """

    def __init__(self, text: int, audio: int, vision: int, beta: float, dropout: float) -> None:
        super().__init__()
        self.beta = beta
        self.gate_audio = nn.Linear(text + audio, text)
        self.gate_vision = nn.Linear(text + vision, text)
        self.audio = nn.Linear(audio, text, bias=False)
        self.vision = nn.Linear(vision, text)  # its bias is b_h
        self.norm = nn.LayerNorm(text)
        self.dropout = nn.Dropout(dropout)

    def forward(self, z_BLd: Tensor, audio_BLd: Tensor, vision_BLd: Tensor) -> Tensor:
        """Compute LN(z + alpha h), ``[B, L, d_t]``; all inputs have one row per token."""
        return self.dropout(self.norm(z_BLd + self.shift(z_BLd, audio_BLd, vision_BLd)))

    def shift(self, z_BLd: Tensor, audio_BLd: Tensor, vision_BLd: Tensor) -> Tensor:
        """Compute alpha h, ``[B, L, d_t]``: never longer than beta z."""
        gate_a = F.relu(self.gate_audio(torch.cat([z_BLd, audio_BLd], -1)))
        gate_v = F.relu(self.gate_vision(torch.cat([z_BLd, vision_BLd], -1)))
        h_BLd = gate_a * self.audio(audio_BLd) + gate_v * self.vision(vision_BLd)
        length_z, length_h = (x.norm(dim=-1, keepdim=True) for x in (z_BLd, h_BLd))
        return h_BLd * (self.beta * length_z / length_h.clamp(min=1e-6)).clamp(max=1)
