"""Constant baselines: the same prediction for every utterance, without parameters.

N training utterances, y their targets:

    mean       a score:  mean_i y_i
    majority   a score:  the most frequent y_i; the lowest one if tied
    both       classes:  log p_c, the log frequency of class c among the training targets
               any number of classes:  log (p_c / (1 - p_c))

Frequencies are smoothed by one utterance, p_c = (n_c + 1) / (N + C) for one class and
(n_c + 1) / (N + 2) for several, so that a class without training utterances has a finite loss.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from train.config import Config
from train.data import Batch
from train.method import Method, Outputs
from train.task import Task


class Mean(Method):
    """The mean score, or the frequencies of the classes."""

    text_modules = ()
    answer: Tensor

    def __init__(self, config: Config, task: Task, widths: Mapping[str, int]) -> None:
        super().__init__(config, task, widths)
        self.register_buffer("answer", torch.zeros(task.outputs))

    def begin(self, labels_NC: Tensor) -> None:
        """Compute the prediction from the targets."""
        count, n_C = len(labels_NC), labels_NC.sum(0)
        if self.task.kind == "regression":
            answer_C = self.score(labels_NC)
        elif self.task.kind == "classification":
            answer_C = ((n_C + 1) / (count + len(n_C))).log()
        else:
            answer_C = ((n_C + 1) / (count + 2)).logit()
        self.answer.copy_(answer_C)

    def score(self, labels_N1: Tensor) -> Tensor:
        """Compute the constant score, ``[1]``."""
        return labels_N1.mean(0)

    def forward(self, batch: Batch) -> Outputs:
        """Predict the same for all utterances."""
        answer_BC = self.answer.expand(len(batch), -1)
        return Outputs({"M": answer_BC}, {"M": answer_BC})


class Majority(Mean):
    """The most frequent score, or the frequencies of the classes."""

    def score(self, labels_N1: Tensor) -> Tensor:
        """Compute the mode of the scores, ``[1]``."""
        values, counts = labels_N1[:, 0].unique(return_counts=True)
        return values[counts.argmax()][None]
