"""From video files to a published store: real ffmpeg, real encoders, a real Dask cluster."""

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cache import FeatureStore
from extract import ClusterSpec, EncoderSpec, Sampling, Settings, extract
from extract.__main__ import EXIT_SOME_FAILED, main
from extract.decode import DecodeError, decode
from extract.encoders import load
from extract.ffmpeg import ffmpeg_exe
from extract.progress import Tally
from manifests import Card, Manifest

TWO = Sampling(fps=2.0, window_s=2.0)


def ffmpeg(*arguments: object) -> None:
    command = [ffmpeg_exe(), "-nostdin", "-y", "-loglevel", "error", *map(str, arguments)]
    subprocess.run(command, check=True)


def write_clip(
    path: Path,
    seconds: float = 2.0,
    *,
    sound: bool = True,
    picture: bool = True,
    rate: float = 25,
    size: str = "64x48",
    sound_seconds: float | None = None,
    channels: int = 1,
    sample_rate: int = 44100,
) -> Path:
    """Write a clip with a test picture and a tone, H.264 and AAC as in the datasets."""
    inputs: list[object] = []
    if picture:
        inputs += ["-f", "lavfi", "-i", f"testsrc=d={seconds}:r={rate}:s={size}"]
    if sound:
        tone = f"sine=f=440:d={sound_seconds or seconds}:r={sample_rate}"
        inputs += ["-f", "lavfi", "-i", tone, "-ac", channels]
    ffmpeg(*inputs, "-c:v", "libx264", "-pix_fmt", "yuv420p", "-preset", "ultrafast", path)
    return path


def write_stairs(path: Path, levels: int = 12, rate: int = 4) -> Path:
    """Write a video whose picture is one step brighter with every frame."""
    frames = [np.full((32, 48, 3), 20 * level, np.uint8) for level in range(levels)]
    size = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "48x32", "-r", str(rate)]
    codec = ["-c:v", "libx264", "-qp", "0", "-pix_fmt", "yuv444p"]
    command = [ffmpeg_exe(), "-y", "-loglevel", "error", *size, "-i", "-", *codec, str(path)]
    subprocess.run(command, input=b"".join(f.tobytes() for f in frames), check=True)
    return path


def write_clips(folder: Path, seconds: Sequence[float]) -> Path:
    """Write a dataset of clips ``u00``, ``u01`` ... of the given lengths; return its folder."""
    (folder / "v").mkdir()
    for i, length in enumerate(seconds):
        write_clip(folder / f"v/{i:02}.mp4", length)
    write_manifest(folder, {f"u{i:02}": f"v/{i:02}.mp4" for i in range(len(seconds))})
    return folder


def write_manifest(folder: Path, videos: dict[str, str]) -> Manifest:
    card = Card(name="toy", title="Toy", task="regression", range=[-3, 3], encoder="imagebind-tiny")
    table = pd.DataFrame(
        {
            "id": list(videos),
            "video": list(videos.values()),
            "split": ["train", "valid", "test"] * (len(videos) // 3)
            + ["train"] * (len(videos) % 3),
            "text": [f"sentence {i}" for i in videos],
            "label": 0.0,
        }
    )
    manifest = Manifest(card, table)
    manifest.save(folder)
    return manifest


# --- sampling -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("duration", "frames"), [(0.01, 1), (0.5, 1), (0.51, 2), (3.0, 6), (3.04, 7), (0.1 + 0.2, 1)]
)
def test_frame_count_is_the_ceiling(duration, frames):
    assert TWO.frames(duration) == frames


def test_windows_are_centred_and_silent_outside():
    sampling = Sampling(fps=2.0, window_s=0.5)
    audio = np.arange(1, 16001, dtype=np.float32)  # one second; sample k has the value k + 1
    windows = sampling.windows(audio, frames=2)
    assert windows.shape == (2, 8000)
    assert not windows[0, :4000].any()
    assert np.array_equal(windows[0, 4000:], audio[:4000])
    assert np.array_equal(windows[1], audio[4000:12000])


def test_windows_of_short_and_long_sound():
    sampling = Sampling(fps=2.0, window_s=1.0)
    assert not sampling.windows(np.ones(100, np.float32), frames=3)[2].any()
    assert sampling.windows(np.ones(99999, np.float32), frames=1).sum() == 8000


@pytest.mark.parametrize("bad", [{"fps": 0}, {"window_s": 0}, {"channel": "left"}])
def test_impossible_sampling_is_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Sampling(**bad)


