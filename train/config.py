"""Configuration keys of a run: defaults, then a preset, then ``key=value`` on the command line.

[R] marks a choice that the paper leaves open; docs/method.md explains each.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Optional, TypeVar, Union

from omegaconf import OmegaConf

from cache.command_line import check_exists
from manifests.locate import load_card
from train.merge import merge_keys, read_overrides
from train.ranges import Fraction, Increasing, NotNegative, Positive, Range, check_ranges, one_of

Options = TypeVar("Options")

PRESETS = resources.files("train") / "presets"

WITHOUT_EFFECT = (
    *("name", "runs", "cache", "stores"),
    *("train.save_seconds", "train.save_every", "train.check_every"),
)
"""Keys that do not change a run's results."""

TRAINABLE = Range(
    "use all, none or 1 and above",
    lambda x: x in ("all", "none") if isinstance(x, str) else x >= 1,
)


@dataclass
class TextConfig:
    """The language model, or the text features that replace it."""

    # model | features: the store's text features, no language model
    source: Annotated[str, one_of("model", "features")] = "model"
    # hub name, folder or builtin:minilm; null: the one that the card names
    model: str | None = None
    # all | none | n: the last n layers
    trainable: Annotated[Union[int, str], TRAINABLE] = "all"  # noqa: UP007  read by OmegaConf
    max_tokens: Positive[int] = 128  # longer transcripts are truncated at the end, and counted
    context_turns: NotNegative[int] = 0  # preceding utterances to read, if they fit


@dataclass
class PerceiverConfig:
    """The Affective Perceiver, equations (3) and (4)."""

    layers: Positive[int] = 2
    tokens: Positive[int] = 8
    heads: Positive[int] = 4
    ffn: Positive[int] = 2  # hidden width of the feed forward network, in model widths
    max_frames: Positive[int] = 128  # rows of the frame embedding
    # error | subsample: treatment of videos with more than max_frames frames
    long_video: Annotated[str, one_of("error", "subsample")] = "error"
    frames: Positive[Optional[int]] = None  # noqa: UP045  resample every video to n frames, evenly
    # [R] learned | zero: the embedding that represents an absent modality
    missing: Annotated[str, one_of("learned", "zero")] = "learned"
    frame_embedding: bool = True
    layer_norm: bool = True
    residual: bool = True


@dataclass
class SGFIConfig:
    """Semantic-centric Gated Feature Interaction, equations (5) to (12)."""

    layers: Positive[int] = 2
    heads: Positive[int] = 4
    bridge_tokens: NotNegative[int] = 4  # 0: plain cross-attention
    ffn: Positive[int] = 2
    # [R] query | output | none: input of the ReLU gate
    gate: Annotated[str, one_of("query", "output", "none")] = "query"
    share: bool = True  # [R] one set of weights for the three modalities
    multi_query: bool = True  # one key and value for all heads; false: one per head
    modality_embedding: bool = True


@dataclass
class SCLGConfig:
    """Semantic-centric Label Generation, equations (13) to (15)."""

    enabled: bool = True  # false: every sub-task learns the ground truth
    knn: Positive[int] = 10
    sigma: Positive[float] = 1.0  # [R] width of the Gaussian potential
    # [R] mean | sum of the label shifts over the neighbours
    reduction: Annotated[str, one_of("mean", "sum")] = "mean"
    start_epoch: NotNegative[int] = 2
    # auto | exact | faiss: search method (auto: faiss for large training splits)
    index: Annotated[str, one_of("auto", "exact", "faiss")] = "auto"
    momentum: bool = True  # false: a pseudo label is y + delta of the last epoch alone


@dataclass
class SCCLConfig:
    """Semantic-centric Contrastive Learning, equations (16) to (19)."""

    enabled: bool = True  # false: neither term
    alpha: NotNegative[float] = 0.05  # weight of the intra-sample term; 0 skips it
    beta: NotNegative[float] = 0.05  # weight of the inter-sample term; 0 skips it
    tau: Positive[float] = 0.5
    tau_inter: Positive[float] = 0.5
    # [R] class borders of a score
    bins: Increasing[list[float]] = field(default_factory=lambda: [0.0])


@dataclass
class LossWeights:
    """w_k of equation (21)."""

    M: NotNegative[float] = 1.0
    S: NotNegative[float] = 1.0
    t: NotNegative[float] = 1.0
    a: NotNegative[float] = 1.0
    v: NotNegative[float] = 1.0


@dataclass
class LossConfig:
    """The prediction loss, equation (21)."""

    regression: Annotated[str, one_of("l1", "mse")] = "l1"  # [R] l1 | mse
    multi_task: bool = True  # false: only the multimodal sub-task M
    weights: LossWeights = field(default_factory=LossWeights)


@dataclass
class OptimConfig:
    """AdamW and its schedule."""

    lr_text: NotNegative[float] = 4e-5  # language model
    lr: NotNegative[float] = 5e-4  # everything else
    weight_decay: NotNegative[float] = 1e-3
    # constant | cosine, after the warm-up
    schedule: Annotated[str, one_of("constant", "cosine")] = "constant"
    warmup_epochs: NotNegative[float] = 1.0
    clip: NotNegative[float] = 1.0  # largest norm of the gradient; 0: no clipping


@dataclass
class TrainConfig:
    """The training loop."""

    epochs: Positive[int] = 20
    batch_size: Positive[int] = 32
    # fp32 | bf16 | fp16: of the forward pass
    precision: Annotated[str, one_of("fp32", "bf16", "fp16")] = "fp32"
    cpu: bool = False  # use the CPU even if a GPU is available
    # batches per window; utterances are sorted by length within a window
    bucket: Positive[int] = 100
    check_every: Positive[int] = 50  # steps between two checks for a loss that is not finite
    accumulate: Positive[int] = 1  # micro-batches per batch, to save memory
    patience: NotNegative[int] = 0  # stop after n epochs without a better one; 0: never
    # save a checkpoint at the end of an epoch if the last one is at least this old
    save_seconds: NotNegative[float] = 60.0
    save_every: NotNegative[int] = 0  # steps between two further checkpoints; 0: none


