"""The Affective Perceiver: any number of frames to N tokens of width D, equations (3) and (4).

Letters: B batch, T frames, N latent tokens, D model width, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cache import Packed
from train.config import PerceiverConfig


class AffectivePerceiver(nn.Module):
    """Learnable tokens that gather what is affective in the frames of one modality.

    Args:
        frame_width: columns of the cached embeddings.
        width: D.
        dropout: applied to attention weights and to what each sub-layer adds.
        config: sizes and switches.
    """

    def __init__(
        self, frame_width: int, width: int, dropout: float, config: PerceiverConfig
    ) -> None:
        super().__init__()
        self.max_frames = config.max_frames
        self.project = nn.Linear(frame_width, width)
        self.frame_embedding = (
            nn.Parameter(0.02 * torch.randn(config.max_frames, width))
            if config.frame_embedding
            else None
        )
        self.missing = nn.Parameter(0.02 * torch.randn(width), config.missing == "learned")
        if config.missing == "zero":
            nn.init.zeros_(self.missing)
        self.tokens = nn.Parameter(0.02 * torch.randn(config.tokens, width))
        self.layers = nn.ModuleList(
            PerceiverLayer(width, dropout, config) for _ in range(config.layers)
        )

    def forward(self, frames: Packed) -> Tensor:
        """The tokens after the last layer, ``X_u [B, N, D]``."""
        e_BTD, mask_BT = frames.padded()
        if e_BTD.shape[1] > self.max_frames:
            e_BTD, mask_BT = subsample_evenly(e_BTD, mask_BT, self.max_frames)
        e_BTD = self.project(e_BTD.to(self.project.weight.dtype))
        if self.frame_embedding is not None:
            e_BTD = e_BTD + self.frame_embedding[: e_BTD.shape[1]]  # (3)
        # An absent modality becomes one frame that holds the "missing" embedding.
        absent_B1 = ~mask_BT.any(1, keepdim=True)
        mask_BT = torch.cat([mask_BT[:, :1] | absent_B1, mask_BT[:, 1:]], dim=1)
        e_BTD = torch.where(absent_B1[..., None], self.missing.to(e_BTD.dtype), e_BTD)
        z_BND = self.tokens.expand(len(e_BTD), -1, -1)
        for layer in self.layers:
            z_BND = layer(z_BND, e_BTD, mask_BT)
        return z_BND


class PerceiverLayer(nn.Module):
    """One pre-norm layer of equation (4): the tokens look at the frames, then at themselves.

    The parts that an ablation removes (normalisation, residual) are switches of the configuration.
    """

    def __init__(self, width: int, dropout: float, config: PerceiverConfig) -> None:
        super().__init__()
        norm = nn.LayerNorm if config.layer_norm else nn.Identity
        self.residual = config.residual
        self.norm_tokens, self.norm_frames, self.norm_ffn = norm(width), norm(width), norm(width)
        self.attention = CrossAttention(width, config.heads, dropout)
        self.ffn = feed_forward(width, config.ffn, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, z_BND: Tensor, e_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """The tokens after this layer, ``[B, N, D]``."""
        heard = self.attention(self.norm_tokens(z_BND), self.norm_frames(e_BTD), mask_BT)
        z_BND = self._add(z_BND, heard)
        return self._add(z_BND, self.ffn(self.norm_ffn(z_BND)))

    def _add(self, x: Tensor, change: Tensor) -> Tensor:
        change = self.dropout(change)
        return x + change if self.residual else change


class CrossAttention(nn.Module):
    """Multi-head attention of queries to keys that are their own values."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.p = heads, dropout
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, q_BND: Tensor, kv_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """``[B, N, D]``; keys where ``mask_BT`` is False are not looked at."""
        q_BHNd = self._cut(self.query(q_BND))
        k_BHTd, v_BHTd = (self._cut(x) for x in self.key_value(kv_BTD).chunk(2, dim=-1))
        o_BHNd = F.scaled_dot_product_attention(
            q_BHNd,
            k_BHTd,
            v_BHTd,
            attn_mask=mask_BT[:, None, None, :],
            dropout_p=self.p if self.training else 0.0,
        )
        return self.out(o_BHNd.transpose(1, 2).flatten(2))

    def _cut(self, x_BLD: Tensor) -> Tensor:
        return x_BLD.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def feed_forward(width: int, ratio: int, dropout: float) -> nn.Sequential:
    """The two-layer network of a Transformer layer, hidden width ``ratio * width``."""
    return nn.Sequential(
        nn.Linear(width, ratio * width),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(ratio * width, width),
    )


def subsample_evenly(x_BTD: Tensor, mask_BT: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """At most ``frames`` frames of each utterance, evenly spread over its length.

    Frame ``i`` of a longer utterance of length n is its frame ``floor(i * n / frames)``; a shorter
    one keeps all its frames. Returns ``x [B, frames, D]`` and its mask.
    """
    length_B1 = mask_BT.sum(1, keepdim=True)
    i_T = torch.arange(frames, device=x_BTD.device)
    source_BT = torch.where(length_B1 > frames, i_T * length_B1 // frames, i_T)
    kept_BTD = x_BTD.gather(1, source_BT[..., None].expand(-1, -1, x_BTD.shape[2]))
    return kept_BTD, i_T < length_B1
