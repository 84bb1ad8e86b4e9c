"""The Affective Perceiver: any number of frames to N tokens of width D, equations (3) and (4).

Letters: B batch, T frames, R rows (all frames of a batch, packed), N latent tokens, D model width,
H heads, d = D / H.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cache import Packed
from train.config import PerceiverConfig


class AffectivePerceiver(nn.Module):
    """Learnable tokens that gather what is affective in the frames of one modality.

    Frames stay packed through every layer; only keys and values are laid out by utterance.

    Args:
        frame_width: columns of the cached embeddings.
        width: D.
        dropout: applied to what each sub-layer adds.
        config: sizes and switches.
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
        """The tokens after the last layer, ``X_u [B, N, D]``."""
        frames = resampled(frames, self.frames) if self.frames else thinned(frames, self.max_frames)
        device = self.project.weight.device
        layout = _layout(frames.lengths)
        place_R, row_BT, mask_BT = (x.to(device, non_blocking=True) for x in layout)
        e_RD = self.project(frames.values.to(self.project.weight.dtype))
        if self.frame_embedding is not None:
            e_RD = e_RD + self.frame_embedding.index_select(0, place_R)  # (3)
        # One row more, the "missing" embedding: the one frame of an absent modality.
        e_RD = torch.cat([e_RD, self.missing.to(e_RD.dtype)[None]])
        z_BND = self.tokens[None]  # in the first layer all utterances ask the same
        for layer in self.layers:
            z_BND = layer(z_BND, e_RD, row_BT, mask_BT)
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
        self.attention = CrossAttention(width, config.heads)
        self.ffn = feed_forward(width, config.ffn)
        self.dropout = nn.Dropout(dropout)

    def forward(self, z_BND: Tensor, e_RD: Tensor, row_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """The tokens after this layer, ``[B, N, D]``."""
        heard = self.attention(self.norm_tokens(z_BND), self.norm_frames(e_RD), row_BT, mask_BT)
        z_BND = self._add(z_BND, heard)
        return self._add(z_BND, self.ffn(self.norm_ffn(z_BND)))

    def _add(self, x: Tensor, change: Tensor) -> Tensor:
        change = self.dropout(change)
        return x + change if self.residual else change


class CrossAttention(nn.Module):
    """Multi-head attention of queries to packed keys that are their own values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, q_BND: Tensor, kv_RD: Tensor, row_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """``[B, N, D]``.

        Args:
            q_BND: queries; ``[1, N, D]`` where they are the same for all utterances.
            kv_RD: rows that are looked at.
            row_BT: which of them are an utterance's keys.
            mask_BT: keys where it is False are not looked at.
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


def feed_forward(width: int, ratio: int, dropout: float = 0.0) -> nn.Sequential:
    """The two-layer network of a Transformer layer, hidden width ``ratio * width``."""
    drop = [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(
        nn.Linear(width, ratio * width), nn.GELU(), *drop, nn.Linear(ratio * width, width)
    )


def thinned(frames: Packed, most: int) -> Packed:
    """At most ``most`` frames of each utterance, evenly spread over its length.

    Frame ``i`` of a longer utterance of n frames is its frame ``floor(i n / most)``; a shorter one
    keeps all its frames.
    """
    if not len(frames.lengths) or int(frames.lengths.max()) <= most:
        return frames
    return _chosen(frames, frames.lengths.clamp(max=most))


def resampled(frames: Packed, count: int) -> Packed:
    """Exactly ``count`` frames of each utterance, evenly spread; an absent one stays absent.

    Frame ``i`` is frame ``floor(i n / count)`` of an utterance's n: some are left out, or repeated.
    """
    return _chosen(frames, torch.where(frames.lengths > 0, count, 0))


def _chosen(frames: Packed, count_B: Tensor) -> Packed:
    """``count_B`` frames of each utterance, evenly spread over its length."""
    i_R = _places(count_B)
    start_B = frames.lengths.cumsum(0) - frames.lengths
    start_R, length_R, count_R = (
        x_B.repeat_interleave(count_B) for x_B in (start_B, frames.lengths, count_B)
    )
    row_R = start_R + i_R * length_R // count_R
    return Packed(frames.values.index_select(0, row_R.to(frames.values.device)), count_B)


def _places(length_B: Tensor) -> Tensor:
    """The place of each row within its utterance, ``[R]``."""
    end_B = length_B.cumsum(0)
    return torch.arange(int(end_B[-1])) - (end_B - length_B).repeat_interleave(length_B)


def _layout(length_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where packed rows lie, worked out on the CPU, where the lengths are known.

    Returns:
        ``[R]`` each row's place in its utterance; ``[B, T]`` the row of each place, R where there
        is none; ``[B, T]`` True on places to look at: the real ones, and the first one of an
        utterance that has none.
    """
    place_T = torch.arange(max(1, int(length_B.max())))
    real_BT = place_T < length_B[:, None]
    start_B1 = (length_B.cumsum(0) - length_B)[:, None]
    row_BT = torch.where(real_BT, start_B1 + place_T, length_B.sum())
    return _places(length_B), row_BT, real_BT | (place_T == 0)