def test_integers_and_floats_give_the_same_recipe():
    plain = json.dumps(Sampling(fps=2, window_s=2).as_dict())
    assert plain == json.dumps(Sampling(fps=2.0, window_s=2.0).as_dict())


# --- decoding -------------------------------------------------------------------------------------


def test_each_frame_is_the_image_shown_at_its_time(tmp_path):
    clip = decode(write_stairs(tmp_path / "stairs.mkv"), TWO)  # 12 frames at 4 a second: 3 s
    shown = clip.images[:, 112, 112, 0].astype(int)
    assert clip.frames == len(shown) == 6
    assert np.abs(shown - [0, 40, 80, 120, 160, 200]).max() <= 2  # every second frame
    assert clip.audio is None


def test_a_segment_starts_at_its_own_zero(tmp_path):
    clip = decode(write_stairs(tmp_path / "stairs.mkv"), TWO, start=1.0, end=2.5)
    shown = clip.images[:, 112, 112, 0].astype(int)
    assert np.abs(shown - [80, 120, 160]).max() <= 2
    assert clip.duration == 1.5


@pytest.mark.parametrize("rate", ["24000/1001", "30000/1001", 10, 50])
def test_frame_count_at_any_frame_rate(tmp_path, rate):
    numerator, denominator = (*map(int, str(rate).split("/")), 1)[:2]
    frames = round(3 * numerator / denominator)
    path = tmp_path / "clip.mp4"
    size = ["-f", "lavfi", "-i", f"testsrc=r={rate}:s=64x48", "-frames:v", frames]
    ffmpeg(*size, "-c:v", "libx264", "-pix_fmt", "yuv420p", path)
    exact = frames * denominator / numerator
    assert decode(path, TWO).frames == TWO.frames(exact)


def test_sound_is_16_khz_mono_and_aligned(tmp_path):
    clip = decode(write_clip(tmp_path / "c.mp4", 2.0, channels=2, sample_rate=48000), TWO)
    assert abs(len(clip.audio) - 32000) <= 16000 * 0.1
    spectrum = np.abs(np.fft.rfft(clip.audio[8000:24000]))
    assert spectrum.argmax() == 440


def test_sound_longer_than_the_picture_counts(tmp_path):
    clip = decode(write_clip(tmp_path / "c.mp4", 1.0, sound_seconds=3.0), TWO)
    assert clip.frames == 6
    assert np.array_equal(clip.images[2], clip.images[5])  # the last image stays


def test_aac_padding_is_not_a_frame(tmp_path):
    assert decode(write_clip(tmp_path / "c.mp4", 2.0), TWO).frames == 4


def test_crop_takes_the_speakers_half(tmp_path):
    path = tmp_path / "halves.mkv"
    halves = "color=red:s=32x32:d=1[a];color=blue:s=32x32:d=1[b];[a][b]hstack"
    ffmpeg("-filter_complex", halves, "-c:v", "ffv1", path)
    left = decode(path, TWO, crop=(0.0, 0.0, 0.5, 1.0)).images[0, 112, 112]
    right = decode(path, TWO, crop=(0.5, 0.0, 0.5, 1.0)).images[0, 112, 112]
    assert left[0] > 200 > 50 > left[2]
    assert right[2] > 200 > 50 > right[0]


def test_odd_file_names_are_just_names(tmp_path):
    for name in ("-y.mp4", "a b'c.mp4", "pipe:0.mp4", "%d.mp4", "ü😀.mp4"):
        source = write_clip(tmp_path / "plain.mp4", 0.4)
        source.rename(tmp_path / name)
        assert decode(tmp_path / name, TWO).frames == 1


def break_file(kind: str, path: Path) -> None:
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("this is not a video\n" * 50)
    elif kind == "truncated":
        write_clip(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "folder":
        path.mkdir()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("empty", "empty"),
        ("text", "moov|Invalid data"),
        ("truncated", "moov|Invalid data"),
        ("missing", "file not found"),
        ("folder", "not a file"),
    ],
)
def test_broken_file_has_a_reason(tmp_path, kind, reason):
    break_file(kind, tmp_path / "clip.mp4")
    with pytest.raises(DecodeError, match=reason):
        decode(tmp_path / "clip.mp4", TWO)


def test_truncated_stream_is_not_a_shorter_clip(tmp_path):
    """The header has the full length, so half of it is a fault."""
    source = write_clip(tmp_path / "whole.mp4", 4.0, size="320x240")
    ffmpeg("-i", source, "-c", "copy", "-movflags", "+faststart", tmp_path / "fast.mp4")
    data = (tmp_path / "fast.mp4").read_bytes()
    (tmp_path / "half.mp4").write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(DecodeError):
        decode(tmp_path / "half.mp4", TWO)


