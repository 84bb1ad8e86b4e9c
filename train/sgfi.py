"""Semantic-centric Gated Feature Interaction (SGFI), equations (5) to (11).

Letters: B batch, L query positions, S key positions, K bridge tokens, D model width, H heads,
d = D / H.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.config import SGFIConfig
from train.perceiver import feed_forward


class GatedInteraction(nn.Module):
    """A stack of Gated Bridge Attention layers: SGFI(X_q, X_kv) of equations (10) and (11).

    Every layer moves the query; key and value stay what they were at the input.
    """

    def __init__(self, width: int, dropout: float, config: SGFIConfig) -> None:
        super().__init__()
        self.bridge_tokens = config.bridge_tokens
        self.layers = nn.ModuleList(
            GatedBridgeAttention(width, dropout, config) for _ in range(config.layers)
        )

    def forward(self, x_BLD: Tensor, mask_BL: Tensor, kv_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        """The query after all layers, ``[B, L, D]``; padded positions hold no meaning."""
        pool_BKL = pooling_weights(mask_BL, self.bridge_tokens) if self.bridge_tokens else None
        for layer in self.layers:
            x_BLD = layer(x_BLD, kv_BSD, mask_BS, pool_BKL)
        return x_BLD


class GatedBridgeAttention(nn.Module):
    """One layer GBA(X_q, X_kv), equations (6) to (9).

    With ``multi_query`` all heads share one key and one value; without bridge tokens the query
    attends to the keys directly; ``gate`` says what the ReLU looks at.
    """

    def __init__(self, width: int, dropout: float, config: SGFIConfig) -> None:
        super().__init__()
        self.heads, self.p, self.gated = config.heads, dropout, config.gate
        shared = width // config.heads if config.multi_query else width
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * shared, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        if config.gate != "none":
            self.gate = nn.Linear(width, width, bias=config.gate == "query")
        if config.gate == "query":
            self.norm_gate = nn.LayerNorm(width)
        self.norm_ffn = nn.LayerNorm(width)
        self.ffn = feed_forward(width, config.ffn, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x_BLD: Tensor, kv_BSD: Tensor, mask_BS: Tensor, pool_BKL: Tensor | None
    ) -> Tensor:
        """The query after this layer, ``[B, L, D]``.

        Args:
            x_BLD: the query modality.
            kv_BSD: what it looks at.
            mask_BS: True on real positions of it.
            pool_BKL: weights that pool the query to bridge tokens, or None for plain attention.
        """
        q_BLD = self.query(x_BLD)  # (6): all heads of Q_h side by side
        k_BhSd, v_BhSd = (_cut(x, q_BLD, self.heads) for x in self.key_value(kv_BSD).chunk(2, -1))
        q_BHLd = q_BLD.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        if pool_BKL is None:
            o_BHLd = self._attend(q_BHLd, k_BhSd, v_BhSd, mask_BS)
        else:
            bridge_BKD = pool_BKL.to(q_BLD.dtype) @ q_BLD  # (7)
            bridge_BHKd = bridge_BKD.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            # (8), from the right: the bridge gathers from the keys, the query from the bridge.
            gathered_BHKd = self._attend(bridge_BHKd, k_BhSd, v_BhSd, mask_BS)
            o_BHLd = F.scaled_dot_product_attention(
                q_BHLd, bridge_BHKd, gathered_BHKd, dropout_p=self.p if self.training else 0.0
            )
        o_BLD = self.out(o_BHLd.transpose(1, 2).flatten(2))
        x_BLD = x_BLD + self.dropout(self._gate(x_BLD, o_BLD))  # (9)
        return x_BLD + self.dropout(self.ffn(self.norm_ffn(x_BLD)))

    def _gate(self, x_BLD: Tensor, o_BLD: Tensor) -> Tensor:
        if self.gated == "query":
            return F.relu(self.gate(self.norm_gate(x_BLD))) * o_BLD
        return F.relu(self.gate(o_BLD)) if self.gated == "output" else o_BLD

    def _attend(self, q_BHLd: Tensor, k_BhSd: Tensor, v_BhSd: Tensor, mask_BS: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(d)) v over the real keys, ``[B, H, L, d]``."""
        heads, length = q_BHLd.shape[1:3]
        if k_BhSd.shape[1] == 1:
            # Under one shared key the heads are just more queries: no copy of the key per head.
            q_BHLd = q_BHLd.flatten(1, 2)[:, None]
        o = F.scaled_dot_product_attention(
            q_BHLd,
            k_BhSd,
            v_BhSd,
            attn_mask=mask_BS[:, None, None, :],
            dropout_p=self.p if self.training else 0.0,
        )
        return o.reshape(len(o), heads, length, -1)


def _cut(x_BSE: Tensor, q_BLD: Tensor, heads: int) -> Tensor:
    """Key or value as heads: ``[B, 1, S, d]`` where it is shared, else ``[B, H, S, d]``."""
    count = x_BSE.shape[-1] * heads // q_BLD.shape[-1]
    return x_BSE.unflatten(-1, (count, -1)).transpose(1, 2)


def pooling_weights(mask_BL: Tensor, bridge_tokens: int) -> Tensor:
    """Adaptive average pooling over the real positions, as weights ``[B, K, L]``; equation (7).

    Of n real positions, bridge token k averages those from floor(k n / K) to ceil((k+1) n / K).
    Padding on either side takes no part. Every sample needs at least one real position.
    """
    n_B11 = mask_BL.sum(1)[:, None, None]
    rank_B1L = (mask_BL.cumsum(1) - 1)[:, None, :]
    k_K1 = torch.arange(bridge_tokens, device=mask_BL.device)[:, None]
    first_BK1 = k_K1 * n_B11 // bridge_tokens
    stop_BK1 = -(-(k_K1 + 1) * n_B11 // bridge_tokens)
    inside_BKL = (rank_B1L >= first_BK1) & (rank_B1L < stop_BK1) & mask_BL[:, None, :]
    return inside_BKL / inside_BKL.sum(2, keepdim=True)


def masked_mean(x_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """The mean over the real positions, ``[B, D]``."""
    weight_BL = mask_BL / mask_BL.sum(1, keepdim=True)
    return (weight_BL.to(x_BLD.dtype)[:, None, :] @ x_BLD)[:, 0]
