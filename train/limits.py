"""What the keys of a configuration may hold, beyond what their types say."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

# Allowed words of the keys that take one of a few.
CHOICES = {
    "text.source": ("model", "features"),
    "perceiver.long_video": ("error", "subsample"),
    "perceiver.missing": ("learned", "zero"),
    "sgfi.gate": ("query", "output", "none"),
    "sclg.reduction": ("mean", "sum"),
    "sclg.index": ("auto", "exact", "faiss"),
    "loss.regression": ("l1", "mse"),
    "optim.schedule": ("constant", "cosine"),
    "train.precision": ("no", "bf16", "fp16"),
}
POSITIVE = (
    "width",
    "text.max_tokens",
    "perceiver.layers",
    "perceiver.tokens",
    "perceiver.heads",
    "perceiver.ffn",
    "perceiver.max_frames",
    "sgfi.layers",
    "sgfi.heads",
    "sgfi.ffn",
    "sclg.knn",
    "sclg.sigma",
    "sccl.tau",
    "sccl.tau_inter",
    "train.epochs",
    "train.batch_size",
    "train.bucket",
    "train.check_every",
    "train.accumulate",
)
NOT_NEGATIVE = (
    "text.context_turns",
    "sgfi.bridge_tokens",
    "optim.lr",
    "optim.lr_text",
    "optim.weight_decay",
    "optim.warmup_epochs",
    "optim.clip",
    "train.patience",
    "train.save_every",
    "train.save_seconds",
    "seed",
    "sccl.alpha",
    "sccl.beta",
    *(f"loss.weights.{k}" for k in ("M", "S", "t", "a", "v")),
)


def check(config: Any) -> None:
    """Raise a ValueError on the first key of a `train.config.Config` that holds what it may not."""
    tree = OmegaConf.structured(config)
    for key, choices in CHOICES.items():
        value = OmegaConf.select(tree, key)
        if value not in choices:
            raise ValueError(f"key {key!r} is {value!r}: use one of {', '.join(choices)}")
    for key in POSITIVE:
        value = OmegaConf.select(tree, key)
        if not value > 0:  # nor NaN
            raise ValueError(f"key {key!r} is {value}: it must be above 0")
    for key in NOT_NEGATIVE:
        value = OmegaConf.select(tree, key)
        if not value >= 0:
            raise ValueError(f"key {key!r} is {value}: it must be 0 or above")
    if not 0 <= config.dropout < 1:
        raise ValueError(f"key 'dropout' is {config.dropout}: it must be 0 or above, and below 1")
    for part in ("perceiver", "sgfi"):
        heads = OmegaConf.select(tree, f"{part}.heads")
        if config.width % heads:
            raise ValueError(f"width={config.width} cannot be cut into {part}.heads={heads} heads")
    frames, most = config.perceiver.frames, config.perceiver.max_frames
    if frames is not None and not 0 < frames <= most:
        raise ValueError(
            f"key 'perceiver.frames' is {frames}: it must be between 1 and "
            f"perceiver.max_frames={most}"
        )
    if config.sccl.bins != sorted(set(config.sccl.bins)):
        raise ValueError(f"key 'sccl.bins' is {config.sccl.bins}: the borders must increase")
    if config.text.context_turns and config.text.source == "features":
        raise ValueError("text.context_turns is read by a language model: set text.source=model")
    trainable = config.text.trainable
    if trainable not in ("all", "none") if isinstance(trainable, str) else trainable < 1:
        raise ValueError(f"key 'text.trainable' is {trainable!r}: use all, none or 1 and above")