def test_hanging_decoder_is_killed(tmp_path):
    threads = threading.active_count()
    path = write_clip(tmp_path / "long.mp4", 20.0, size="320x240")
    with pytest.raises(DecodeError, match="no result within"):
        decode(path, TWO, timeout=0.01)
    assert threading.active_count() == threads


def test_no_descriptor_is_left_open(tmp_path):
    path = write_clip(tmp_path / "c.mp4", 0.5)
    (tmp_path / "bad.mp4").write_text("no video")
    fds = Path("/proc/self/fd") if Path("/proc/self/fd").exists() else Path("/dev/fd")
    decode(path, TWO)
    before = len(list(fds.iterdir()))
    for _ in range(5):
        decode(path, TWO)
        with pytest.raises(DecodeError):
            decode(tmp_path / "bad.mp4", TWO)
    assert len(list(fds.iterdir())) == before


# --- encoders -------------------------------------------------------------------------------------


def test_embedded_features_differ_with_the_input():
    encoder = load(EncoderSpec("embedded"))
    images = torch.zeros(3, 224, 224, 3, dtype=torch.uint8)
    images[1] = 255
    time = torch.arange(32000) / 16000
    tones = torch.stack([torch.sin(6.2832 * f * time) / 4 for f in (120.0, 120.0, 300.0)])
    vision, audio = encoder.vision(images), encoder.audio(tones)
    assert vision.shape == (3, encoder.widths["vision"])
    assert audio.shape == (3, encoder.widths["audio"])
    assert torch.equal(vision[0], vision[2])
    assert not torch.allclose(vision[0], vision[1])
    assert torch.allclose(audio.norm(dim=1), torch.ones(3))
    assert torch.cosine_similarity(audio[0], audio[1], dim=0) > 0.999
    assert torch.cosine_similarity(audio[0], audio[2], dim=0) < 0.98


@pytest.mark.parametrize("name", ["embedded", "imagebind-tiny"])
def test_a_rows_bits_do_not_depend_on_its_batch(name):
    """Same batch size: same bits at any place in any batch; another size: equal up to rounding."""
    encoder = load(EncoderSpec(name))
    rng = np.random.default_rng(0)
    inputs = {
        "vision": rng.integers(0, 255, (encoder.batch_size["vision"], 224, 224, 3), np.uint8),
        "audio": rng.normal(0, 0.1, (encoder.batch_size["audio"], 32000)).astype(np.float32),
    }
    for modality, array in inputs.items():
        encode, rows = getattr(encoder, modality), torch.from_numpy(array)
        expected = encode(rows)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
        assert torch.equal(encode(rows[order]), expected[order])
        lonely = torch.zeros_like(rows)
        lonely[0] = rows[0]
        assert torch.equal(encode(lonely)[0], expected[0])
        assert torch.allclose(encode(rows[:1])[0], expected[0], rtol=1e-3, atol=1e-3)


def test_mel_filters_sum_to_equal_areas():
    from extract.encoders.embedded import mel_filters

    filters = mel_filters().double()
    assert filters.shape == (40, 201)
    # Wide triangles are sampled finely: there the sum over 40 Hz bins is close to the area 1.
    assert torch.allclose(filters[20:].sum(1) * 40, torch.ones(20).double(), atol=0.02)
    assert (filters.argmax(1).diff() > 0).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "resnet"}, "choose one of embedded, imagebind"),
        ({"precision": "fp8"}, "choose one of fp32, bf16, fp16"),
        ({"precision": "bf16"}, "computes in fp32"),
        ({"backend": "onnx"}, "choose one of transformers, package"),
        ({"backend": "package"}, "only imagebind has"),
        ({"sampling": Sampling(vision="tubelet")}, "single images, not tubelets"),
        ({"device": "gpu"}, "--device gpu: .* use cpu"),
        (
            {"name": "imagebind-tiny", "sampling": Sampling(window_s=2.05)},
            "takes 2.04 s .* --window 2.04 or less",
        ),
    ],
)
def test_an_option_the_encoder_does_not_support_is_a_clear_error(wrong, message):
    sampling = wrong.pop("sampling", TWO)
    with pytest.raises(ValueError, match=message):
        Settings(EncoderSpec(**{"name": "embedded", **wrong}), sampling).load_encoder()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_a_clear_error():
    cuda = EncoderSpec("embedded", device="cuda")
    with pytest.raises(ValueError, match=r"--device cuda: .* use cpu"):
        Settings(cuda).load_encoder()
    # with workers on other machines, only those need GPUs
    Settings(cuda, cluster=ClusterSpec(scheduler="tcp://there:8786")).load_encoder()


