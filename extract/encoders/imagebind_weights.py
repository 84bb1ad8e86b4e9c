"""Read and check ImageBind's checkpoint, and rename its tensors for the encoder's modules.

The checkpoint is a flat mapping of names to tensors for six modalities; only audio and vision are
read. Only tensors are unpickled.
"""

import hashlib
import math
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from torch import Tensor

from cache.store.disk import sha256_of
from extract.sampling import IMAGE_SIZE
from manifests.printing import preview

State = dict[str, Tensor]
Layout = dict[str, tuple[int, ...]]
Modality = Literal["audio", "vision"]

PATCH_SIZE, TUBELET = 14, 2  # pixels, frames
VISION_TOKENS = 1 + (IMAGE_SIZE // PATCH_SIZE) ** 2  # [CLS] and 16 × 16 patches
AUDIO_KERNEL, AUDIO_STRIDE = 16, 10  # of a 128 × 204 spectrogram: the patches overlap
AUDIO_TOKENS = 1 + 12 * 19

MAX_LISTED = 8  # names in one error message


@dataclass(frozen=True)
class ImageBindConfig:
    """The sizes in which the published model and a small one differ; all others are fixed."""

    name: str
    embedding_dim: int
    vision_dim: int
    vision_layers: int
    vision_heads: int
    audio_dim: int
    audio_layers: int
    audio_heads: int


HUGE = ImageBindConfig("imagebind", 1024, 1280, 32, 16, 768, 12, 12)
TINY = ImageBindConfig("imagebind-tiny", 32, 64, 4, 4, 64, 2, 4)


# --- the file ----------------------------------------------------------------------------------


def read(file: Path, layout: Layout) -> State:
    """Read the checkpoint's audio and vision tensors as float32, memory-mapped if possible.

    Tensors that are float32 in the file are views of it: the file must not change while they are
    in use.

    Raises:
        ValueError: the file is truncated, holds more than tensors, or does not match the layout.
    """
    try:
        if file.suffix == ".safetensors":
            state = _read_safetensors(file, layout)
        else:
            # files of PyTorch before 1.6 are not archives and cannot be mapped
            mapped = zipfile.is_zipfile(file)
            state = torch.load(file, map_location="cpu", mmap=mapped, weights_only=True)
    except Exception as error:  # a file of another kind makes the unpickler raise anything
        # PyTorch's own message recommends weights_only=False, which would run code in the file.
        raise ValueError(
            f"{file} ({file.stat().st_size} bytes) is not a checkpoint: truncated, damaged, "
            "another kind of file, or it holds more than tensors and is refused unread"
        ) from error
    check_layout(state, layout, file)
    return {name: state[name].to(torch.float32) for name in layout}


def _read_safetensors(file: Path, layout: Layout) -> State:
    with safe_open(file, framework="pt") as tensors:
        # for other modalities only the names, for the check; safetensors iterates with .keys()
        return {
            name: tensors.get_tensor(name) if name in layout else torch.empty(0)
            for name in tensors.keys()  # noqa: SIM118
        }


def check_layout(state: object, layout: Layout, file: Path) -> None:
    """Check a checkpoint against the layout.

    Raises:
        ValueError: not a mapping of names to tensors, or names are missing, unexpected or have
            another shape; at most eight of each are listed.
    """
    if not isinstance(state, Mapping):
        raise ValueError(
            f"{file} holds a {type(state).__name__}, not a mapping of names to tensors"
        )
    missing = [name for name in layout if name not in state]
    unexpected = [str(name) for name in state if name not in layout and not is_ignored(name)]
    misshaped = [
        f"{name} {_shape(state[name])} instead of {list(shape)}"
        for name, shape in layout.items()
        if name in state and _shape(state[name]) != list(shape)
    ]
    faults = {"missing": missing, "unexpected": unexpected, "wrong shape": misshaped}
    if any(faults.values()):
        lines = [
            f"  {fault}: {preview(names, MAX_LISTED)}" for fault, names in faults.items() if names
        ]
        raise ValueError("\n".join([f"{file} is not the ImageBind checkpoint expected:", *lines]))


def is_ignored(name: object) -> bool:
    """Whether a tensor belongs to a part of the model that is not read: another modality."""
    parts = str(name).split(".")
    return parts[0] == "modality_postprocessors" or (
        parts[0] in ("modality_preprocessors", "modality_trunks", "modality_heads")
        and parts[1] in ("text", "depth", "thermal", "imu")
    )


def _shape(value: object) -> list[int] | str:
    return list(value.shape) if isinstance(value, Tensor) else type(value).__name__


def sha256(file: Path) -> str:
    """The file's SHA-256 in hex (some seconds for 4.5 GB), cached while the file is unchanged.

    It is cached in memory: the folder of the weights is often read-only.
    """
    status = file.stat()
    return _sha256(file.resolve(), status.st_size, status.st_mtime_ns)


@lru_cache
def _sha256(file: Path, size: int, modified: int) -> str:
    return sha256_of(file)


# --- the layout --------------------------------------------------------------------------------


def layout(config: ImageBindConfig) -> Layout:
    """Names and shapes of all audio and vision tensors in the published checkpoint."""
    return dict(_layout(config))


def _layout(config: ImageBindConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    D = config.vision_dim
    stem = "modality_preprocessors.vision"
    yield f"{stem}.cls_token", (1, 1, D)
    yield f"{stem}.rgbt_stem.proj.1.weight", (D, 3, TUBELET, PATCH_SIZE, PATCH_SIZE)
    yield f"{stem}.pos_embedding_helper.pos_embed", (1, VISION_TOKENS, D)
    yield from _norm("modality_trunks.vision.pre_transformer_layer.0", D)
    for i in range(config.vision_layers):
        yield from _block(f"modality_trunks.vision.blocks.{i}", D)
    yield from _norm("modality_heads.vision.0", D)
    yield "modality_heads.vision.2.weight", (config.embedding_dim, D)

    D = config.audio_dim
    stem = "modality_preprocessors.audio"
    yield f"{stem}.cls_token", (1, 1, D)
    yield f"{stem}.rgbt_stem.proj.weight", (D, 1, AUDIO_KERNEL, AUDIO_KERNEL)
    yield from _norm(f"{stem}.rgbt_stem.norm_layer", D)
    yield f"{stem}.pos_embedding_helper.pos_embed", (1, AUDIO_TOKENS, D)
    for i in range(config.audio_layers):
        yield f"modality_trunks.audio.blocks.{i}.attn.bias_k", (1, 1, D)
        yield f"modality_trunks.audio.blocks.{i}.attn.bias_v", (1, 1, D)
        yield from _block(f"modality_trunks.audio.blocks.{i}", D)
    yield from _norm("modality_heads.audio.0", D)
    yield "modality_heads.audio.2.weight", (config.embedding_dim, D)


def _block(prefix: str, D: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{prefix}.attn.in_proj_weight", (3 * D, D)
    yield f"{prefix}.attn.in_proj_bias", (3 * D,)
    for linear, outputs, inputs in (
        ("attn.out_proj", D, D),
        ("mlp.fc1", 4 * D, D),
        ("mlp.fc2", D, 4 * D),
    ):
        yield f"{prefix}.{linear}.weight", (outputs, inputs)
        yield f"{prefix}.{linear}.bias", (outputs,)
    yield from _norm(f"{prefix}.norm_1", D)
    yield from _norm(f"{prefix}.norm_2", D)


def _norm(prefix: str, D: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{prefix}.weight", (D,)
    yield f"{prefix}.bias", (D,)


# --- names of the modules ------------------------------------------------------------------------

AUDIO_NAMES = {
    "modality_preprocessors.audio.cls_token": "cls_token",
    "modality_preprocessors.audio.rgbt_stem.proj": "stem",
    "modality_preprocessors.audio.rgbt_stem.norm_layer": "stem_norm",
    "modality_preprocessors.audio.pos_embedding_helper.pos_embed": "positions",
    "modality_trunks.audio.blocks": "layers",
    "modality_heads.audio.0": "norm",
    "modality_heads.audio.2": "projection",
    ".attn.": ".self_attn.",
    ".mlp.fc1": ".linear1",
    ".mlp.fc2": ".linear2",
    ".norm_1": ".norm1",
    ".norm_2": ".norm2",
}
CLIP_NAMES = {
    "modality_preprocessors.vision.cls_token": "vision_model.embeddings.class_embedding",
    "modality_preprocessors.vision.rgbt_stem.proj.1": "vision_model.embeddings.patch_embedding",
    "modality_preprocessors.vision.pos_embedding_helper.pos_embed": (
        "vision_model.embeddings.position_embedding.weight"
    ),
    "modality_trunks.vision.pre_transformer_layer.0": "vision_model.pre_layrnorm",
    "modality_trunks.vision.blocks": "vision_model.encoder.layers",
    "modality_heads.vision.0": "vision_model.post_layernorm",
    "modality_heads.vision.2": "visual_projection",
    ".attn.": ".self_attn.",
    ".norm_1": ".layer_norm1",
    ".norm_2": ".layer_norm2",
}


def for_audio(state: State) -> State:
    """Rename the audio trunk's tensors to the names of ``AudioTrunk``."""
    return {
        _rename(name, AUDIO_NAMES): tensor
        for name, tensor in state.items()
        if name.split(".")[1] == "audio"
    }


def for_clip(state: State) -> State:
    """Rename and reshape the vision trunk's tensors for ``CLIPVisionModelWithProjection``.

    The kernel over two frames ``[D, 3, 2, 14, 14]`` becomes one over six channels, frame by
    frame, and each attention's joint projection is split in three.
    """
    ours: State = {}
    for name, tensor in state.items():
        if name.split(".")[1] != "vision":
            continue
        new = _rename(name, CLIP_NAMES)
        if ".in_proj_" in new:
            for part, chunk in zip("qkv", tensor.chunk(3), strict=True):
                ours[new.replace("in_proj_", f"{part}_proj.")] = chunk
        elif new.endswith("patch_embedding.weight"):
            ours[new] = tensor.transpose(1, 2).flatten(1, 2)
        elif new.endswith("class_embedding"):
            ours[new] = tensor.flatten()
        elif new.endswith("position_embedding.weight"):
            ours[new] = tensor.squeeze(0)
        else:
            ours[new] = tensor
    return ours


def _rename(name: str, names: Mapping[str, str]) -> str:
    for theirs, ours in names.items():
        name = name.replace(theirs, ours)
    return name


# --- without a file ----------------------------------------------------------------------------


def seeded(layout: Layout, seed: int) -> State:
    """Create the parameters of an untrained model, bit-identical on every machine.

    They are uniform, because uniform numbers are generated exactly; normal ones need a logarithm
    whose last digit depends on the processor.
    """
    generator = torch.Generator().manual_seed(seed)
    state: State = {}
    for name, shape in sorted(layout.items()):
        uniform = 2 * torch.rand(shape, generator=generator) - 1
        if "norm" in name or "pre_transformer_layer" in name or "heads.audio.0" in name:
            state[name] = uniform / 8 + float(name.endswith("weight"))
        else:
            fan_in = math.prod(shape[1:]) if name.endswith("weight") else 64
            state[name] = uniform * (3 / fan_in) ** 0.5
    return state


def sha256_of_state(state: State) -> str:
    """SHA-256 of the names and bytes of tensors, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()
