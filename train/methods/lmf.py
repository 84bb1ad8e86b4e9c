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

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train.config import Config, read_options
from train.data import Batch
from train.method import Method, Outputs
from train.methods.tfn import Embeddings, with_one
from train.model.layers import predictor
from train.ranges import Positive
from train.task import Task


class LMF(Method):
    """Low-rank Multimodal Fusion."""

    @dataclass
    class Options:
        """LMF's own keys."""

        rank: Positive[int] = 4  # R
        text: Positive[int] = 128
        audio: Positive[int] = 32
        vision: Positive[int] = 32

    text_modules = ("embed.text.encoder",)

    def __init__(self, config: Config, task: Task, widths: Mapping[str, int]) -> None:
        super().__init__(config, task, widths)
        options = read_options(self.Options, config)
        sizes = (options.text, options.audio, options.vision)
        self.embed = Embeddings(config, widths, sizes)
        self.fuse = LowRankFusion(sizes, options.rank, config.width)
        self.predict = predictor(config.width, task.outputs, config.dropout)

    def forward(self, batch: Batch) -> Outputs:
        """Predict, and return each modality's z_m."""
        features = self.embed(batch)
        features["M"] = self.fuse(list(features.values()))
        return Outputs({"M": self.predict(features["M"])}, features)


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