@pytest.mark.parametrize(
    ("encoder", "window"), [("imagebind-tiny", 2.04), ("embedded", 3.0), ("imagebind-tiny", 0.5)]
)
def test_a_window_that_fits_the_encoder(encoder, window):
    Settings(EncoderSpec(encoder), Sampling(window_s=window)).load_encoder()


# --- from videos to a published store -------------------------------------------------------------

VIDEOS = {f"u{i}": f"videos/{i}.mp4" for i in range(7)}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Four good clips and three bad ones, and their manifest."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "videos").mkdir()
    for i in range(3):
        write_clip(folder / f"videos/{i}.mp4", 0.7 + 0.4 * i)
    write_clip(folder / "videos/3.mp4", 1.0, sound=False)
    break_file("empty", folder / "videos/4.mp4")
    break_file("text", folder / "videos/5.mp4")
    write_manifest(folder, VIDEOS)
    return folder


def arrays_of(store: Path) -> dict[str, bytes]:
    files = (path for path in store.rglob("*") if path.is_file())
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def published(data, tmp_path_factory) -> Path:
    """The store of a run with one worker."""
    settings = Settings(EncoderSpec("imagebind-tiny"))
    return extract(Manifest.load(data), data, tmp_path_factory.mktemp("stores"), settings).store


def test_damaged_videos_fail_one_row_each(published):
    cache = FeatureStore.open(published)
    assert cache.status == {
        **dict.fromkeys(["u0", "u1", "u2"], "ok"),
        "u3": "no_audio",
        **dict.fromkeys(["u4", "u5", "u6"], "failed"),
    }
    reasons = dict(zip(cache.ids, cache.column("error"), strict=True))
    assert "empty" in reasons["u4"]
    assert "file not found" in reasons["u6"]
    assert "0x" not in reasons["u5"]
    features = cache.select(["u1", "u3", "u4"])
    assert features.lengths["vision"].tolist() == [3, 2, 0]
    assert features.lengths["audio"].tolist() == [3, 0, 0]
    assert torch.isfinite(features.values["vision"].float()).all()


def test_features_are_the_encoders_own(published, data):
    encoder = load(EncoderSpec("imagebind-tiny"))
    clip = decode(data / "videos/1.mp4", TWO)
    expected = encoder.vision(torch.from_numpy(clip.images.copy()))
    stored = FeatureStore.open(published).select(["u1"]).values["vision"].float()
    assert torch.allclose(stored, expected, rtol=2e-3, atol=2e-3)


def test_bytes_do_not_depend_on_workers_and_interruptions(published, data, tmp_path, monkeypatch):
    monkeypatch.setattr("extract.plan.MAX_BLOCK_UTTERANCES", 2)
    manifest = Manifest.load(data)
    settings = Settings(EncoderSpec("imagebind-tiny"), cluster=ClusterSpec(workers=2))

    class KilledError(Exception):
        pass

    def die(tally: Tally) -> None:
        if tally.done:
            raise KilledError

    with pytest.raises(KilledError):
        extract(manifest, data, tmp_path, settings, on_block=die)
    store = tmp_path / "toy" / published.name
    assert list(tmp_path.glob("toy/*.parts/*.part"))
    summary = extract(manifest, data, tmp_path, settings)
    assert summary.resumed >= 2
    assert summary.store == store
    assert arrays_of(store) == arrays_of(published)


def test_second_run_decodes_nothing(published, data, capsys):
    root = published.parent.parent
    arguments = [str(data), "--stores", str(root)]
    assert main(arguments) == EXIT_SOME_FAILED
    out = capsys.readouterr().out
    assert "complete" in out
    assert "u6: file not found" in out
    assert main([*arguments, "--allow-failures"]) == 0


def test_wrong_folder_is_refused_before_any_work(data, tmp_path, capsys):
    wrong = ["--data", str(tmp_path), "--stores", str(tmp_path / "stores")]
    assert main([str(data), *wrong]) == 1
    assert "none of the 7 videos" in capsys.readouterr().err
    assert not (tmp_path / "stores").exists()


def test_help_and_usage():
    command = [sys.executable, "-m", "extract"]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert "exit status" in shown.stdout
    assert subprocess.run([*command, "--nonsense"], capture_output=True).returncode == 2