@dataclass
class Config:
    """All keys of a run, set on the command line as ``dataset=demo sclg.knn=5``.

    Defaults must never change: the digests of finished runs omit keys with default values.
    """

    dataset: str = ""  # folder below data/, or a path to a folder with a manifest
    preset: str | None = None  # name in train/presets; null: the one that the card names
    method: str = "semanticmac"
    options: dict[str, Any] = field(default_factory=dict)  # the method's own keys, see its file
    name: str | None = None  # suffix of the run folder's name; null: seed<seed>
    seed: NotNegative[int] = 1
    cache: str | None = None  # feature store, path or URL; null: the one in <stores>/<dataset>
    stores: str = "stores"
    runs: str = "runs"
    width: Positive[int] = 128  # D, the model's width
    dropout: Fraction[float] = 0.1
    text: TextConfig = field(default_factory=TextConfig)
    perceiver: PerceiverConfig = field(default_factory=PerceiverConfig)
    sgfi: SGFIConfig = field(default_factory=SGFIConfig)
    sclg: SCLGConfig = field(default_factory=SCLGConfig)
    sccl: SCCLConfig = field(default_factory=SCCLConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def preset_names() -> list[str]:
    """Return the sorted names of the presets in this package."""
    names = [item.name for item in PRESETS.iterdir()]
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def make_config(preset: str | None, overrides: Sequence[str] = ()) -> Config:
    """Merge the defaults, the preset's YAML and ``key=value`` strings, in this order.

    Raises:
        ValueError: an unknown preset or key, or an invalid value.
    """
    layers: list[Any] = []
    if preset:
        if preset not in preset_names():
            known = ", ".join(preset_names())
            raise ValueError(f"unknown preset {preset!r}; choose from {known}")
        text = (PRESETS / f"{preset}.yaml").read_text(encoding="utf-8")
        layers.append(OmegaConf.create(text))
    layers.append(read_overrides(overrides))
    return _merge(layers)


def choose_config(overrides: Sequence[str]) -> Config:
    """Merge ``key=value`` strings with the preset that they name, else the card's.

    Raises:
        ValueError: same as `make_config`; or ``dataset`` is missing or has no manifest.
    """
    early = make_config(None, overrides)
    if not early.dataset:
        raise ValueError("no dataset: add dataset=NAME, for example dataset=demo")
    preset = early.preset or load_card(early.dataset).preset
    return make_config(preset, [*overrides, f"preset={preset}"])


def check_store(config: Config) -> None:
    """Check that the store's path exists, or the folder of the dataset's stores if it is unset.

    Raises:
        ValueError: no such path.
    """
    if config.cache is None:
        name = load_card(config.dataset).name
        folder = Path(config.stores, name)
        if not folder.is_dir():
            raise ValueError(
                f"no published store of {name!r} in {folder}; run: python -m extract {name}"
            )
    else:
        check_exists(config.cache)


def load_config(run: Path) -> Config:
    """Read the configuration of a run from its folder.

    Raises:
        ValueError: the folder has no ``config.yaml``.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; {run} is not the folder of a run")
    return _merge([OmegaConf.load(path)])


def save_config(config: Config, path: Path) -> None:
    """Write every key with its resolved value as YAML."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)), encoding="utf-8")


def config_digest(config: Config) -> str:
    """Compute the SHA-256 of the keys that affect the results and differ from their defaults.

    A key that is added later with a neutral default changes no digest. The path of the store is
    excluded: a run records the digest of the store itself.
    """
    ours, defaults = _flat_keys(config), _flat_keys(Config())
    keys = {
        key: value
        for key, value in ours.items()
        if key not in WITHOUT_EFFECT and (key not in defaults or value != defaults[key])
    }
    return hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()


def _flat_keys(group: Any, prefix: str = "") -> dict[str, Any]:
    """Return all keys with their values: ``{"sclg.knn": 10, ...}``."""
    keys: dict[str, Any] = {}
    for name, value in vars(group).items():
        inner = is_dataclass(value)
        keys |= _flat_keys(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return keys


def read_options(kind: type[Options], config: Config) -> Options:
    """Merge the defaults of a method's ``Options`` with ``config.options``.

    Raises:
        ValueError: an unknown option, or an invalid value.
    """
    options = merge_keys(kind, [config.options], f"method={config.method}", "options.")
    check_ranges(options, "options.")
    return options


def _merge(layers: Sequence[Any]) -> Config:
    config = merge_keys(Config, layers, "a run")
    if config.train.precision in ("no", "False"):  # the name in release 0.1, and as YAML reads it
        config.train.precision = "fp32"
    check_ranges(config)
    _check_combinations(config)
    return config


def _check_combinations(config: Config) -> None:
    """Raise a ValueError if keys contradict each other."""
    for part, heads in (("perceiver", config.perceiver.heads), ("sgfi", config.sgfi.heads)):
        if config.width % heads:
            raise ValueError(f"width={config.width} is not divisible by {part}.heads={heads}")
    frames, most = config.perceiver.frames, config.perceiver.max_frames
    if frames is not None and frames > most:
        raise ValueError(
            f"key 'perceiver.frames' is {frames}: it must be between 1 and "
            f"perceiver.max_frames={most}"
        )
    if config.text.context_turns and config.text.source == "features":
        raise ValueError("text.context_turns needs a language model: set text.source=model")
