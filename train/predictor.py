"""The head that every method answers with."""

from __future__ import annotations

from torch import nn


def predictor(width: int, outputs: int, dropout: float) -> nn.Sequential:
    """One hidden layer with ReLU: ``[B, D]`` to raw outputs ``[B, C]``; equation (20)."""
    return nn.Sequential(
        nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, outputs)
    )
