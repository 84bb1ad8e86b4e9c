"""The head that every method answers with."""

from __future__ import annotations

from torch import Tensor, nn


def predictor(width: int, outputs: int, dropout: float) -> nn.Sequential:
    """One hidden layer with ReLU: ``[B, D]`` to raw outputs ``[B, C]``; equation (20)."""
    return nn.Sequential(
        nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, outputs)
    )


def feed_forward(width: int, ratio: int, dropout: float = 0.0) -> nn.Sequential:
    """The two-layer network of a Transformer layer, hidden width ``ratio * width``."""
    drop = [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(
        nn.Linear(width, ratio * width), nn.GELU(), *drop, nn.Linear(ratio * width, width)
    )


def masked_mean(x_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """The mean over the real positions, ``[B, D]``."""
    return masked_means(x_BLD, mask_BL[:, None])[:, 0]


def masked_means(x_BLD: Tensor, mask_BML: Tensor) -> Tensor:
    """One mean per mask, ``[B, M, D]``: over the positions where it is True, at least one each."""
    weight_BML = mask_BML / mask_BML.sum(2, keepdim=True)
    return weight_BML.to(x_BLD.dtype) @ x_BLD
