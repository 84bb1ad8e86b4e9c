"""Precomputed text features in the place of the language model, and the choice between the two."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cache import Packed
from train.config import TextConfig
from train.model.language_model import LanguageModel


class TextFeatures(nn.Module):
    """The store's text features as they are; one embedding is learnt for where there are none.

    Args:
        width: columns of the cached features, ``d_t``.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.missing = nn.Parameter(0.02 * torch.randn(width))

    def forward(self, rows: Packed) -> tuple[Tensor, Tensor]:
        """``x_t [B, L, d_t]``, what equation (1) projects, and ``mask [B, L]``."""
        x_BLd, mask_BL = rows.padded()
        # An utterance without rows becomes one row that holds the "missing" embedding.
        absent_B1 = ~mask_BL.any(1, keepdim=True)
        mask_BL = torch.cat([mask_BL[:, :1] | absent_B1, mask_BL[:, 1:]], dim=1)
        return torch.where(
            absent_B1[..., None], self.missing, x_BLd.to(self.missing.dtype)
        ), mask_BL


def text_source(config: TextConfig, widths: Mapping[str, int]) -> LanguageModel | TextFeatures:
    """What the text branch starts from, by ``text.source``.

    Args:
        config: the language model and how much of it is trained.
        widths: columns of the cached features per modality.
    """
    if config.source == "features":
        return TextFeatures(widths["text"])
    assert config.model is not None, "the loop fills in the card's language model"
    return LanguageModel(config.model, config.trainable)
