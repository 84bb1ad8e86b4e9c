"""Parameter groups, learning-rate schedule, and one optimizer step."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import convert_to_fp32
from torch import Tensor, nn
from torch.optim import AdamW

from train.config import Config, OptimConfig
from train.data import Batch
from train.method import Method

# Biases, embeddings and learnable tokens by name: no weight decay, though some are matrices.
_ADDED = re.compile(r"bias|embed|emb$|token|^modality$")


def parameter_groups(method: Method, optim: OptimConfig) -> list[dict[str, Any]]:
    """Group the language model's weights and all others, each with and without weight decay.

    Only matrices that multiply their input decay: biases, norms, embeddings and learnable tokens
    do not, whatever PyTorch, a language model or a method names them.
    """
    tables = {
        f"{name}.weight"
        for name, module in method.named_modules()
        if isinstance(module, nn.Embedding)
    }
    text = tuple(f"{name}." for name in method.text_modules)
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            own = name.rpartition(".")[2]
            decays = parameter.ndim > 1 and name not in tables and not _ADDED.search(own)
            groups.setdefault((name.startswith(text), decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": optim.lr_text if is_text else optim.lr,
            "weight_decay": optim.weight_decay if decays else 0.0,
        }
        for (is_text, decays), parameters in groups.items()
    ]


def lr_multiplier(step: int, steps_per_epoch: int, config: Config) -> float:
    """Factor of the learning rates at optimizer step ``step``, counted from 0.

    A linear warm-up, over the first epoch by default, then 1 or half a cosine down to 0.
    """
    warmup = round(config.optim.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / warmup
    if config.optim.schedule == "constant":
        return 1.0
    rest = max(1, config.train.epochs * steps_per_epoch - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / rest)))


class LossModule(nn.Module):
    """The forward pass and the loss as one module, for DistributedDataParallel.

    DistributedDataParallel waits for the gradient of every weight that its module's output depends
    on. Predictions may be left out of the loss, so the only output with a gradient is the loss.
    """

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the scalar terms of the loss in float32; only "total" has a gradient."""
        outputs = convert_to_fp32(self.method(batch))
        with torch.autocast(batch.index.device.type, enabled=False):
            terms = self.method.loss(outputs, batch)
        return {name: x if name == "total" else x.detach() for name, x in terms.items()}


class OptimizerStep:
    """A method and its AdamW; `step` is one optimizer step on a global batch.

    The batch may be sharded over ranks and accumulated over micro-batches. A method without a
    trainable weight only computes its loss.

    Args:
        method: on the accelerator's device.
        config: learning rates, clipping.
        accelerator: precision, and the processes whose gradients are averaged.
    """

    def __init__(self, method: Method, config: Config, accelerator: Accelerator) -> None:
        self.config, self.accelerator = config, accelerator
        self.loss: nn.Module = LossModule(method)
        self.optimizer: Any = None
        groups = parameter_groups(method, config.optim)
        if groups:
            self._rates = [group["lr"] for group in groups]
            with warnings.catch_warnings():  # of a new name that earlier versions do not know
                warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
                self.loss, self.optimizer = accelerator.prepare(
                    self.loss, AdamW(groups, fused=True)
                )

    def step(self, parts: Sequence[Batch], size: int, factor: float) -> list[dict[str, Tensor]]:
        """Take one step on the mean loss of a batch.

        Args:
            parts: this rank's micro-batches.
            size: utterances of the global batch, over all micro-batches of all ranks.
            factor: multiplies the learning rates.

        Returns:
            The loss terms of each micro-batch, detached.
        """
        losses = []
        for part in parts:
            with nullcontext() if part is parts[-1] else self.accelerator.no_sync(self.loss):
                terms = self.loss(part.to(self.accelerator.device))
                if self.optimizer is not None:
                    # Gradients are summed over micro-batches and averaged over ranks.
                    share = len(part) * self.accelerator.num_processes / size
                    self.accelerator.backward(terms["total"] * share)
            losses.append({name: term.detach() for name, term in terms.items()})
        if self.optimizer is not None:
            self.update(factor)
        return losses

    def update(self, factor: float) -> None:
        """Clip the gradients, apply them, and reset them."""
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        if self.config.optim.clip:
            self.accelerator.clip_grad_norm_(self.loss.parameters(), self.config.optim.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state_dict(self) -> dict[str, Tensor]:
        """Copy AdamW's moments to the CPU: ``<number of the weight>.<name of the moment>``."""
        if self.optimizer is None:
            return {}
        state = self.optimizer.state_dict()["state"]
        return {f"{i}.{key}": x.cpu() for i, kept in state.items() for key, x in kept.items()}

    def load_state_dict(self, moments: dict[str, Tensor]) -> None:
        """Restore the moments of a `state_dict`. Each step sets the learning rates itself."""
        if self.optimizer is None:
            return
        state: dict[int, dict[str, Tensor]] = {}
        for name, x in moments.items():
            i, _, key = name.partition(".")
            state.setdefault(int(i), {})[key] = x
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
