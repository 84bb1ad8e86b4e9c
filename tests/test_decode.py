"""Decode files with known content: numbered frames, clicks at known times."""

import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile

from extract.decode import decode
from extract.ffmpeg import ffmpeg_exe
from extract.sampling import SAMPLE_RATE, Sampling

TWO = Sampling(fps=2.0, window_s=2.0)
CLICK_TOLERANCE_S = 0.005


def ffmpeg(*arguments: object, stdin: bytes | None = None) -> None:
    command = [ffmpeg_exe(), "-y", "-loglevel", "error", *map(str, arguments)]
    subprocess.run(command, check=True, input=stdin)


def numbered(
    path: Path, count: int, rate: object, *options: object, inputs: tuple[object, ...] = ()
) -> Path:
    """Write a video whose frame k shows k // 12 left and k % 12 right, as greys, lossless."""
    k = np.arange(count)[:, None] + np.zeros(24, int)
    row = np.concatenate([k // 12, k % 12], 1) * 20
    pixels = np.broadcast_to(row[:, None, :, None], (count, 32, 48, 3)).astype(np.uint8)
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "48x32", "-r", rate, "-i", "-"]
    codec = ["-c:v", "libx264", "-qp", 0, "-pix_fmt", "yuv444p", "-bf", 2]
    ffmpeg(*raw, *inputs, *codec, *options, path, stdin=pixels.tobytes())
    return path


def numbers(images: np.ndarray) -> np.ndarray:
    """Read the frame numbers from images."""
    left, right = (images[:, 100:124, x : x + 24].mean((1, 2, 3)) / 20 for x in (40, 160))
    return np.round(left).astype(int) * 12 + np.round(right).astype(int)


def clicks(path: Path, seconds: float, at: float, rate: int = 48000, channels: int = 1) -> Path:
    """Write silence with one click of 2 ms."""
    samples = np.zeros((round(seconds * rate), channels), np.float32)
    samples[round(at * rate) : round((at + 0.002) * rate)] = 0.9
    wavfile.write(path, rate, samples)
    return path


def click_time(audio: np.ndarray) -> float:
    """The middle of the loudest 2 ms, less 1 ms: where the click begins."""
    energy = np.convolve(audio.astype(np.float64) ** 2, np.ones(32), "same")
    return energy.argmax() / SAMPLE_RATE - 0.001


# --- the grid of images ---------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [1.0, 2.0, 3.0, 5.0, 10.0])
@pytest.mark.parametrize("rate", ["24000/1001", "30000/1001", "25", "30", "7"])
def test_each_image_is_the_one_shown_at_its_time(tmp_path, rate, fps):
    path = numbered(tmp_path / "clip.mp4", 70, rate)
    sampling, exact = Sampling(fps=fps), Fraction(rate)
    clip = decode(path, sampling)
    assert clip.frames == -(-70 * Fraction(fps) // exact)
    times = [Fraction(i) / Fraction(fps) for i in range(clip.frames)]
    assert numbers(clip.images).tolist() == [int(t * exact) for t in times]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("start", [0.0, 0.5, 1.234567, 2.0, 3.99])
def test_a_segment_begins_with_the_image_shown_at_its_start(tmp_path, suffix, start):
    """Its first image began before it, in the middle of a group of pictures."""
    path = numbered(tmp_path / f"clip.{suffix}", 120, "24", "-g", 30)
    clip = decode(path, TWO, start, start + 0.8)
    expected = [int(start * 24 + 1e-3), int((start + 0.5) * 24 + 1e-3)]
    assert numbers(clip.images).tolist() == expected


def test_a_long_still_is_shown_in_later_segments(tmp_path):
    path = numbered(tmp_path / "slides.mp4", 4, "1/5")  # one image in five seconds
    assert numbers(decode(path, TWO, 7.0, 8.5).images).tolist() == [1, 1, 1]
    assert numbers(decode(path, TWO, 9.0, 11.0).images).tolist() == [1, 1, 2, 2]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_frame_rate(tmp_path, suffix):
    """Numbers 0 to 9 at 0.1 s, 10 to 14 at 0.4 s."""
    path = tmp_path / f"vfr.{suffix}"
    times = "setpts='if(lt(N,10),N*0.1,1+(N-10)*0.4)/TB'"
    numbered(path, 15, 10, "-vf", times, "-fps_mode", "vfr", "-enc_time_base", "1/1000")
    begins = [0.1 * k if k < 10 else 1 + 0.4 * (k - 10) for k in range(15)]
    clip = decode(path, TWO)
    assert clip.frames in (6, 7)  # the last image's own length is the container's guess
    shown = [np.searchsorted(begins, 0.5 * i + 1e-6, "right") - 1 for i in range(clip.frames)]
    assert numbers(clip.images).tolist() == shown


def test_single_frame(tmp_path):
    clip = decode(numbered(tmp_path / "one.mp4", 1, 25), TWO)
    assert (clip.frames, clip.audio) == (1, None)


def test_still_image_with_sound(tmp_path):
    sound = ("-i", clicks(tmp_path / "c.wav", 3.2, 1.25))
    path = numbered(tmp_path / "still.mp4", 1, 25, "-c:a", "aac", inputs=sound)
    clip = decode(path, TWO)
    assert clip.frames == 7
    assert len(clip.images) == 7
    assert (clip.images == clip.images[0]).all()
    assert click_time(clip.audio) == pytest.approx(1.25, abs=CLICK_TOLERANCE_S)


# --- the picture's geometry -----------------------------------------------------------------------


@pytest.mark.parametrize("angle", [90, -90, 180])
def test_rotated_phone_video_is_upright(tmp_path, angle):
    """A red bar at the left edge as stored; the display matrix turns it."""
    plain, path = tmp_path / "plain.mp4", tmp_path / "phone.mp4"
    bar = "color=blue:s=96x64:d=1,drawbox=w=40:h=64:color=red:t=fill"
    ffmpeg("-f", "lavfi", "-i", bar, "-c:v", "libx264", "-qp", 0, "-pix_fmt", "yuv444p", plain)
    ffmpeg("-display_rotation", angle, "-i", plain, "-c", "copy", path)
    image = decode(path, TWO).images[0].astype(int)
    red = image[..., 0] > image[..., 2]
    edges = {
        "left": red[112, 3],
        "top": red[3, 112],
        "right": red[112, 220],
        "bottom": red[220, 112],
    }
    (there,) = [edge for edge, is_red in edges.items() if is_red]
    assert there == {90: "bottom", -90: "top", 180: "right"}[angle]


def test_pixels_that_are_not_square(tmp_path):
    """A circle stored half as wide as it is shown."""
    path = tmp_path / "sar.mp4"
    circle = "geq=lum='255*lte(hypot((X-48)*2,Y-96),80)':cb=128:cr=128"
    source = f"color=black:s=96x192:d=0.2,format=yuv444p,{circle},setsar=2"
    ffmpeg("-f", "lavfi", "-i", source, "-c:v", "libx264", "-qp", 0, path)
    white = decode(path, TWO).images[0, ..., 0] > 128
    expected = 2 * 80 * 224 / 192
    assert abs(white[112].sum() - expected) <= 3  # a stored pixel is 2.3
    assert abs(white[:, 112].sum() - expected) <= 3


@pytest.mark.parametrize("field", ["tff", "bff"])
def test_interlaced_video_is_deinterlaced_in_place(tmp_path, field):
    """Two fields of different brightness make combs; deinterlaced frames keep their times."""
    path = tmp_path / "interlaced.mp4"
    # 50 fields a second, 2 steps brighter each: frame k shows fields 2 k and 2 k + 1
    rising = "color=black:s=48x32:r=50:d=2,format=yuv444p,geq=lum='16+2*N':cb=128:cr=128"
    lines = f"{rising},interlace=scan={field}:lowpass=0,setfield={field}"
    codec = ["-c:v", "libx264", "-qp", 0, "-flags", "+ilme+ildct", "-x264-params", f"{field}=1"]
    ffmpeg("-f", "lavfi", "-i", lines, *codec, path)
    clip = decode(path, TWO)
    assert clip.frames == 4
    shown = clip.images[:, 112, 112, 0].astype(int)
    first_fields = np.array([0, 24, 50, 74]) * 2 * 255 / 219
    assert np.abs(shown - first_fields).max() <= 3  # one field is 2.3
    steps = np.diff(clip.images[:, 20:200, 112, 0].astype(int), axis=1)
    assert np.abs(steps).max() <= 1


def test_progressive_video_is_never_deinterlaced(tmp_path):
    path = tmp_path / "stripes.mp4"
    stripes = "color=black:s=224x224:d=1,format=yuv444p,geq=lum='255*mod(Y,2)':cb=128:cr=128"
    ffmpeg("-f", "lavfi", "-i", stripes, "-c:v", "libx264", "-qp", 0, path)
    image = decode(path, TWO).images[0, :, 112, 0]
    assert image[::2].max() < 5
    assert image[1::2].min() > 250


# --- sound on the picture's clock -----------------------------------------------------------------


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 32000, 44100, 48000, 96000])
def test_a_click_keeps_its_time_at_any_rate(tmp_path, rate):
    sound = ("-i", clicks(tmp_path / "c.wav", 3.0, 1.25, rate))
    path = numbered(tmp_path / "clip.mkv", 75, 25, "-c:a", "flac", inputs=sound)
    clip = decode(path, TWO)
    assert clip.frames == 6
    assert click_time(clip.audio) == pytest.approx(1.25, abs=CLICK_TOLERANCE_S)
    assert len(clip.audio) == pytest.approx(48000, abs=16)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi"])
