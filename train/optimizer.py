"""Which weights decay, how fast each group learns at each step, and the step itself."""

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
    """The language model's weights and all others, each with and without weight decay.

    Only matrices that multiply their input decay: biases, norms, embeddings and learnable tokens
    do not, under whatever names PyTorch, a language model or a method keeps them.
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
    """What the learning rates are multiplied with at optimisation step ``step``, from 0.

    A linear warm-up, over the first epoch by default, then 1 or half a cosine down to 0.
    """
    warmup = round(config.optim.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / warmup
    if config.optim.schedule == "constant":
        return 1.0
    rest = max(1, config.train.epochs * steps_per_epoch - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / rest)))


class OptimizerStep:
    """A method and its AdamW; `step` is one optimiser step on a global batch.

    The batch may be sharded over ranks and accumulated over micro-batches. A method without a
    trainable weight only computes its loss.

    Args:
        method: on the accelerator's device.
        config: rates, clipping.
        accelerator: precision, and the processes whose gradients are averaged.
    """

    def __init__(self, method: Method, config: Config, accelerator: Accelerator) -> None:
        self.config, self.accelerator = config, accelerator
        self.module: nn.Module = _Loss(method)
        self.optimiser: Any = None
        groups = parameter_groups(method, config.optim)
        if groups:
            self._rates = [group["lr"] for group in groups]
            with warnings.catch_warnings():  # of a new name that earlier versions do not know
                warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
                self.module, self.optimiser = accelerator.prepare(
                    self.module, AdamW(groups, fused=True)
                )

    def step(self, parts: Sequence[Batch], size: int, factor: float) -> list[dict[str, Tensor]]:
        """One step on the mean loss of a batch.

        Args:
            parts: this rank's micro-batches.
            size: utterances of the global batch, over all micro-batches of all ranks.
            factor: what the learning rates are multiplied with.

        Returns:
            The loss terms of each micro-batch, detached.
        """
        said = []
        for number, part in enumerate(parts, 1):
            last = number == len(parts)
            with nullcontext() if last else self.accelerator.no_sync(self.module):
                terms = self.module(part.to(self.accelerator.device))
                if self.optimiser is not None:
                    # Gradients are summed over micro-batches and averaged over ranks.
                    share = len(part) * self.accelerator.num_processes / size
                    self.accelerator.backward(terms["total"] * share)
            said.append({name: term.detach() for name, term in terms.items()})
        if self.optimiser is not None:
            self._update(factor)
        return said

    def _update(self, factor: float) -> None:
        for group, rate in zip(self.optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        if self.config.optim.clip:
            self.accelerator.clip_grad_norm_(self.module.parameters(), self.config.optim.clip)
        self.optimiser.step()
        self.optimiser.zero_grad()

    def state_dict(self) -> dict[str, Tensor]:
        """AdamW's moments, on the CPU: ``<number of the weight>.<what>``."""
        if self.optimiser is None:
            return {}
        state = self.optimiser.state_dict()["state"]
        return {f"{i}.{key}": x.cpu() for i, kept in state.items() for key, x in kept.items()}

    def load_state_dict(self, moments: dict[str, Tensor]) -> None:
        """Go on from what `state_dict` gave; rates need no restoring, each step sets them."""
        if self.optimiser is None:
            return
        state: dict[int, dict[str, Tensor]] = {}
        for name, x in moments.items():
            i, _, key = name.partition(".")
            state.setdefault(int(i), {})[key] = x
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})


class _Loss(nn.Module):
    """Forward pass and loss as one module.

    DistributedDataParallel waits for the gradient of every weight that its module's output depends
    on: the output must be the loss alone, for a prediction may be left out of it.
    """

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        outputs = convert_to_fp32(self.method(batch))
        with torch.autocast(batch.index.device.type, enabled=False):
            terms = self.method.loss(outputs, batch)
        total = terms["total"]
        return {name: total if name == "total" else x.detach() for name, x in terms.items()}
