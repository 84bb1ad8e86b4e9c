"""Pixels against Pillow, samples against SciPy."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile
from scipy.signal import resample_poly

from extract.decode import decode
from extract.sampling import IMAGE_SIZE, SAMPLE_RATE, Sampling
from tests.test_decode import ffmpeg

TWO = Sampling(fps=2.0, window_s=2.0)


def scene(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Create a picture with a photograph's 1/f spectrum, some hard edges and all colours."""
    rng = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    falloff = 1 / np.maximum(np.hypot(fy, fx), 1 / max(width, height))
    planes = []
    for _ in range(3):
        noise = np.fft.rfft2(rng.normal(size=(height, width)))
        planes.append(np.fft.irfft2(noise * falloff, (height, width)))
    picture = np.stack(planes, -1)
    picture = 128 + 45 * (picture - picture.mean((0, 1))) / picture.std((0, 1))
    picture[height // 4 : height // 2, width // 3 : width // 2] += [80, -60, 40]
    return picture.clip(0, 255).astype(np.uint8)


def by_pillow(picture: np.ndarray) -> np.ndarray:
    """Resize and crop with Pillow, as torchvision's Resize(224) and CenterCrop(224)."""
    height, width = picture.shape[:2]
    short = min(width, height)
    size = (IMAGE_SIZE * width // short, IMAGE_SIZE * height // short)
    image = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - IMAGE_SIZE) / 2), round((size[1] - IMAGE_SIZE) / 2)
    return np.asarray(image.crop((left, top, left + IMAGE_SIZE, top + IMAGE_SIZE)))


@pytest.mark.parametrize(
    "size", [(1280, 720), (640, 480), (480, 640), (300, 224), (160, 120), (853, 480)]
)
def test_resize_and_crop_are_pillows(tmp_path, size):
    """Down and up: 1 level on average, 99.9 percent of the values within 4 of 255."""
    picture = scene(*size)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    ffmpeg("-i", tmp_path / "picture.png", "-c:v", "ffv1", "-pix_fmt", "gbrp", tmp_path / "p.mkv")
    ours = decode(tmp_path / "p.mkv", TWO).images[0].astype(int)
    apart = np.abs(ours - by_pillow(picture))
    assert apart.mean() <= 1.0
    assert np.quantile(apart, 0.999) <= 4


def test_the_crop_is_taken_before_the_resize(tmp_path):
    picture = scene(640, 480)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    ffmpeg("-i", tmp_path / "picture.png", "-c:v", "ffv1", "-pix_fmt", "gbrp", tmp_path / "p.mkv")
    ours = decode(tmp_path / "p.mkv", TWO, crop=(0.5, 0.25, 0.5, 0.5)).images[0].astype(int)
    apart = np.abs(ours - by_pillow(picture[120:360, 320:]))
    assert apart.mean() <= 1.0
    assert np.quantile(apart, 0.999) <= 4


def chirp(path: Path, rate: int, seconds: float, to: float) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    sound = 0.5 * np.sin(2 * np.pi * (50 * time + (to - 50) / (2 * seconds) * time**2))
    wavfile.write(path, rate, sound.astype(np.float32))
    return sound


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 96000])
def test_resampling_is_scipys(tmp_path, rate):
    """A chirp from 50 Hz to 0.8 of the band: within 1 percent of full scale, 45 dB on average."""
    to = 0.8 * min(rate, SAMPLE_RATE) / 2
    sound = chirp(tmp_path / "chirp.wav", rate, 2.0, to)
    divisor = np.gcd(rate, SAMPLE_RATE)
    long = ("kaiser", 10.0)
    expected = resample_poly(sound, SAMPLE_RATE // divisor, rate // divisor, window=long)
    ours = decode(tmp_path / "chirp.wav", TWO).audio
    assert abs(len(ours) - len(expected)) <= 2
    middle = slice(400, 31000)
    error = ours[middle] - expected[middle]
    assert np.abs(error).max() <= 0.01 * 0.5 * 2
    assert 20 * np.log10(expected[middle].std() / error.std()) >= 45


@pytest.mark.parametrize("fps", [1.0, 2.0, 5.0, 10.0])
@pytest.mark.parametrize("window_s", [0.5, 0.7, 1.0])
def test_a_window_is_centred_for_any_batch_of_frames(fps, window_s):
    sampling, size = Sampling(fps=fps, window_s=window_s), round(window_s * SAMPLE_RATE)
    audio = np.random.default_rng(0).normal(size=50_000).astype(np.float32)
    padded = np.pad(audio, (size // 2, 20 * SAMPLE_RATE))
    begins = [round(i / fps * SAMPLE_RATE) for i in range(20)]
    expected = np.stack([padded[begin : begin + size] for begin in begins])
    assert np.array_equal(sampling.windows(audio, 20), expected)
    for first in range(0, 20, 6):
        count = min(6, 20 - first)
        begin, end = sampling.samples(first, count)
        begin = max(0, begin)
        piece = sampling.windows(audio[begin:end], count, first, begin)
        assert np.array_equal(piece, expected[first : first + count])