@pytest.mark.parametrize("start", [None, 0.75, 1.1])
def test_a_click_keeps_its_time_in_any_container(tmp_path, suffix, start):
    sound = ("-i", clicks(tmp_path / "c.wav", 3.0, 1.25))
    codec = "pcm_s16le" if suffix == "avi" else "aac"
    path = numbered(tmp_path / f"clip.{suffix}", 75, 25, "-c:a", codec, inputs=sound)
    clip = decode(path, TWO, start, start and start + 1.0)
    # In a transport stream time begins with the 21 ms of padding that the AAC encoder puts first.
    late = 1024 / 48000 if suffix == "ts" else 0.0
    begin = start or 0.0
    assert numbers(clip.images)[0] == max(0, int((begin - late) * 25 + 1e-6))
    assert click_time(clip.audio) + begin == pytest.approx(1.25 + late, abs=CLICK_TOLERANCE_S)


@pytest.mark.parametrize("delay", [0.03, 0.4, 2.0])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_late_sound_stays_late(tmp_path, suffix, delay):
    sound = ("-itsoffset", delay, "-i", clicks(tmp_path / "c.wav", 2.0, 0.5))
    path = numbered(tmp_path / f"late.{suffix}", 100, 25, "-c:a", "flac", inputs=sound)
    clip = decode(path, TWO)
    assert click_time(clip.audio) == pytest.approx(0.5 + delay, abs=CLICK_TOLERANCE_S)
    assert numbers(clip.images)[1] == 12


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_a_start_that_is_not_zero_is_the_files_zero(tmp_path, suffix):
    sound = ("-i", clicks(tmp_path / "c.wav", 3.0, 1.25))
    late = ("-output_ts_offset", 7.3, "-c:a", "flac" if suffix == "mkv" else "aac")
    path = numbered(tmp_path / f"late.{suffix}", 75, 25, *late, inputs=sound)
    clip = decode(path, TWO)
    # The first time stamp may be that of the AAC encoder's 21 ms of padding.
    assert np.abs(numbers(clip.images)[:6] - [0, 12, 25, 37, 50, 62]).max() <= 1
    assert clip.frames in (6, 7)
    assert 1.25 - CLICK_TOLERANCE_S <= click_time(clip.audio) <= 1.275 + CLICK_TOLERANCE_S


