"""Synthesise a voice: a glottal pulse train through the formants of the sentence's vowels.

The sentiment sets pitch, its range, loudness and brightness (the tempo is the plan's); the
speaker's own pitch and vocal tract are added, so neither alone determines the sentiment.
"""

from dataclasses import dataclass

import numpy as np

from manifests.demo.plan import FPS, DemoClip
from manifests.demo.sentences import syllables

SAMPLE_RATE = 24_000  # Hz: nothing is synthesised above 9 kHz
WINDOW = 480  # samples, 20 ms, half overlapping
LEAD_IN = 0.25  # s of silence before the first syllable
# First four formants in Hz of an average vocal tract.
FORMANTS = {
    "a": (730, 1200, 2500, 3500),
    "e": (540, 1800, 2500, 3500),
    "i": (300, 2250, 3000, 3700),
    "o": (480, 900, 2450, 3400),
    "u": (330, 900, 2300, 3300),
}
BANDWIDTHS = np.array([80.0, 100.0, 150.0, 220.0])  # Hz


@dataclass(frozen=True)
class Voice:
    """The sound of a clip, and the opening of the mouth that goes with it."""

    waveform: np.ndarray  # [samples] float64 in (-1, 1), at SAMPLE_RATE
    opening: np.ndarray  # [frames] float64 in [0, 1]: how far the mouth is open in each image


def speak(clip: DemoClip) -> Voice:
    """Return the voice of one clip; it depends on nothing but the clip."""
    rng = np.random.default_rng([*clip.seed, 0])
    samples = round(clip.duration * SAMPLE_RATE)
    time = np.arange(samples) / SAMPLE_RATE
    vowels = syllables(clip.text)
    mood = clip.voice_sentiment / 3 + rng.normal(0, 0.2)

    onsets = LEAD_IN + (np.arange(len(vowels)) + rng.uniform(-0.12, 0.12, len(vowels))) / clip.rate
    stress = rng.uniform(0.6, 1, len(vowels))
    loudness = _bumps(time, onsets + 0.5 / clip.rate, 0.3 / clip.rate, stress)
    pitch = _pitch(clip, mood, time, onsets, stress, rng)
    excitation = _pulses(pitch) + _breath(pitch, mood, rng)
    voiced = _filter(excitation, time, vowels, onsets, clip, mood) * loudness
    noise = rng.normal(0, 1, samples)
    hiss = np.diff(noise, prepend=0.0) * _bumps(time, onsets, 0.02, stress) * 0.02

    level = 0.16 * 10 ** (5 * mood / 20)  # 10 dB from one end of the sentiment to the other
    waveform = level * (voiced / np.sqrt(np.mean(voiced**2)) * 0.35 + hiss)
    waveform += rng.normal(0, 0.0015, samples)  # the room
    images = np.arange(clip.frames) / FPS
    return Voice(np.tanh(waveform), np.interp(images, time, np.clip(loudness, 0, 1)))


def _bumps(time: np.ndarray, centres: np.ndarray, width: float, heights: np.ndarray) -> np.ndarray:
    """Return the sum of Gaussian bumps over time: [samples]."""
    total = np.zeros_like(time)
    for centre, height in zip(centres, heights, strict=True):
        total += height * np.exp(-0.5 * ((time - centre) / width) ** 2)
    return total


def _pitch(
    clip: DemoClip,
    mood: float,
    time: np.ndarray,
    onsets: np.ndarray,
    stress: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the fundamental frequency in Hz at every sample."""
    spoken = (time - onsets[0]) / (onsets[-1] - onsets[0] + 1 / clip.rate)
    wobble = np.interp(time, np.linspace(0, time[-1], 12), rng.normal(0, 0.25, 12))
    accents = _bumps(time, onsets + 0.3 / clip.rate, 0.35 / clip.rate, (stress - 0.6) * 2.5)
    reach = 2.0 + 3.2 * (mood + 1) / 2 * 1.5  # semitones of an accent: sad speech is flat
    # Glad speech ends high, sad speech low.
    melody = reach * (accents - 0.4) + (1.6 * mood - 1.4) * np.clip(spoken, 0, 1.1)
    semitones = 3.5 * mood + melody + wobble
    return clip.speaker.pitch * 2 ** (semitones / 12)


def _pulses(pitch: np.ndarray) -> np.ndarray:
    """Return a band-limited pulse train (a Dirichlet kernel): a moving pitch does not alias."""
    phase = np.cumsum(pitch) / SAMPLE_RATE
    harmonics = 2 * np.floor(9000 / pitch) + 1
    sine = np.sin(np.pi * phase)
    safe = np.where(np.abs(sine) < 1e-6, 1.0, sine)
    kernel = np.sin(np.pi * harmonics * phase) / (harmonics * safe)
    return np.where(np.abs(sine) < 1e-6, 1.0, kernel)


def _breath(pitch: np.ndarray, mood: float, rng: np.random.Generator) -> np.ndarray:
    """Return the aspiration noise: stronger in a low mood."""
    return rng.normal(0, 0.02 * (1.6 - mood), len(pitch))


def _filter(
    excitation: np.ndarray,
    time: np.ndarray,
    vowels: list[str],
    onsets: np.ndarray,
    clip: DemoClip,
    mood: float,
) -> np.ndarray:
    """Shape windows of the excitation with the vocal tract's resonances and overlap-add them."""
    hop = WINDOW // 2
    windows = len(excitation) // hop + 1
    padded = np.pad(excitation, (hop, hop + WINDOW))
    index = np.arange(windows)[:, None] * hop + np.arange(WINDOW)
    hann = np.sin(np.pi * (np.arange(WINDOW) + 0.5) / WINDOW) ** 2
    spectra = np.fft.rfft(padded[index] * hann, 2 * WINDOW, axis=1)

    at = np.arange(windows) * hop / SAMPLE_RATE
    middles = onsets + 0.5 / clip.rate
    table = np.array([FORMANTS[vowel] for vowel in vowels], dtype=float)
    # A smile shortens the tract a little: the formants rise with the mood.
    factor = clip.speaker.tract * (1 + 0.04 * mood)
    tracks = [np.interp(at, middles, formant) * factor for formant in table.T]
    frequency = np.fft.rfftfreq(2 * WINDOW, 1 / SAMPLE_RATE)
    gain = np.ones((windows, len(frequency)))
    for track, bandwidth in zip(tracks, BANDWIDTHS, strict=True):
        centre = track[:, None]
        gain *= centre**2 / np.hypot(frequency**2 - centre**2, bandwidth * frequency)
    # Pressed and bright when glad, soft and dull when sad: -5.5 to -12.5 dB an octave.
    gain *= (1 + frequency / 200) ** (-(9 - 3.5 * mood) / 6)

    shaped = np.fft.irfft(spectra * gain, axis=1)
    result = np.zeros(len(padded) + WINDOW)
    for row, start in zip(shaped, index[:, 0], strict=True):
        result[start : start + 2 * WINDOW] += row
    return result[hop : hop + len(time)]
