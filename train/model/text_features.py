"""Text features of the store, and the choice between them and a language model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cache import Packed
from train.config import TextConfig
from train.model.language_model import LanguageModel


class TextFeatures(nn.Module):
    """Pads the store's text features; a learned embedding replaces missing ones.

    Args:
        width: columns of the features, ``d_t``.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.missing = nn.Parameter(0.02 * torch.randn(width))

    def forward(self, rows: Packed) -> tuple[Tensor, Tensor]:
        """Return ``x_t [B, L, d_t]``, the input of equation (1), and ``mask [B, L]``."""
        x_BLd, mask_BL = rows.padded()
        # An utterance without rows gets one row with the "missing" embedding.
        absent_B1 = ~mask_BL.any(1, keepdim=True)
        mask_BL = torch.cat([mask_BL[:, :1] | absent_B1, mask_BL[:, 1:]], dim=1)
        return torch.where(
            absent_B1[..., None], self.missing, x_BLd.to(self.missing.dtype)
        ), mask_BL


def text_source(config: TextConfig, widths: Mapping[str, int]) -> LanguageModel | TextFeatures:
    """Build the language model or `TextFeatures`, as ``text.source`` selects.

    Args:
        config: keys of the language model.
        widths: columns of the features per modality.
    """
    if config.source == "features":
        return TextFeatures(widths["text"])
    assert config.model is not None, "train.data.resolve sets the card's language model"
    return LanguageModel(config.model, config.trainable)