@pytest.mark.parametrize(("seconds", "frames"), [(1.0, 6), (5.0, 10)])
def test_sound_shorter_or_longer_than_the_picture(tmp_path, seconds, frames):
    sound = ("-i", clicks(tmp_path / "c.wav", seconds, 0.5))
    clip = decode(numbered(tmp_path / "c.mkv", 75, 25, "-c:a", "flac", inputs=sound), TWO)
    windows = np.concatenate(list(clip.window_batches(TWO)))
    assert clip.frames == len(clip.images) == len(windows) == frames
    assert windows[1].any()
    assert not windows[4:].any()


def channel_file(path: Path, loud: int, channels: int) -> Path:
    time = np.arange(48000) / 48000
    samples = np.zeros((48000, channels), np.float32)
    samples[:, loud] = 0.5 * np.sin(2 * np.pi * 440 * time)
    wavfile.write(path, 48000, samples)
    return path


@pytest.mark.parametrize(("channels", "loud"), [(1, 0), (2, 0), (2, 1), (6, 2)])
def test_the_mix_contains_every_channel(tmp_path, channels, loud):
    """In 5.1 sound channel 2 is the centre, which alone contains film dialogue."""
    path = channel_file(tmp_path / "c.wav", loud, channels)
    peak = np.abs(decode(path, TWO).audio[4000:12000]).max()
    assert peak == pytest.approx({1: 0.5, 2: 0.25, 6: 0.5 / (1 + 4 * 0.5**0.5)}[channels], rel=0.35)
    first = np.abs(decode(path, Sampling(channel="first")).audio[4000:12000]).max()
    assert first == pytest.approx(0.5 if loud == 0 else 0.0, abs=0.01)
