"""MulT: the Multimodal Transformer for unaligned sequences.

Tsai, Bai, Liang, Kolter, Morency and Salakhutdinov, "Multimodal Transformer for Unaligned
Multimodal Language Sequences" (ACL 2019). Letters: B batch, L_m positions of modality m, d model
width of the Transformers, D model width of the head.

    x_m = Conv1D(X_m) + PE                                                   [B, L_m, d]
    beta -> alpha, layer i, from Z^0 = x_alpha:
        Z' = CM(LN(Z), LN(x_beta)) + LN(Z),   Z = FFN(LN(Z')) + LN(Z')
    CM(q, k) = softmax(q W_Q (k W_K)' / sqrt(d_k)) k W_V
    Z_m = SelfTransformer([Z_{beta -> m}, Z_{gamma -> m}])                   [B, L_m, 2 d]
    F_M = W [last real position of Z_t, Z_a, Z_v],   y = MLP(F_M)

No adapter: a position of one modality attends to all real positions of another. Padding is masked
in attention, and is zero before the convolution. The authors' code masks future positions of the
other modality; the paper does not, and this implementation follows the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train.config import Config, read_options
from train.data import Batch
from train.method import MODALITY_KEYS, Method, Outputs
from train.model.frames import Frames
from train.model.layers import feed_forward, predictor
from train.model.text_features import text_source
from train.ranges import Positive
from train.task import Task


class MulT(Method):
    """Six crossmodal Transformers and three over their results."""

    @dataclass
    class Options:
        """MulT's own keys, with the paper's values for CMU-MOSI."""

        width: Positive[int] = 40  # d
        heads: Positive[int] = 10
        layers: Positive[int] = 4  # of a crossmodal Transformer
        self_layers: Positive[int] = 3  # of the Transformers after them
        kernel_text: Positive[int] = 1  # positions of the convolution; odd
        kernel_audio: Positive[int] = 3
        kernel_vision: Positive[int] = 3

    def __init__(self, config: Config, task: Task, widths: Mapping[str, int]) -> None:
        super().__init__(config, task, widths)
        options, dropout = read_options(self.Options, config), config.dropout
        d, heads = options.width, options.heads
        kernels = (options.kernel_text, options.kernel_audio, options.kernel_vision)
        if d % (2 * heads):
            raise ValueError(f"options.width={d} must be a multiple of 2 options.heads={2 * heads}")
        if any(kernel % 2 == 0 for kernel in kernels):
            raise ValueError(f"options.kernel_* are {kernels}: they must be odd")
        self.text = text_source(config.text, widths)
        self.audio = Frames(widths["audio"], config)
        self.vision = Frames(widths["vision"], config)
        sizes = (self.text.width, widths["audio"], widths["vision"])
        self.project = nn.ModuleDict(
            {
                m: nn.Conv1d(size, d, kernel, padding=kernel // 2, bias=False)
                for m, size, kernel in zip(MODALITY_KEYS, sizes, kernels, strict=True)
            }
        )
        self.cross = nn.ModuleDict(
            {
                f"{source}{target}": Transformer(d, heads, options.layers, dropout)
                for target in MODALITY_KEYS
                for source in MODALITY_KEYS
                if source != target
            }
        )
        self.own = nn.ModuleDict(
            {m: Transformer(2 * d, heads, options.self_layers, dropout) for m in MODALITY_KEYS}
        )
        self.fuse = nn.Linear(6 * d, config.width)
        self.predict = predictor(config.width, task.outputs, dropout)

    def forward(self, batch: Batch) -> Outputs:
        """Predict, and return each modality's last position."""
        read = self.text(batch.text), self.audio(batch.audio), self.vision(batch.vision)
        x, mask = {}, {}
        for m, (x_BLd, mask_BL) in zip(MODALITY_KEYS, read, strict=True):
            real_BdL = (x_BLd * mask_BL[..., None]).transpose(1, 2)
            x_BLd = self.project[m](real_BdL).transpose(1, 2)
            x[m], mask[m] = x_BLd + positions(mask_BL, x_BLd.shape[2]), mask_BL
        features = {}
        for m in MODALITY_KEYS:
            others = [s for s in MODALITY_KEYS if s != m]
            attended = [self.cross[f"{s}{m}"](x[m], x[s], mask[s]) for s in others]
            z_BLd = self.own[m](torch.cat(attended, 2), None, mask[m])
            features[m] = last(z_BLd, mask[m])
        features["M"] = self.fuse(torch.cat(list(features.values()), 1))
        return Outputs({"M": self.predict(features["M"])}, features)


class Transformer(nn.Module):
    """A stack of layers: crossmodal attention to a source, or self-attention without one."""

    def __init__(self, width: int, heads: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(width, heads, dropout) for _ in range(layers))

    def forward(self, z_BLd: Tensor, source_BSd: Tensor | None, mask_BS: Tensor) -> Tensor:
        """Compute Z after all layers, ``[B, L, d]``; ``mask_BS``: real source positions."""
        for layer in self.layers:
            z_BLd = layer(z_BLd, z_BLd if source_BSd is None else source_BSd, mask_BS)
        return z_BLd


class Layer(nn.Module):
    """One Transformer layer: Z' and Z."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm_query, self.norm_source, self.norm_ffn = (nn.LayerNorm(width) for _ in range(3))
        self.attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.ffn = feed_forward(width, 4, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, z_BLd: Tensor, source_BSd: Tensor, mask_BS: Tensor) -> Tensor:
        """Compute Z after this layer, ``[B, L, d]``."""
        z_BLd = self.norm_query(z_BLd)
        source_BSd = self.norm_source(source_BSd)
        attended_BLd, _ = self.attention(
            z_BLd, source_BSd, source_BSd, key_padding_mask=~mask_BS, need_weights=False
        )
        z_BLd = self.norm_ffn(z_BLd + self.dropout(attended_BLd))
        return z_BLd + self.dropout(self.ffn(z_BLd))


def positions(mask_BL: Tensor, width: int) -> Tensor:
    """Compute PE, ``[B, L, d]``: sines and cosines of the index among real positions."""
    place_BL1 = (mask_BL.cumsum(1) - 1).clamp(min=0)[..., None]
    rate_d = 10000.0 ** (-torch.arange(0, width, 2, device=mask_BL.device) / width)
    angle_BLd = place_BL1 * rate_d
    return torch.cat([angle_BLd.sin(), angle_BLd.cos()], 2)


def last(z_BLd: Tensor, mask_BL: Tensor) -> Tensor:
    """Select the last real position, ``[B, d]``."""
    place_L = torch.arange(mask_BL.shape[1], device=mask_BL.device)
    last_B = (place_L * mask_BL).argmax(1)
    return z_BLd[torch.arange(len(z_BLd), device=z_BLd.device), last_B]
