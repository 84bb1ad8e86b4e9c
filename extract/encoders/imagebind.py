"""ImageBind's audio and vision encoders, built from layers of PyTorch and transformers.

ImageBind (Girdhar et al., CVPR 2023) has one transformer per modality. Its vision trunk is CLIP's,
applied to two frames stacked to six channels, so it *is* transformers'
``CLIPVisionModelWithProjection``. Its audio trunk takes the log-mel spectrogram as an image with
one channel and is a stack of ``nn.TransformerEncoderLayer`` whose attention has a learned extra key
and value. The original code is not needed; a test compares the two.

The published weights, and the original code, are licensed CC BY-NC-SA 4.0: no commercial use.

Shapes: n inputs, d the embedding's width, D a trunk's width, L tokens.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from extract import fbank
from extract.encoders import imagebind_weights as weights
from extract.encoders.checkpoint import find_checkpoint
from extract.encoders.imagebind_package import package_trunks
from extract.encoders.imagebind_weights import (
    AUDIO_KERNEL,
    AUDIO_STRIDE,
    AUDIO_TOKENS,
    HUGE,
    PATCH_SIZE,
    TINY,
    TUBELET,
    VISION_TOKENS,
    ImageBindConfig,
    Modality,
)
from extract.sampling import IMAGE_SIZE

MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, RGB
STD = (0.26862954, 0.26130258, 0.27577711)
AUDIO_SCALE = 20.0  # the published temperature of audio

VERSION = 1  # incremented whenever the same input gives other values


class AudioTrunk(nn.Module):
    """Audio transformer: normalised spectrograms ``[n, 1, 128, 204]`` to embeddings ``[n, d]``."""

    def __init__(self, config: ImageBindConfig):
        super().__init__()
        D = config.audio_dim
        self.stem = nn.Conv2d(1, D, AUDIO_KERNEL, AUDIO_STRIDE, bias=False)
        self.stem_norm = nn.LayerNorm(D, eps=1e-5)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, D))
        self.positions = nn.Parameter(torch.zeros(1, AUDIO_TOKENS, D))
        self.layers = nn.ModuleList(
            audio_layer(D, config.audio_heads) for _ in range(config.audio_layers)
        )
        self.norm = nn.LayerNorm(D, eps=1e-6)
        self.projection = nn.Linear(D, config.embedding_dim, bias=False)

    def forward(self, spectrograms: Tensor) -> Tensor:
        """Embed; between the layers tokens are the first axis."""
        patches_nLD = self.stem_norm(self.stem(spectrograms).flatten(2).transpose(1, 2))
        cls_n1D = self.cls_token.expand(len(patches_nLD), -1, -1)
        x_LnD = (torch.cat([cls_n1D, patches_nLD], 1) + self.positions).transpose(0, 1)
        for layer in self.layers:
            x_LnD = layer(x_LnD)
        return self.projection(self.norm(x_LnD[0]))


def audio_layer(dim: int, heads: int) -> nn.TransformerEncoderLayer:
    """A pre-norm layer whose attention has a learned key and value besides those of the tokens.

    The layer is sequence-first on purpose: without gradients, batch-first layers take a fused
    path that silently ignores the learned key and value.
    """
    layer = nn.TransformerEncoderLayer(
        dim,
        heads,
        4 * dim,
        dropout=0.0,
        activation="gelu",
        layer_norm_eps=1e-6,
        batch_first=False,
        norm_first=True,
    )
    layer.self_attn = nn.MultiheadAttention(dim, heads, add_bias_kv=True, batch_first=False)
    return layer


class VisionTrunk(nn.Module):
    """Vision transformer: normalised pairs of frames ``[n, 2, 3, 224, 224]`` to ``[n, d]``."""

    def __init__(self, config: ImageBindConfig):
        super().__init__()
        self.clip = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=config.vision_dim,
                intermediate_size=4 * config.vision_dim,
                projection_dim=config.embedding_dim,
                num_hidden_layers=config.vision_layers,
                num_attention_heads=config.vision_heads,
                num_channels=3 * TUBELET,
                image_size=IMAGE_SIZE,
                patch_size=PATCH_SIZE,
                hidden_act="gelu",
                layer_norm_eps=1e-6,
            )
        )

    def forward(self, frames: Tensor) -> Tensor:
        """Embed; the kernel over two frames is applied to six channels."""
        return self.clip(frames.flatten(1, 2)).image_embeds


class ImageBind:
    """A frozen ImageBind: audio windows and images to the outputs of its two heads.

    It returns each head's output *before* ImageBind's postprocessor; :meth:`postprocess` derives
    the normalised embedding from it.

    Attributes:
        name: ``"imagebind"`` or ``"imagebind-tiny"``.
        widths: columns per embedding, by modality.
        weights_sha256: SHA-256 of the checkpoint file (of the tiny model: of its parameters).
        settings: everything besides weights and code that changes a value, JSON-able.
        version: version of the code that prepares the inputs.
        takes_pairs: whether a pair of successive frames can be one input: True.
        longest_window_s: seconds of sound that the spectrogram holds.
        batch_size: inputs per batch that suit the device, by modality.
    """

    version = VERSION
    takes_pairs = True
    longest_window_s = fbank.LONGEST_S

    def __init__(
        self,
        config: ImageBindConfig,
        audio: nn.Module,
        vision: nn.Module,
        weights_sha256: str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.name = config.name
        self.widths = {"audio": config.embedding_dim, "vision": config.embedding_dim}
        self.weights_sha256 = weights_sha256
        self.device, self.dtype = torch.device(device), dtype
        on_gpu = self.device.type != "cpu"
        self.batch_size = {"audio": 128, "vision": 64} if on_gpu else {"audio": 16, "vision": 16}
        # backend and device are not included: they differ only by rounding
        self.settings: dict[str, Any] = {
            "version": VERSION,
            "architecture": asdict(config),
            "audio": fbank.SETTINGS,
            "vision": {"size": IMAGE_SIZE, "frames": TUBELET, "mean": list(MEAN), "std": list(STD)},
            "precision": str(dtype).removeprefix("torch."),
            "postprocessor": False,
        }
        self.audio_trunk = _freeze(audio, self.device, dtype)
        self.vision_trunk = _freeze(vision, self.device, dtype)
        self._mean = torch.tensor(MEAN, device=self.device).view(3, 1, 1)
        self._std = torch.tensor(STD, device=self.device).view(3, 1, 1)

    @torch.inference_mode()
    def audio(self, waveforms: Tensor) -> Tensor:
        """Embed audio windows.

        Args:
            waveforms: float32 ``[n, samples]``, 16 kHz mono, full scale ±1; 25 ms or longer.

        Returns:
            float32 ``[n, d]`` on the encoder's device.
        """
        spectrograms_nFM = fbank.spectrogram(waveforms.to(self.device))
        return self._embed(self.audio_trunk, spectrograms_nFM.transpose(1, 2).unsqueeze(1))

    @torch.inference_mode()
    def vision(self, images: Tensor) -> Tensor:
        """Embed images, or pairs of successive frames.

        Args:
            images: uint8 RGB, single images ``[n, 224, 224, 3]`` (each is used twice, as ImageBind
                does with images) or pairs ``[n, 2, 224, 224, 3]``.

        Returns:
            float32 ``[n, d]`` on the encoder's device.

        Raises:
            ValueError: images have another shape or dtype.
        """
        size = (IMAGE_SIZE, IMAGE_SIZE, 3)
        if images.dtype != torch.uint8 or images.shape[1:] not in (size, (TUBELET, *size)):
            raise ValueError(
                f"{self.name} takes uint8 images [n, {IMAGE_SIZE}, {IMAGE_SIZE}, 3] or pairs of "
                f"them [n, 2, ...], not {images.dtype} {list(images.shape)}"
            )
        pixels = images.to(self.device).movedim(-1, -3).float() / 255
        pixels = (pixels - self._mean) / self._std
        if pixels.ndim == 4:
            pixels = pixels.unsqueeze(1).expand(-1, TUBELET, -1, -1, -1)
        return self._embed(self.vision_trunk, pixels)

    def _embed(self, trunk: nn.Module, inputs: Tensor) -> Tensor:
        mixed = self.dtype != torch.float32
        # allow_tf32=False: cuDNN's convolutions would round float32 to TF32, 1e-3 instead of 1e-6
        with (
            torch.autocast(self.device.type, self.dtype if mixed else None, enabled=mixed),
            torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
        ):
            return trunk(inputs).float()

    @staticmethod
    def postprocess(values: Tensor, modality: Modality) -> Tensor:
        """Normalise a head's output to unit length, and scale audio by 20, as ImageBind does.

        Args:
            values: ``[..., d]``, as returned by the encoder or read from a store.
            modality: ``"audio"`` or ``"vision"``.

        Returns:
            float32 ``[..., d]`` of norm 20 (audio) or 1 (vision).
        """
        unit = F.normalize(values.float(), dim=-1)
        return AUDIO_SCALE * unit if modality == "audio" else unit


def load(
    path: str | Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    backend: str = "transformers",
    config: ImageBindConfig = HUGE,
) -> ImageBind:
    """Load the encoder with the weights of a published checkpoint.

    Args:
        path: ``imagebind_huge.pth``, or the same tensors as ``.safetensors``. None: the file in
            ``$SEMANTICMAC_IMAGEBIND``, else ``~/.cache/semanticmac/imagebind_huge.pth``.
        device: where to run.
        dtype: float32, or bfloat16 / float16 for mixed precision: matrix products in that type,
            norms, softmax and the residual stream in float32.
        backend: ``"package"`` runs the modules of the installed ``imagebind`` package instead.
        config: sizes of the checkpoint.

    Raises:
        ValueError: no such file, a damaged file, or the checkpoint of another model; the package
            ``imagebind`` is not installed.
    """
    file = find_checkpoint(path)
    state = weights.read(file, weights.layout(config))
    assemble = package_trunks if backend == "package" else assemble_trunks
    audio, vision = assemble(state, config)
    return ImageBind(config, audio, vision, weights.sha256(file), device, dtype)


def tiny(
    device: torch.device | str = "cpu", seed: int = 0, dtype: torch.dtype = torch.float32
) -> ImageBind:
    """Create a small, untrained ImageBind that runs every step of the real one, for tests."""
    state = weights.seeded(weights.layout(TINY), seed)
    audio, vision = assemble_trunks(state, TINY)
    return ImageBind(TINY, audio, vision, weights.sha256_of_state(state), device, dtype)


def assemble_trunks(
    state: weights.State, config: ImageBindConfig
) -> tuple[AudioTrunk, VisionTrunk]:
    """Build the trunks around the checkpoint's tensors, without a copy or an initialisation."""
    with torch.device("meta"):
        audio, vision = AudioTrunk(config), VisionTrunk(config)
    audio.load_state_dict(weights.for_audio(state), assign=True)
    vision.clip.load_state_dict(weights.for_clip(state), assign=True)
    # the only tensor that is not in the checkpoint
    vision.clip.vision_model.embeddings.position_ids = torch.arange(VISION_TOKENS)[None]
    return audio, vision


def _freeze(trunk: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Prepare a trunk for inference; casts its weights once, instead of autocast at each call."""
    if dtype != torch.float32:
        for module in trunk.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d | nn.MultiheadAttention):
                module.to(dtype)
    return trunk.to(device).eval().requires_grad_(False)
