"""SemanticMAC: text, two perceivers, gated interaction, pseudo labels, contrast.

Letters: B batch, L text tokens, N latent tokens, D model width, C outputs, M = 3 modalities
(t text, a audio, v vision). Sub-tasks: M multimodal, S shared, and one per modality.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from train.config import Config
from train.data import Batch
from train.method import Method, Outputs
from train.perceiver import AffectivePerceiver
from train.sccl import inter_sample, intra_sample
from train.sclg import PseudoLabels
from train.sgfi import GatedInteraction, masked_mean
from train.task import Task
from train.text_features import text_source

MODALITIES = ("t", "a", "v")
PSEUDO = ("S", *MODALITIES)
SUBTASKS = ("M", *PSEUDO)


class SemanticMAC(Method):
    """The paper's method, equations (1) to (22)."""

    training_state = ("pseudo",)
    pseudo: PseudoLabels

    def __init__(self, config: Config, task: Task, widths: Mapping[str, int]) -> None:
        super().__init__(config, task, widths)
        width, dropout = config.width, config.dropout
        self.text = text_source(config.text, widths)
        self.project_text = nn.Linear(self.text.width, width)
        self.audio = AffectivePerceiver(widths["audio"], width, dropout, config.perceiver)
        self.vision = AffectivePerceiver(widths["vision"], width, dropout, config.perceiver)
        self.modality = (
            nn.Parameter(0.02 * torch.randn(len(MODALITIES), width))
            if config.sgfi.modality_embedding
            else None
        )
        copies = 1 if config.sgfi.share else len(MODALITIES)
        self.specific = nn.ModuleList(
            GatedInteraction(width, dropout, config.sgfi) for _ in range(copies)
        )
        self.shared = nn.ModuleList(
            GatedInteraction(width, dropout, config.sgfi) for _ in range(copies)
        )
        self.fuse_all = nn.Linear(6 * width, width)
        self.fuse_shared = nn.Linear(3 * width, width)
        self.predictors = nn.ModuleDict(
            {k: _predictor(width, task.outputs, dropout) for k in SUBTASKS}
        )

    def forward(self, batch: Batch) -> Outputs:
        """All five predictions of a batch, with the features they are made from."""
        x, mask = self._unimodal(batch)
        specific, shared = [], []
        for m in range(len(MODALITIES)):
            own = 0 if self.config.sgfi.share else m
            others = [n for n in range(len(MODALITIES)) if n != m]
            kv_BSD = torch.cat([x[n] for n in others], dim=1)
            mask_BS = torch.cat([mask[n] for n in others], dim=1)
            p_BLD = self.specific[own](x[m], mask[m], x[m], mask[m])  # (10)
            s_BLD = self.shared[own](x[m], mask[m], kv_BSD, mask_BS)  # (11)
            specific.append(masked_mean(p_BLD, mask[m]))
            shared.append(masked_mean(s_BLD, mask[m]))
        features = dict(zip(MODALITIES, specific, strict=True))
        features["M"] = self.fuse_all(torch.cat(specific + shared, dim=1))  # (12)
        features["S"] = self.fuse_shared(torch.cat(shared, dim=1))
        predictions = {k: self.predictors[k](features[k]) for k in SUBTASKS}  # (20)
        return Outputs(predictions, features, torch.stack(specific, 1), torch.stack(shared, 1))

    def _unimodal(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """X_t, X_a, X_v of equations (1), (4) and (5), ``[B, *, D]``, with their masks."""
        text_BLd, text_mask_BL = self.text(batch.text)
        x = [self.project_text(text_BLd), self.audio(batch.audio), self.vision(batch.vision)]
        mask = [text_mask_BL, *(u.new_ones(u.shape[:2], dtype=torch.bool) for u in x[1:])]
        if self.modality is not None:
            x = [x_m + embedding for x_m, embedding in zip(x, self.modality, strict=True)]
        return x, mask

    def begin(self, labels_NC: Tensor) -> None:
        """Pseudo labels start as the ground truth."""
        device, config = self.project_text.weight.device, self.config
        self.pseudo = PseudoLabels(
            labels_NC.to(device), PSEUDO, config.width, self.task.clamp, config.sclg
        )

    def end_epoch(self, epoch: int) -> None:
        """Move the pseudo labels, equation (15)."""
        self.pseudo.move(epoch)

    def exports(self) -> dict[str, Tensor]:
        """The final pseudo labels."""
        return dict(zip(PSEUDO, self.pseudo.labels, strict=True))

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """The terms of equations (19), (21) and (22); in evaluation mode sub-task M alone."""
        terms = {"task_M": self.task.loss(outputs.predictions["M"], batch.labels).mean()}
        if not self.training:
            return {**terms, "total": terms["task_M"]}
        weights, sccl = self.config.loss.weights, self.config.sccl
        total = weights.M * terms["task_M"]
        for k in PSEUDO:
            self.pseudo.gather(k, batch.index, outputs.features[k])
            if self.config.loss.multi_task:
                target_BC = self.pseudo.of(k, batch.index)
                terms[f"task_{k}"] = self.task.loss(outputs.predictions[k], target_BC).mean()
                total = total + getattr(weights, k) * terms[f"task_{k}"]
        if sccl.alpha:
            assert outputs.specific is not None
            assert outputs.shared is not None
            terms["intra"] = intra_sample(outputs.specific, outputs.shared, sccl.tau)
            total = total + sccl.alpha * terms["intra"]
        if sccl.beta:
            alike_BB = self.task.alike(batch.labels)
            terms["inter"] = inter_sample(outputs.features["M"], alike_BB, sccl.tau_inter)
            total = total + sccl.beta * terms["inter"]
        return {**terms, "total": total}


def _predictor(width: int, outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, outputs)
    )
