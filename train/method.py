"""What the training loop asks of a method; train/methods/ holds the methods themselves.

The loop calls, in this order: `begin` once, then per epoch `forward` and `loss` for each batch and
`end_epoch`; after the last epoch `exports`. It knows no method by name.
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
    """What a forward pass gives.

    Attributes:
        predictions: raw outputs ``[B, C]`` per sub-task; "M" is the method's answer.
        features: vectors ``[B, D]`` by name, for losses, probes and figures.
        specific: modality-specific vectors ``[B, M, D]``, or None.
        shared: modality-shared vectors ``[B, M, D]``, or None.
        reported: per name one number per utterance, ``[B]``, to stand beside the predictions.
    """

    predictions: dict[str, Tensor]
    features: dict[str, Tensor]
    specific: Tensor | None = None
    shared: Tensor | None = None
    reported: Mapping[str, Tensor] = NOTHING


class Method(nn.Module):
    """A model with its loss. A sub-class writes `forward`; more loss and hooks are optional.

    Args:
        config: sizes and switches.
        task: the target.
        widths: columns of the cached features, keys "audio" and "vision", and "text" with
            ``text.source=features``.

    Attributes:
        Options: dataclass of the method's own keys, ``options.<key>``.
        text_modules: paths of the sub-modules trained with the language model's learning rate.
        training_state: names of the sub-modules needed to go on training, not to predict; their
            buffers stay out of ``model.safetensors``.
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
        """Predictions and features of a batch."""
        raise NotImplementedError

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """The training loss: scalar terms by name and their weighted sum "total".

        Here l of the answer M alone; a method adds its own terms. Each term is a mean over the
        utterances, so that the mean over processes is right. Not called on the validation and test
        splits: all methods are evaluated by l of the answer M.
        """
        term = self.task.loss(outputs.predictions["M"], batch.labels).mean()
        return {"task_M": term, "total": term}

    def begin(self, labels_NC: Tensor) -> None:
        """Before the first epoch: the targets of the training split, in its order."""

    def end_epoch(self, epoch: int) -> None:
        """After all batches of epoch ``epoch``, counted from 1."""

    def exports(self) -> dict[str, Tensor]:
        """After the last epoch: per name a ``[N, C]`` tensor over the training split to keep."""
        return {}
