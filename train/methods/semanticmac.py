"""SemanticMAC: text, two perceivers, gated interaction, pseudo labels, contrastive loss.

Letters: B batch, L text tokens, N latent tokens, D model width, C outputs, M = 3 modalities
(t text, a audio, v vision). Sub-tasks: M multimodal, S shared, and one per modality.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from train.config import Config
from train.data import Batch
from train.distributed import gather_batch
from train.method import MODALITY_KEYS, Method, Outputs
from train.model.layers import masked_means, predictor
from train.model.perceiver import AffectivePerceiver
from train.model.sccl import inter_sample, intra_sample
from train.model.sclg import PseudoLabels
from train.model.sgfi import AttentionMasks, GatedInteraction, segment_masks
from train.model.text_features import text_source
from train.task import Task

PSEUDO = ("S", *MODALITY_KEYS)
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
            nn.Parameter(0.02 * torch.randn(len(MODALITY_KEYS), width))
            if config.sgfi.modality_embedding
            else None
        )
        copies = 1 if config.sgfi.share else len(MODALITY_KEYS)
        self.specific = nn.ModuleList(
            GatedInteraction(width, dropout, config.sgfi) for _ in range(copies)
        )
        self.shared = nn.ModuleList(
            GatedInteraction(width, dropout, config.sgfi) for _ in range(copies)
        )
        self.fuse_all = nn.Linear(6 * width, width)
        self.fuse_shared = nn.Linear(3 * width, width)
        self.predictors = nn.ModuleDict(
            {k: predictor(width, task.outputs, dropout) for k in SUBTASKS}
        )

    def forward(self, batch: Batch) -> Outputs:
        """Predict all five sub-tasks, and return their features."""
        x, mask = self._unimodal(batch)
        lengths = [x_m.shape[1] for x_m in x]
        x_BLD, mask_BL = torch.cat(x, dim=1), torch.cat(mask, dim=1)
        part_ML = segment_masks(lengths, mask_BL.device)
        own_BML, others_BML = mask_BL[:, None] & part_ML, mask_BL[:, None] & ~part_ML
        p_BLD = self._interact(self.specific, lengths, x_BLD, mask_BL, own_BML)  # (10)
        s_BLD = self._interact(self.shared, lengths, x_BLD, mask_BL, others_BML)  # (11)
        p_BMD, s_BMD = masked_means(p_BLD, own_BML), masked_means(s_BLD, own_BML)
        features = dict(zip(MODALITY_KEYS, p_BMD.unbind(1), strict=True))
        features["M"] = self.fuse_all(torch.cat([p_BMD, s_BMD], dim=1).flatten(1))  # (12)
        features["S"] = self.fuse_shared(s_BMD.flatten(1))
        predictions = {k: self.predictors[k](features[k]) for k in SUBTASKS}  # (20)
        return Outputs(predictions, features, p_BMD, s_BMD)

    def _unimodal(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """Compute X_t, X_a, X_v of equations (1), (4) and (5), ``[B, *, D]``, with their masks."""
        text_BLd, text_mask_BL = self.text(batch.text)
        x = [self.project_text(text_BLd), self.audio(batch.audio), self.vision(batch.vision)]
        mask = [text_mask_BL, *(u.new_ones(u.shape[:2], dtype=torch.bool) for u in x[1:])]
        if self.modality is not None:
            x = [x_m + embedding for x_m, embedding in zip(x, self.modality, strict=True)]
        return x, mask

    def _interact(
        self,
        stacks: nn.ModuleList,
        lengths: list[int],
        x_BLD: Tensor,
        mask_BL: Tensor,
        key_BML: Tensor,
    ) -> Tensor:
        """Compute SGFI(X_m, ...) of every modality, ``[B, L, D]``.

        Args:
            stacks: one for all modalities, or one per modality.
            lengths: positions of each modality.
            x_BLD: the concatenated modalities.
            mask_BL: True on real positions.
            key_BML: True on the positions that each modality attends to.
        """
        groups = [lengths] if len(stacks) == 1 else [[n] for n in lengths]
        cut = [sum(group) for group in groups]
        queries = zip(
            stacks,
            groups,
            x_BLD.split(cut, 1),
            mask_BL.split(cut, 1),
            key_BML.split([len(group) for group in groups], 1),
            strict=True,
        )
        bridge_tokens = self.config.sgfi.bridge_tokens
        updated = [
            stack(x, x_BLD, AttentionMasks.build(group, mask, key, bridge_tokens))
            for stack, group, x, mask, key in queries
        ]
        return torch.cat(updated, dim=1)

    def begin(self, labels_NC: Tensor) -> None:
        """Initialise the pseudo labels with the ground truth."""
        device, config = self.project_text.weight.device, self.config
        self.pseudo = PseudoLabels(
            labels_NC.to(device), PSEUDO, config.width, self.task.clamp, config.sclg
        )

    def end_epoch(self, epoch: int) -> None:
        """Update the pseudo labels, equation (15)."""
        self.pseudo.update(epoch)

    def exports(self) -> dict[str, Tensor]:
        """Return the final pseudo labels."""
        return dict(zip(PSEUDO, self.pseudo.labels, strict=True))

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Compute the terms of equations (19), (21) and (22)."""
        weights, sccl = self.config.loss.weights, self.config.sccl
        terms = {"task_M": self.task.loss(outputs.predictions["M"], batch.labels).mean()}
        total = weights.M * terms["task_M"]
        self.pseudo.collect(batch.index, torch.stack([outputs.features[k] for k in PSEUDO]))
        if self.config.loss.multi_task:
            output_KBC = torch.stack([outputs.predictions[k] for k in PSEUDO])
            target_KBC = self.pseudo.lookup(batch.index)
            loss_KB = self.task.loss(output_KBC.flatten(0, 1), target_KBC.flatten(0, 1))
            loss_K = loss_KB.view(len(PSEUDO), -1).mean(1)
            for k, term in zip(PSEUDO, loss_K, strict=True):
                terms[f"task_{k}"] = term
                total = total + getattr(weights, k) * term
        if sccl.enabled and sccl.alpha:
            assert outputs.specific is not None
            assert outputs.shared is not None
            terms["intra"] = intra_sample(outputs.specific, outputs.shared, sccl.tau)
            total = total + sccl.alpha * terms["intra"]
        if sccl.enabled and sccl.beta:
            features_BD, labels_BC, real_B = gather_batch(
                outputs.features["M"], batch.labels, self.config.train.batch_size
            )
            same_class_BB = self.task.same_class(labels_BC)
            terms["inter"] = inter_sample(features_BD, same_class_BB, sccl.tau_inter, real_B)
            total = total + sccl.beta * terms["inter"]
        return {**terms, "total": total}
