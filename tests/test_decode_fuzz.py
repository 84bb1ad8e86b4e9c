"""Mutated files: a clip of consistent shapes or a reason, nothing else, and nothing left behind."""

import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from extract.decode import Clip, decode_spans
from extract.sampling import Sampling
from tests.test_decode import clicks, ffmpeg

TWO = Sampling(fps=2.0, window_s=0.5)
SECONDS = 4.0  # for all mutants of one container


def mutant(data: bytes, rng: np.random.Generator) -> bytes:
    """Flipped bits, a truncation, or a piece copied to where it does not belong."""
    changed = bytearray(data)
    kind = rng.integers(3)
    if kind == 0:
        for at in rng.integers(len(data), size=rng.integers(1, 30)):
            changed[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del changed[rng.integers(len(data)) :]
    else:
        begin, at = rng.integers(len(data), size=2)
        changed[at:at] = data[begin : begin + rng.integers(1, 5000)]
    return bytes(changed)


def check(clip: Clip) -> None:
    assert clip.frames >= 1
    assert clip.frames == TWO.frames(clip.duration)
    if clip.picture is not None:
        assert clip.images.shape == (clip.frames, 224, 224, 3)
    if clip.sound is not None:
        windows = list(clip.window_batches(TWO))
        assert np.concatenate(windows).shape == (clip.frames, 8000)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "wav"])
def test_mutated_files_give_a_clip_or_a_reason(tmp_path, suffix):
    path = tmp_path / f"whole.{suffix}"
    sound = clicks(tmp_path / "sound.wav", 2.0, 0.5, 16000)
    picture = ["-f", "lavfi", "-i", "testsrc=r=10:s=64x48:d=2"] if suffix != "wav" else []
    video = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-g", 5]
    ffmpeg(*picture, "-i", sound, *(video if picture else ()), path)
    data, rng = path.read_bytes(), np.random.default_rng(7)
    me, threads = psutil.Process(), threading.active_count()
    descriptors, children = me.num_fds(), len(me.children())
    spans = [(0.0, None), (0.25, 1.75)]
    outcomes, began = [], time.monotonic()
    broken = Path(tmp_path, f"broken.{suffix}")
    while time.monotonic() - began < SECONDS and len(outcomes) < 60:
        broken.write_bytes(mutant(data, rng))
        outcomes += decode_spans(broken, TWO, spans[:: int(rng.choice([1, -1]))], timeout=5.0)
    for outcome in outcomes:
        if isinstance(outcome, Clip):
            check(outcome)
        else:
            assert str(outcome)
    assert len(outcomes) >= 4
    assert threading.active_count() == threads
    assert len(me.children()) == children
    assert me.num_fds() <= descriptors
