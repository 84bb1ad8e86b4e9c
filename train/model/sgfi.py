"""Semantic-centric Gated Feature Interaction (SGFI), equations (5) to (11).

The modalities of an utterance are concatenated to one sequence and share their weights, so every
layer is computed once for all of them; `AttentionMasks` separates them.

Letters: B batch, L query positions, S key positions, M modalities of the query, K bridge tokens of
all of them, D model width, H heads, d = D / H.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.config import SGFIConfig
from train.model.layers import feed_forward


class AttentionMasks(NamedTuple):
    """The attention masks of one stack of Gated Bridge Attention.

    Attributes:
        pool: ``[B, K, L]`` weights that pool each modality's query to its bridge tokens, equation
            (7); None without bridge tokens.
        bridge: ``[L, K]``, True where a query position may attend to a bridge token (those of its
            own modality); None without bridge tokens, or with a single modality.
        key: ``[B, 1, K, S]``, True where a bridge token may attend to a key, one mask for all
            heads; without bridge tokens ``[B, 1, L, S]`` for query positions.
    """

    pool: Tensor | None
    bridge: Tensor | None
    key: Tensor

    @classmethod
    def build(
        cls, lengths: Sequence[int], mask_BL: Tensor, key_BMS: Tensor, bridge_tokens: int
    ) -> AttentionMasks:
        """Build the masks of one stack.

        Args:
            lengths: query positions of each modality, padding included.
            mask_BL: False on padded query positions; at least one real position per modality.
            key_BMS: True on the keys that each modality attends to; at least one per modality.
            bridge_tokens: per modality; 0: none.
        """
        part_ML = segment_masks(lengths, mask_BL.device)
        if not bridge_tokens:
            return cls(None, None, key_BMS.index_select(1, part_ML.int().argmax(0))[:, None])
        own_BML = mask_BL[:, None] & part_ML
        pool_BKL = pooling_weights(own_BML.flatten(0, 1), bridge_tokens)
        bridge_LK = part_ML.T.repeat_interleave(bridge_tokens, 1) if len(lengths) > 1 else None
        return cls(
            pool_BKL.view(len(mask_BL), -1, mask_BL.shape[1]),
            bridge_LK,
            key_BMS.repeat_interleave(bridge_tokens, 1)[:, None],
        )


def segment_masks(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Return ``[M, L]``, True on the positions of each of the concatenated sequences."""
    ones = (torch.ones(1, n, dtype=torch.bool, device=device) for n in lengths)
    return torch.block_diag(*ones)


class GatedInteraction(nn.Module):
    """A stack of Gated Bridge Attention layers: SGFI(X_q, X_kv) of equations (10) and (11).

    Every layer updates the query; keys and values are those of the input.
    """

    def __init__(self, width: int, dropout: float, config: SGFIConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            GatedBridgeAttention(width, dropout, config) for _ in range(config.layers)
        )

    def forward(self, x_BLD: Tensor, kv_BSD: Tensor, masks: AttentionMasks) -> Tensor:
        """Compute the query after all layers, ``[B, L, D]``; padded positions are undefined."""
        for layer in self.layers:
            x_BLD = layer(x_BLD, kv_BSD, masks)
        return x_BLD


class GatedBridgeAttention(nn.Module):
    """One layer GBA(X_q, X_kv), equations (6) to (9).

    With ``multi_query`` all heads share one key and one value; without bridge tokens the query
    attends to the keys directly; ``gate`` selects the input of the ReLU gate.
    """

    def __init__(self, width: int, dropout: float, config: SGFIConfig) -> None:
        super().__init__()
        self.heads, self.gated = config.heads, config.gate
        shared = width // config.heads if config.multi_query else width
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * shared, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        if config.gate != "none":
            self.gate = nn.Linear(width, width, bias=config.gate == "query")
        if config.gate == "query":
            self.norm_gate = nn.LayerNorm(width)
        self.norm_ffn = nn.LayerNorm(width)
        self.ffn = feed_forward(width, config.ffn)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BLD: Tensor, kv_BSD: Tensor, masks: AttentionMasks) -> Tensor:
        """Compute the query after this layer, ``[B, L, D]``."""
        q_BLD = self.query(x_BLD)  # (6): all heads Q_h concatenated
        k_BSe, v_BSe = self.key_value(kv_BSD).chunk(2, -1)  # e = d where shared, else D
        if masks.pool is None:
            o_BLD = self._attend(q_BLD, k_BSe, v_BSe, masks.key)
        else:
            bridge_BKD = masks.pool.to(q_BLD.dtype) @ q_BLD  # (7)
            # (8), from the right: the bridge attends to the keys, then the query to the bridge.
            gathered_BKD = self._attend(bridge_BKD, k_BSe, v_BSe, masks.key)
            o_BLD = self._attend(q_BLD, bridge_BKD, gathered_BKD, masks.bridge)
        x_BLD = x_BLD + self.dropout(self._gate(x_BLD, self.out(o_BLD)))  # (9)
        return x_BLD + self.dropout(self.ffn(self.norm_ffn(x_BLD)))

    def _gate(self, x_BLD: Tensor, o_BLD: Tensor) -> Tensor:
        if self.gated == "query":
            return F.relu(self.gate(self.norm_gate(x_BLD))) * o_BLD
        return F.relu(self.gate(o_BLD)) if self.gated == "output" else o_BLD

    def _attend(self, q_BLD: Tensor, k_BSe: Tensor, v_BSe: Tensor, mask: Tensor | None) -> Tensor:
        """Compute concat_h(softmax(q_h k_h^T / sqrt(d)) v_h), ``[B, L, D]``."""
        o_BHLd = F.scaled_dot_product_attention(
            self._heads(q_BLD), self._heads(k_BSe), self._heads(v_BSe), attn_mask=mask
        )
        return o_BHLd.transpose(1, 2).flatten(2)

    def _heads(self, x_BLe: Tensor) -> Tensor:
        """Split heads, ``[B, H, L, d]``; a shared key or value is expanded, not copied."""
        d = self.query.in_features // self.heads
        return x_BLe.unflatten(-1, (-1, d)).transpose(1, 2).expand(-1, self.heads, -1, -1)


def pooling_weights(mask_BL: Tensor, bridge_tokens: int) -> Tensor:
    """Compute adaptive average pooling over real positions as weights ``[B, K, L]``; equation (7).

    Of n real positions, bridge token k averages those from floor(k n / K) to ceil((k+1) n / K).
    Padding on either side is ignored. Every row needs at least one real position.
    """
    n_B11 = mask_BL.sum(1)[:, None, None]
    rank_B1L = (mask_BL.cumsum(1) - 1)[:, None, :]
    k_K1 = torch.arange(bridge_tokens, device=mask_BL.device)[:, None]
    first_BK1 = k_K1 * n_B11 // bridge_tokens
    stop_BK1 = -(-(k_K1 + 1) * n_B11 // bridge_tokens)
    inside_BKL = (rank_B1L >= first_BK1) & (rank_B1L < stop_BK1) & mask_BL[:, None, :]
    return inside_BKL / inside_BKL.sum(2, keepdim=True)
