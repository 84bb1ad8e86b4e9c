"""The filter bank against Kaldi's own (kaldi-native-fbank) and against a slow float64 DFT."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from extract.fbank import LOG_FLOOR, SETTINGS, TARGET_FRAMES, fbank, spectrogram


def waves(seed: int, samples: int, n: int = 2) -> torch.Tensor:
    """Noise, a tone and an offset: energy in every mel bin, at different levels."""
    rng = np.random.default_rng(seed)
    times = np.arange(samples) / 16000
    tones = np.sin(2 * np.pi * rng.uniform(50, 7500, (n, 1)) * times)
    noise = rng.normal(size=(n, samples)) * rng.uniform(1e-3, 0.2, (n, 1))
    wave = 0.3 * tones + noise + rng.uniform(-0.1, 0.1, (n, 1))
    return torch.from_numpy(wave.clip(-1, 1).astype(np.float32))


def reference(wave: np.ndarray) -> np.ndarray:
    """Compute the definition in float64 loops: DFT sums, one triangle at a time."""
    wave = wave.astype(np.float64) - wave.astype(np.float64).mean()

    def mel(hertz: float) -> float:
        return 2595.0 * math.log10(1 + hertz / 700)

    step = (mel(8000) - mel(20)) / 129
    angle = -2j * np.pi * np.outer(np.arange(400), np.arange(256)) / 512
    rows = []
    for start in range(0, len(wave) - 399, 160):
        frame = wave[start : start + 400]
        frame = frame - frame.mean()
        shaped = frame.copy()
        for i in range(1, 400):
            shaped[i] -= 0.97 * frame[i - 1]
        shaped[0] -= 0.97 * frame[0]
        shaped *= [0.5 - 0.5 * math.cos(2 * math.pi * i / 399) for i in range(400)]
        power = np.abs(shaped @ np.exp(angle)) ** 2
        row = []
        for m in range(128):
            left, centre, right = (mel(20) + (m + k) * step for k in range(3))
            energy = 0.0
            for k in range(256):
                at = mel(k * 16000 / 512)
                if left < at < right:
                    share = (at - left) if at <= centre else (right - at)
                    energy += power[k] * share / step
            row.append(math.log(max(energy, 2.0**-23)))
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("seconds", [0.5, 1.0, 2.0, 2.5])
def test_equals_kaldi(seconds):
    knf = pytest.importorskip("kaldi_native_fbank")
    options = knf.FbankOptions()
    options.frame_opts.dither = 0
    options.frame_opts.window_type = "hanning"
    options.frame_opts.samp_freq = 16000
    options.frame_opts.snip_edges = True
    options.mel_opts.num_bins = 128
    options.mel_opts.low_freq = 20
    options.mel_opts.high_freq = 8000
    wave = waves(int(seconds * 10), int(seconds * 16000))
    ours = fbank(wave)
    for row, got in zip(wave, ours, strict=True):
        online = knf.OnlineFbank(options)
        online.accept_waveform(16000, (row - row.mean()).tolist())
        online.input_finished()
        theirs = np.stack([online.get_frame(i) for i in range(online.num_frames_ready)])
        assert got.shape == theirs.shape
        # both are float32: a bin 100 dB below its frame's loudest keeps three digits in either
        np.testing.assert_allclose(got, theirs, atol=5e-3, rtol=0)
        assert np.abs(got.numpy() - theirs).mean() < 1e-4


def test_equals_the_definition_in_float64():
    wave = waves(3, 1600, n=1)
    np.testing.assert_allclose(fbank(wave)[0], reference(wave[0].numpy()), atol=1e-3, rtol=0)


@given(st.integers(400, 40000))
@settings(max_examples=20, deadline=None)
def test_frames_only_where_they_fit_completely(samples):
    assert fbank(torch.zeros(1, samples)).shape == (1, 1 + (samples - 400) // 160, 128)
    assert spectrogram(torch.zeros(1, samples)).shape == (1, TARGET_FRAMES, 128)


def test_silence_and_offset_give_the_floor():
    silent = fbank(torch.full((1, 32000), 0.25))
    assert silent.shape == (1, 198, 128)
    assert torch.all(silent == math.log(LOG_FLOOR))


def test_padding_comes_before_the_normalisation():
    mel = spectrogram(waves(0, 32000))
    assert torch.all(mel[:, 198:] == torch.tensor(4.268) / 9.138)
    assert torch.equal(mel[:, :198], (fbank(waves(0, 32000)) + 4.268) / 9.138)
    assert torch.equal(
        spectrogram(waves(0, 48000)), (fbank(waves(0, 48000))[:, :204] + 4.268) / 9.138
    )


def test_windows_are_independent_and_repeatable():
    wave = waves(1, 16000, n=5)
    together = fbank(wave)
    assert torch.equal(together, fbank(wave.clone()))
    alone = torch.cat([fbank(row[None]) for row in wave])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


def test_the_input_is_not_modified_and_gradients_still_work_afterwards():
    wave = waves(2, 16000)
    kept = wave.clone()
    with torch.inference_mode():
        fbank(wave)
    assert torch.equal(wave, kept)
    fbank(wave.requires_grad_()).sum().backward()
    assert wave.grad is not None


def test_a_window_shorter_than_a_frame_is_refused():
    with pytest.raises(ValueError, match="399 samples"):
        fbank(torch.zeros(1, 399))


def test_settings_are_plain_values():
    assert all(isinstance(value, int | float | str | bool) for value in SETTINGS.values())
