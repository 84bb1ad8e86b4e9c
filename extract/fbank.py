"""Compute Kaldi's log-mel filter bank for batches of windows, and ImageBind's spectrogram.

Every step follows Kaldi's ``compute-fbank-feats`` with HTK-compatible settings: frames only where
they fit completely (``snip_edges``), DC removed and pre-emphasis applied in each frame, a symmetric
Hanning window, zero-padding to 512 samples, the power spectrum, triangular filters spaced evenly
on the mel scale, natural logarithm. Dither is zero, so equal samples give equal features.

Shapes: N windows, S samples, F frames, L samples per frame, K frequencies, M mel bins.
"""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from extract.sampling import SAMPLE_RATE

FRAME_LENGTH = 400  # samples: 25 ms at 16 kHz
FRAME_SHIFT = 160  # samples: 10 ms
N_FFT = 512
MEL_BINS = 128
LOW_HZ, HIGH_HZ = 20.0, 8000.0
PREEMPHASIS = 0.97
LOG_FLOOR = torch.finfo(torch.float32).eps  # 1.19e-7

TARGET_FRAMES = 204  # ImageBind's audio trunk takes 2.04 s, for windows of any length
LONGEST_S = TARGET_FRAMES * FRAME_SHIFT / SAMPLE_RATE
MEAN, STD = -4.268, 9.138  # of AudioSet's log-mel values, from ImageBind's training

SETTINGS = {
    "sample_rate": SAMPLE_RATE,
    "window_mean_removed": True,
    "frame_length": FRAME_LENGTH,
    "frame_shift": FRAME_SHIFT,
    "frame_dc_removed": True,
    "preemphasis": PREEMPHASIS,
    "window": "hanning",
    "n_fft": N_FFT,
    "power": True,
    "mel_bins": MEL_BINS,
    "low_hz": LOW_HZ,
    "high_hz": HIGH_HZ,
    "log_floor": LOG_FLOOR,
    "dither": 0.0,
    "snip_edges": True,
    "target_frames": TARGET_FRAMES,
    "mean": MEAN,
    "std": STD,
}
"""Every setting that changes a value; part of the encoder's settings and of a store's digest."""


def fbank(waveforms_NS: Tensor) -> Tensor:
    """Compute the log-mel energies of each window, after subtracting its mean.

    Args:
        waveforms_NS: float32 samples at 16 kHz, full scale ±1, one window per row.

    Returns:
        float32 ``[N, F, M]`` with ``F = 1 + (S - 400) // 160`` (198 for 2 s) and ``M = 128``.

    Raises:
        ValueError: a window is shorter than one frame of 25 ms.
    """
    samples = waveforms_NS.shape[-1]
    if samples < FRAME_LENGTH:
        raise ValueError(
            f"an audio window of {samples} samples is shorter than one frame "
            f"({FRAME_LENGTH} samples, 25 ms at 16 kHz): choose a longer window"
        )
    window_L, mel_KM = _constants(waveforms_NS.device)
    waveforms_NS = waveforms_NS - waveforms_NS.mean(-1, keepdim=True)
    frames_NFL = waveforms_NS.unfold(-1, FRAME_LENGTH, FRAME_SHIFT)
    frames_NFL = frames_NFL - frames_NFL.mean(-1, keepdim=True)
    # before a frame's first sample, the first sample is repeated
    previous_NFL = torch.cat([frames_NFL[..., :1], frames_NFL[..., :-1]], -1)
    frames_NFL = (frames_NFL - PREEMPHASIS * previous_NFL) * window_L
    spectrum_NFK = torch.fft.rfft(frames_NFL, N_FFT)
    power_NFK = spectrum_NFK.real.square() + spectrum_NFK.imag.square()
    return (power_NFK @ mel_KM).clamp_min(LOG_FLOOR).log()


def spectrogram(waveforms_NS: Tensor) -> Tensor:
    """Compute ImageBind's audio input: the filter bank, cut or padded to 204 frames, normalised.

    Padding precedes the normalisation, as in ImageBind's training, so a padded value is
    ``4.268 / 9.138 = 0.467``, not zero.

    Args:
        waveforms_NS: as for :func:`fbank`.

    Returns:
        float32 ``[N, 204, 128]``.
    """
    mel_NFM = fbank(waveforms_NS)[:, :TARGET_FRAMES]
    padded_NFM = F.pad(mel_NFM, (0, 0, 0, TARGET_FRAMES - mel_NFM.shape[1]))
    return (padded_NFM - MEAN) / STD


@lru_cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """The Hanning window ``[L]`` and the mel filters ``[K = 257, M]`` on a device."""
    # an inference tensor in the cache would raise in a later call that records gradients
    with torch.inference_mode(False):
        window = torch.from_numpy(np.hanning(FRAME_LENGTH).astype(np.float32))
        return window.to(device), torch.from_numpy(_mel_filters()).to(device)


def _mel_filters() -> np.ndarray:
    """Mel filters: triangles of height 1, evenly spaced on the mel scale: float32 ``[K, M]``."""
    low, high = _mel(np.array([LOW_HZ, HIGH_HZ]))
    edges = np.linspace(low, high, MEL_BINS + 2)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    bins = _mel(np.arange(N_FFT // 2 + 1) * SAMPLE_RATE / N_FFT)[:, None]
    rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
    filters = np.minimum(rising, falling).clip(min=0)
    filters[-1] = 0  # Kaldi omits the Nyquist bin
    return filters.astype(np.float32)


def _mel(hertz: np.ndarray) -> np.ndarray:
    """Convert hertz to Kaldi's mel scale."""
    return 1127.0 * np.log1p(hertz / 700.0)
