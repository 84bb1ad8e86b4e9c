"""The Affective Perceiver: maps any number of frames to N tokens, equations (3) and (4).

Letters: B batch, T frames, R rows (all frames of a batch, packed), N latent tokens, D model width,
H heads, d = D / H.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cache import Packed
from train.config import PerceiverConfig
from train.model.frames import resample, row_layout, subsample
from train.model.layers import feed_forward


class AffectivePerceiver(nn.Module):
    """Learnable tokens that attend to the frames of one modality.

    Frames stay packed through every layer; only keys and values are padded.

    Args:
        frame_width: columns of the features.
        width: D.
        dropout: applied to the output of each sub-layer.
        config: keys of the perceiver.
    """

    def __init__(
        self, frame_width: int, width: int, dropout: float, config: PerceiverConfig
    ) -> None:
        super().__init__()
        self.frames, self.max_frames = config.frames, config.max_frames
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
        """Compute the tokens after the last layer, ``X_u [B, N, D]``."""
        frames = (
            resample(frames, self.frames) if self.frames else subsample(frames, self.max_frames)
        )
        device = self.project.weight.device
        layout = row_layout(frames.lengths)
        place_R, row_BT, mask_BT = (x.to(device, non_blocking=True) for x in layout)
        e_RD = self.project(frames.values.to(self.project.weight.dtype))
        if self.frame_embedding is not None:
            e_RD = e_RD + self.frame_embedding.index_select(0, place_R)  # (3)
        # One extra row, the "missing" embedding: the only frame of an absent modality.
        e_RD = torch.cat([e_RD, self.missing.to(e_RD.dtype)[None]])
        z_BND = self.tokens[None]  # the first layer's queries are identical for all utterances
        for layer in self.layers:
            z_BND = layer(z_BND, e_RD, row_BT, mask_BT)
        return z_BND


class PerceiverLayer(nn.Module):
    """One pre-norm layer of equation (4): cross-attention to the frames, then feed-forward.

    Normalisation and residual connections can be switched off for ablations.
    """

    def __init__(self, width: int, dropout: float, config: PerceiverConfig) -> None:
        super().__init__()
        norm = nn.LayerNorm if config.layer_norm else nn.Identity
        self.residual = config.residual
        self.norm_tokens, self.norm_frames, self.norm_ffn = norm(width), norm(width), norm(width)
        self.attention = CrossAttention(width, config.heads)
        self.ffn = feed_forward(width, config.ffn)
        self.dropout = nn.Dropout(dropout)

    def forward(self, z_BND: Tensor, e_RD: Tensor, row_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Compute the tokens after this layer, ``[B, N, D]``."""
        attended = self.attention(self.norm_tokens(z_BND), self.norm_frames(e_RD), row_BT, mask_BT)
        z_BND = self._add(z_BND, attended)
        return self._add(z_BND, self.ffn(self.norm_ffn(z_BND)))

    def _add(self, x: Tensor, change: Tensor) -> Tensor:
        change = self.dropout(change)
        return x + change if self.residual else change


class CrossAttention(nn.Module):
    """Multi-head attention to packed rows, which give both keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, q_BND: Tensor, kv_RD: Tensor, row_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Attend to the rows of each utterance, ``[B, N, D]``.

        Args:
            q_BND: queries; ``[1, N, D]`` if they are the same for all utterances.
            kv_RD: packed rows.
            row_BT: the rows of each utterance.
            mask_BT: False on rows to ignore.
        """
        q_BHNd = self.query(q_BND).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        kv_BTE = self.key_value(kv_RD).index_select(0, row_BT.flatten()).unflatten(0, row_BT.shape)
        k_BHTd, v_BHTd = kv_BTE.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        o_BHNd = F.scaled_dot_product_attention(
            q_BHNd.expand(len(row_BT), -1, -1, -1),
            k_BHTd,
            v_BHTd,
            attn_mask=mask_BT[:, None, None, :],
        )
        return self.out(o_BHNd.transpose(1, 2).flatten(2))
