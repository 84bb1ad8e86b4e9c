"""Which weights decay, and how fast each group learns at each step."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from train.config import Config, OptimConfig
from train.method import Method


def parameter_groups(method: Method, optim: OptimConfig) -> list[dict[str, Any]]:
    """The language model's weights and all others, each with and without weight decay.

    Only matrices that multiply their input decay: biases, norms, embeddings and learnable tokens
    do not.
    """
    decaying = {
        f"{name}.weight"
        for name, module in method.named_modules()
        if not isinstance(module, nn.Embedding) and getattr(module, "weight", None) is not None
    }
    text = tuple(f"{name}." for name in method.text_modules)
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            decays = name in decaying and parameter.ndim > 1
            groups.setdefault((name.startswith(text), decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": optim.lr_text if is_text else optim.lr,
            "weight_decay": optim.weight_decay if decays else 0.0,
        }
        for (is_text, decays), parameters in groups.items()
    ]


def rate_factor(step: int, steps_per_epoch: int, config: Config) -> float:
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
