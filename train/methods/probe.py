"""Linear probe: a linear layer on frozen features.

Table XI of the paper probes the frozen encoder's frames E_u, equation (2), and the tokens X_u of a
trained Affective Perceiver, equation (4):  yhat = W mean(E_u) + b,  yhat = W mean(X_u) + b.

    python -m train fit dataset=demo method=probe options.modality=vision
    python -m train fit dataset=demo method=probe options.modality=vision options.run=runs/demo/...
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from safetensors.torch import load_file
from torch import nn

from cache import Packed
from train.config import Config, load_config, read_options
from train.data import Batch
from train.method import Method, Outputs
from train.model.perceiver import AffectivePerceiver
from train.ranges import one_of
from train.task import Task


class Probe(Method):
    """One linear layer on the mean of a modality's frames or tokens; the rest is frozen."""

    @dataclass
    class Options:
        """The input of the probe."""

        modality: Annotated[str, one_of("vision", "audio")] = "vision"
        # a finished SemanticMAC run, whose perceiver to probe; null: E_u itself
        run: str | None = None

    def __init__(self, config: Config, task: Task, widths: Mapping[str, int]) -> None:
        super().__init__(config, task, widths)
        options = read_options(self.Options, config)
        self.modality, width = options.modality, widths[options.modality]
        self.perceiver: AffectivePerceiver | None = None
        if options.run is not None:
            self.perceiver = trained_perceiver(Path(options.run), self.modality, width)
            width = self.perceiver.project.out_features
        self.predict = nn.Linear(width, task.outputs)

    def forward(self, batch: Batch) -> Outputs:
        """Predict from the mean, which is 0 for an absent modality."""
        frames: Packed = getattr(batch, self.modality)
        if self.perceiver is None:
            x_BTd, mask_BT = frames.padded()
            mean_Bd = (x_BTd * mask_BT[..., None]).float().sum(1)
            mean_Bd = mean_Bd / mask_BT.sum(1, keepdim=True).clamp(min=1)
        else:
            with torch.no_grad():
                mean_Bd = self.perceiver(frames).mean(1)
        return Outputs({"M": self.predict(mean_Bd)}, {"M": mean_Bd})

    def train(self, mode: bool = True) -> Probe:
        """Set the training mode; a frozen perceiver stays in evaluation mode."""
        super().train(mode)
        if self.perceiver is not None:
            self.perceiver.eval()
        return self


def trained_perceiver(run: Path, modality: str, frame_width: int) -> AffectivePerceiver:
    """Load the frozen perceiver of a finished SemanticMAC run.

    Raises:
        ValueError: the folder is not such a run, or the run used features of another width.
    """
    if not (run / "model.safetensors").is_file():
        raise ValueError(f"options.run={run}: not the folder of a finished run")
    config = load_config(run)
    perceiver = AffectivePerceiver(frame_width, config.width, config.dropout, config.perceiver)
    weights = load_file(run / "model.safetensors")
    own = {
        k.removeprefix(f"{modality}."): w
        for k, w in weights.items()
        if k.startswith(f"{modality}.")
    }
    try:
        perceiver.load_state_dict(own)
    except RuntimeError as error:
        raise ValueError(
            f"options.run={run}: no {modality} perceiver for features of width {frame_width}"
        ) from error
    return perceiver.requires_grad_(False)
