"""LMF: Low-rank Multimodal Fusion.

Liu, Shen, Lakshminarasimhan, Liang, Zadeh and Morency, "Efficient Low-rank Multimodal Fusion With
Modality-Specific Factors" (ACL 2018). Letters: B batch, R rank, H_m width of a modality's
embedding, D model width. TFN's weight tensor W [H_t+1, H_a+1, H_v+1, D] is a sum of R products of
factors w_m^(i) [H_m+1, D], so that the outer product is never computed:

    h = W . ([z_t; 1] (x) [z_a; 1] (x) [z_v; 1]) = sum_i prod_m ( w_m^(i) . [z_m; 1] )
    F_M = h + b,   y = MLP(F_M)

The embeddings z_m are TFN's, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from train.methods.tfn import TFN, with_one
from train.ranges import Positive


class LMF(TFN):
    """Low-rank Multimodal Fusion: TFN with another fusion."""

    @dataclass
    class Options(TFN.Options):
        """LMF's own keys: the rank, and TFN's."""

        rank: Positive[int] = 4  # R

    def fusion(self, sizes: tuple[int, int, int], options: Any, width: int) -> nn.Module:
        """Build the low-rank fusion."""
        return LowRankFusion(sizes, options.rank, width)


class LowRankFusion(nn.Module):
    """Low-rank fusion: sum_i prod_m (w_m^(i) . [z_m; 1]) + b.

    Args:
        sizes: H_m of each modality.
        rank: R.
        width: D.
    """

    def __init__(self, sizes: tuple[int, ...], rank: int, width: int) -> None:
        super().__init__()
        self.factors = nn.ParameterList(torch.empty(rank, size + 1, width) for size in sizes)
        self.bias = nn.Parameter(torch.zeros(width))
        for factor in self.factors:
            nn.init.normal_(factor, std=factor.shape[1] ** -0.5)

    def forward(self, z: list[Tensor]) -> Tensor:
        """Compute the sum over the rank, ``[B, D]``."""
        product_RBD = torch.ones((), device=z[0].device)
        for z_BH, factor_RHD in zip(z, self.factors, strict=True):
            product_RBD = product_RBD * (with_one(z_BH) @ factor_RHD)
        return product_RBD.sum(0) + self.bias
