"""Several utterances in one pass, and videos of any length."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from extract import filtergraph
from extract.decode import DecodedClip, DecodeError, decode, decode_spans
from extract.ffmpeg import ffmpeg_exe, run_process
from extract.job import Utterance
from extract.prefetch import PASS_IMAGES, PASS_UTTERANCES, plan_decode_passes
from extract.sampling import Sampling
from tests.test_decode import clicks, ffmpeg

TWO = Sampling(fps=2.0, window_s=2.0)
SPANS = [(0.3, 2.0), (2.0, 4.123), (3.5, 6.0), (9.9, 11.2), (70.25, 73.0), (75.0, 77.77)]


@pytest.fixture(scope="module", params=["mp4", "mkv", "ts"])
def source(request, tmp_path_factory):
    """80 s with noise, B-frames and rare key frames; AAC, whose noise depends on earlier frames."""
    path = tmp_path_factory.mktemp("long") / f"source.{request.param}"
    video = "testsrc=r=24000/1001:s=96x64:d=80"
    sound = "anoisesrc=r=44100:d=80:seed=1:a=0.3"
    codec = ["-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p", "-g", 250]
    ffmpeg("-f", "lavfi", "-i", video, "-f", "lavfi", "-i", sound, *codec, "-c:a", "aac", path)
    return path


def same(one: DecodedClip | DecodeError, other: DecodedClip | DecodeError) -> bool:
    assert isinstance(one, DecodedClip)
    assert isinstance(other, DecodedClip)
    return (
        (one.duration, one.frames) == (other.duration, other.frames)
        and np.array_equal(one.images, other.images)
        and np.array_equal(one.audio, other.audio)
    )


def test_one_pass_gives_the_bits_of_many(source, monkeypatch):
    started = []
    monkeypatch.setattr(
        "extract.decode.run_process", lambda *a: started.append(a) or run_process(*a)
    )
    together = decode_spans(source, TWO, SPANS)
    assert len(started) == 1
    for clip, (start, end) in zip(together, SPANS, strict=True):
        assert same(clip, decode(source, TWO, start, end))
        assert clip.frames == TWO.frames(end - start)
        assert abs(len(clip.audio) - (end - start) * 16000) <= 1
    assert same(decode_spans(source, TWO, SPANS[4:])[1], together[5])


def test_a_segment_is_a_part_of_the_whole_file(source):
    """The images are the same, and the sound up to the noise of the codec."""
    whole, part = decode(source, TWO), decode(source, TWO, 70.0, 74.0)
    assert np.array_equal(whole.images[140:148], part.images)
    piece = whole.audio[70 * 16000 : 74 * 16000]
    assert np.corrcoef(piece, part.audio)[0, 1] > 0.99


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "aac"), ("mkv", "libmp3lame")])
def test_late_clicks_keep_their_time(tmp_path, suffix, codec):
    path = tmp_path / f"late.{suffix}"
    sound = ["-i", clicks(tmp_path / "c.wav", 140.0, 130.5, 44100), "-c:a", codec]
    ffmpeg("-f", "lavfi", "-i", "testsrc=r=5:s=64x48:d=140", *sound, path)
    for start in (124.99, 125.01, 130.0):
        audio = decode(path, TWO, start, 132.0).audio
        at = np.convolve(audio.astype(float) ** 2, np.ones(32), "same").argmax() / 16000 - 0.001
        assert start + at == pytest.approx(130.5, abs=0.005)


def test_a_bad_utterance_fails_alone(source):
    spans = [(1.0, 3.0), (79.0, 95.0), (500.0, 503.0)]
    first, *beyond = decode_spans(source, TWO, spans)
    assert same(first, decode(source, TWO, 1.0, 3.0))
    assert all(isinstance(outcome, DecodeError) for outcome in beyond)


def test_utterances_beyond_the_sound_are_silent(tmp_path):
    sound = clicks(tmp_path / "c.wav", 2.0, 0.5)
    source = ["-f", "lavfi", "-i", "testsrc=r=10:s=64x48:d=6", "-i", sound]
    ffmpeg(*source, "-c:v", "libx264", "-c:a", "flac", tmp_path / "c.mkv")
    clip = decode(tmp_path / "c.mkv", TWO, 4.0, 5.5)
    assert clip.frames == 3
    assert not np.concatenate(list(clip.window_batches(TWO))).any()


def utterance(start: float, end: float, video: str = "a.mp4", crop=None) -> Utterance:
    return Utterance(f"{video}-{start}", video, start, end, crop)


def test_passes_take_neighbours_of_one_video():
    left = (0.0, 0.0, 0.5, 1.0)
    a = [utterance(10, 12), utterance(0, 2), utterance(60, 62)]
    b = [utterance(5, 6, "b.mp4"), utterance(6, 7, "b.mp4", left), Utterance("w", "b.mp4")]
    assert plan_decode_passes(TWO, [*a, *b]) == [[a[1], a[0]], [a[2]], *([u] for u in b)]
    long = [utterance(20 * k, 20 * k + 20) for k in range(20)]
    sizes = [len(together) for together in plan_decode_passes(TWO, long)]
    assert sum(sizes) == 20
    assert max(sizes) * 40 <= PASS_IMAGES
    short = [utterance(k, k + 1) for k in range(40)]
    assert max(map(len, plan_decode_passes(TWO, short))) == PASS_UTTERANCES


@pytest.fixture(scope="module")
def hour(tmp_path_factory):
    path = tmp_path_factory.mktemp("hour") / "hour.mp4"
    picture = ["-f", "lavfi", "-i", "color=gray:s=64x48:r=2:d=3600"]
    sound = ["-f", "lavfi", "-i", "sine=f=300:r=16000:d=3600"]
    ffmpeg(*picture, *sound, "-preset", "ultrafast", "-g", 20, "-c:a", "aac", "-b:a", "24k", path)
    return path


def test_an_hour_fits_into_little_memory(hour):
    program = """
import resource, sys
from pathlib import Path
from extract.decode import decode
from extract.sampling import Sampling
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
clip = decode(Path(sys.argv[1]), Sampling())
images = sum(len(batch) for batch in clip.image_batches())
windows = sum(len(batch) for batch in clip.window_batches(Sampling()))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
scale = 1024 if sys.platform == "darwin" else 1
print(images, windows, (peak - base) // 1024 // scale)
"""
    printed = subprocess.run(
        [sys.executable, "-c", program, str(hour)], capture_output=True, text=True, check=True
    )
    images, windows, grown = map(int, printed.stdout.split())
    assert images == windows == 7200
    assert grown <= 200  # MB; the images alone are 1084


def test_a_late_utterance_of_a_long_video_costs_no_more(hour):
    """Only images since the last keyframe and a minute of sound are decoded before it."""
    span = [(3500.0, 3503.0)]
    wanted = filtergraph.outputs(TWO, span, True, ["vision", "audio"])
    with Path(os.devnull).open("wb") as null:
        sinks = dict.fromkeys(wanted, null.fileno())
        line = filtergraph.command(ffmpeg_exe(), hour, TWO, span, True, None, sinks)
        line[line.index("level+info")] = "verbose"
        printed = subprocess.run(
            line, check=True, capture_output=True, text=True, pass_fds=[null.fileno()]
        ).stderr
    decoded = {
        kind: int(frames)
        for kind, frames in re.findall(r"\((video|audio)\): \d+ packets .*?; (\d+) frames", printed)
    }
    assert 6 <= decoded["video"] <= 40
    assert decoded["audio"] * 1024 / 16000 <= 90
