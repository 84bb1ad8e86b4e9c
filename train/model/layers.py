"""Layers that all methods share: prediction head, feed-forward network, masked means."""

from __future__ import annotations

from torch import Tensor, nn


def predictor(width: int, outputs: int, dropout: float) -> nn.Sequential:
    """Build the prediction head, ``[B, D]`` to raw outputs ``[B, C]``; equation (20)."""
    return nn.Sequential(
        nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, outputs)
    )


def feed_forward(width: int, ratio: int, dropout: float = 0.0) -> nn.Sequential:
    """Build the two-layer network of a Transformer layer, hidden width ``ratio * width``."""
    drop = [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(
        nn.Linear(width, ratio * width), nn.GELU(), *drop, nn.Linear(ratio * width, width)
    )


def masked_mean(x_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """Average over the real positions, ``[B, D]``."""
    return masked_means(x_BLD, mask_BL[:, None])[:, 0]


def masked_means(x_BLD: Tensor, mask_BML: Tensor) -> Tensor:
    """Average over the positions of each mask, at least one per mask, ``[B, M, D]``."""
    weight_BML = mask_BML / mask_BML.sum(2, keepdim=True)
    return weight_BML.to(x_BLD.dtype) @ x_BLD
