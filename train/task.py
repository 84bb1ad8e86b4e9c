"""The target of training: a score, one class or any number of classes.

The three kinds differ in how labels become vectors, in the loss, in the range of pseudo labels and
in which utterances count as the same class. Everything else in this package works on vectors
``[*, C]`` of any kind. C is 1 for regression, else the number of classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from manifests import Card


@dataclass(frozen=True)
class Task:
    """The target of a dataset.

    Attributes:
        kind: "regression", "classification" (one class) or "multilabel".
        columns: columns of the manifest with the labels.
        classes: names of the classes, empty for regression.
        low: lowest value of a target.
        high: highest value of a target.
        metrics: name of the metric set.
        regression_loss: "l1" or "mse".
        bins: borders between the classes of a score, for the inter-sample contrast.
    """

    kind: str
    columns: tuple[str, ...]
    classes: tuple[str, ...]
    low: float
    high: float
    metrics: str
    regression_loss: str = "l1"
    bins: tuple[float, ...] = (0.0,)

    @classmethod
    def from_card(
        cls, card: Card, regression_loss: str = "l1", bins: tuple[float, ...] = (0.0,)
    ) -> Task:
        """Create the target that a dataset's card describes."""
        low, high = card.range if card.range is not None else (0.0, 1.0)
        columns, classes = tuple(card.labels), tuple(card.classes)
        return cls(card.task, columns, classes, low, high, card.metrics, regression_loss, bins)

    @property
    def outputs(self) -> int:
        """C, the number of outputs."""
        return 1 if self.kind == "regression" else len(self.classes)

    def encode(self, rows: pd.DataFrame) -> Tensor:
        """Encode the labels of a manifest's rows, ``[N, C]`` float32: score, one-hot or multi-hot.

        Raises:
            ValueError: a label is missing or not a class of the card; names the utterance.
        """
        missing = rows[list(self.columns)].isna().any(axis=1)
        if missing.any():
            first = rows.loc[missing, "id"].iloc[0]
            raise ValueError(
                f"{int(missing.sum())} utterances have no label, the first is {first!r}: "
                "label or remove them in the manifest"
            )
        if self.kind != "classification":
            return torch.from_numpy(rows[list(self.columns)].to_numpy(np.float32, copy=True))
        index = pd.Index(self.classes).get_indexer(pd.Index(rows[self.columns[0]].astype(object)))
        if (index < 0).any():
            row = rows.iloc[int(np.argmax(index < 0))]
            raise ValueError(
                f"utterance {row['id']!r} has the label {row[self.columns[0]]!r}, "
                f"the card has the classes: {', '.join(self.classes)}"
            )
        return F.one_hot(torch.from_numpy(index), len(self.classes)).float()

    def loss(self, output_BC: Tensor, target_BC: Tensor) -> Tensor:
        """Compute l(yhat, y) of equation (21), ``[B]``; targets of classes may be soft.

        L1 or squared error for a score, cross-entropy for one class, the mean over classes of
        binary cross-entropies for several.
        """
        output_BC = output_BC.float()
        if self.kind == "regression":
            measure = F.l1_loss if self.regression_loss == "l1" else F.mse_loss
            return measure(output_BC, target_BC, reduction="none").mean(1)
        if self.kind == "classification":
            return -(target_BC * output_BC.log_softmax(1)).sum(1)
        losses_BC = F.binary_cross_entropy_with_logits(output_BC, target_BC, reduction="none")
        return losses_BC.mean(1)

    def clamp(self, target: Tensor) -> Tensor:
        """Clamp (pseudo) targets to the label's range, equation (15); all-zero is allowed."""
        return target.clamp(self.low, self.high)

    def scores(self, output_BC: Tensor) -> Tensor:
        """Convert raw outputs to scores: the score itself, or one probability per class."""
        output_BC = output_BC.float()
        if self.kind == "regression":
            return output_BC
        return output_BC.softmax(1) if self.kind == "classification" else output_BC.sigmoid()

    def to_decision(self, scores: np.ndarray) -> np.ndarray:
        """Convert scores or targets ``[N, C]`` to the decisions that metrics compare.

        A float ``[N]``, the index of a class ``[N]``, or 0/1 ``[N, C]`` (1 for a probability
        of at least one half).
        """
        if self.kind == "regression":
            return scores[:, 0]
        return scores.argmax(1) if self.kind == "classification" else (scores >= 0.5).astype(int)

    def names(self, decisions: np.ndarray) -> dict[str, Any]:
        """Convert decisions to columns of a table: one column "", or one per class."""
        if self.kind == "regression":
            return {"": decisions}
        if self.kind == "classification":
            return {"": np.asarray(self.classes, dtype=object)[decisions]}
        return {f"_{name}": decisions[:, i] for i, name in enumerate(self.classes)}

    def baseline(self, train_NC: np.ndarray, count: int) -> np.ndarray:
        """Return the scores of the constant baseline, ``[count, C]``.

        The mean of the training targets, so that `to_decision` gives the mean score, the majority
        class or the classes that more than half of the utterances have.
        """
        return np.repeat(train_NC.mean(0, keepdims=True), count, axis=0)

    def same_class(self, target_BC: Tensor) -> Tensor:
        """Whether pairs are of the same class in equation (18), ``[B, B]`` bool.

        Same class means: scores in one bin (a border belongs to the upper bin), equal classes, or
        at least one class in common.
        """
        if self.kind == "regression":
            bin_B = torch.zeros_like(target_BC[:, 0], dtype=torch.int64)
            # A loop: a tensor of borders would be copied to the device in every step.
            for border in self.bins:
                bin_B += target_BC[:, 0] >= border
            return bin_B[:, None] == bin_B[None, :]
        return target_BC @ target_BC.T > 0.5
