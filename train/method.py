"""The interface between the training loop and the methods in `train.methods`.

The loop calls, in this order: `begin` once; per epoch `forward` and `loss` for each batch, then
`end_epoch`; after the last epoch `exports`. The loop does not depend on any method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor, nn

from train.config import Config
from train.data import Batch
from train.task import Task

MODALITY_KEYS = ("t", "a", "v")
"""Text, audio and vision, in the order in which tensors stack them."""

NOTHING: Mapping[str, Tensor] = MappingProxyType({})


class Outputs(NamedTuple):
    """The result of a forward pass.

    Attributes:
        predictions: raw outputs ``[B, C]`` per sub-task; "M" is the method's prediction.
        features: vectors ``[B, D]`` by name, for losses and probes.
        specific: modality-specific vectors ``[B, M, D]``, or None.
        shared: modality-shared vectors ``[B, M, D]``, or None.
        reported: per name one number per utterance, ``[B]``, saved with the predictions.
    """

    predictions: dict[str, Tensor]
    features: dict[str, Tensor]
    specific: Tensor | None = None
    shared: Tensor | None = None
    reported: Mapping[str, Tensor] = NOTHING


class Method(nn.Module):
    """A model with its loss. Sub-classes implement `forward`; other methods are optional.

    Args:
        config: all keys of the run.
        task: the target.
        widths: columns of the features, keys "audio" and "vision", and "text" with
            ``text.source=features``.

    Attributes:
        Options: dataclass of the method's own keys, ``options.<key>``.
        text_modules: paths of the sub-modules trained with the language model's learning rate.
        training_state: names of the sub-modules that only training needs; their buffers are not in
            ``model.safetensors``.
    """

    @dataclass
    class Options:
        """No keys."""

    text_modules: tuple[str, ...] = ("text.encoder",)
    training_state: tuple[str, ...] = ()

    def __init__(self, config: Config, task: Task, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.config, self.task = config, task

    def forward(self, batch: Batch) -> Outputs:
        """Compute predictions and features of a batch."""
        raise NotImplementedError

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Compute the training loss: scalar terms by name, and their weighted sum "total".

        By default the loss of the prediction M; a method adds its own terms. Each term is a mean
        over the utterances, which makes the mean over processes correct. Not called on the
        validation and test splits: there, the loss of every method is that of M.
        """
        term = self.task.loss(outputs.predictions["M"], batch.labels).mean()
        return {"task_M": term, "total": term}

    def begin(self, labels_NC: Tensor) -> None:
        """Prepare for training, given the targets of the training split in its order."""

    def end_epoch(self, epoch: int) -> None:
        """Finish epoch ``epoch``, counted from 1."""

    def exports(self) -> dict[str, Tensor]:
        """Return tensors ``[N, C]`` over the training split, by name, to save with the run."""
        return {}
