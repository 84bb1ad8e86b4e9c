"""From a video file to images and sound, by one ffmpeg process.

Both streams leave the process through pipes of their own, each drained by a thread of its own: read
one after the other they would hang on a full pipe.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

import ffmpeg
import imageio_ffmpeg
import numpy as np

from extract.sampling import IMAGE_SIZE, SAMPLE_RATE, Sampling

CODEC_PADDING_S = 0.1
"""Sound that outlasts the picture by less is the audio codec's padding, not content."""

_LOG_LIMIT = 64 << 10


class DecodeError(Exception):
    """A video that cannot be used; the message is the reason kept in the store."""


@dataclass(frozen=True)
class Clip:
    """A decoded utterance.

    Attributes:
        duration: seconds.
        frames: ``T``, rows in each modality that is there.
        images: uint8 ``[T, 224, 224, 3]`` RGB, or None without a video stream.
        audio: float32 ``[samples]``, 16 kHz mono in [-1, 1], or None without an audio stream.
    """

    duration: float
    frames: int
    images: np.ndarray | None
    audio: np.ndarray | None


@functools.cache
def ffmpeg_exe() -> str:
    """The system's ffmpeg if there is one, else the binary that imageio-ffmpeg carries."""
    return shutil.which("ffmpeg") or str(imageio_ffmpeg.get_ffmpeg_exe())


@functools.cache
def ffmpeg_version() -> str:
    """The version that ``ffmpeg -version`` names."""
    text = subprocess.run([ffmpeg_exe(), "-version"], capture_output=True, text=True, check=True)
    return text.stdout.split()[2]


def decode(
    path: Path,
    sampling: Sampling,
    start: float | None = None,
    end: float | None = None,
    crop: tuple[float, float, float, float] | None = None,
    timeout: float = 600.0,
) -> Clip:
    """Decode one utterance.

    Args:
        path: the video.
        sampling: frame rate and audio channel.
        start: begin of the utterance in seconds, None for the file's begin.
        end: its end, None for the file's end.
        crop: part of the picture as fractions ``(x, y, width, height)``.
        timeout: seconds after which a hanging ffmpeg is ended.

    Raises:
        DecodeError: nothing usable; the message carries ffmpeg's last words.
    """
    if not path.is_file():
        raise DecodeError("file not found")
    if path.stat().st_size == 0:
        raise DecodeError("file is empty (0 bytes)")
    wanted = ["video", "audio"]
    status, log, streams = _run(path, sampling, start, end, crop, wanted, timeout)
    if status and "matches no streams" in log:
        present = set(re.findall(r"Stream #0:\d+.*?: (Video|Audio): ", log))
        wanted = [kind for kind in wanted if kind.capitalize() in present]
        if not wanted:
            raise DecodeError("neither a video nor an audio stream")
        status, log, streams = _run(path, sampling, start, end, crop, wanted, timeout)
    if status:
        raise DecodeError(_last_words(log, path) or f"ffmpeg ended with status {status}")
    span = None if end is None else end - (start or 0.0)
    return _align(streams, sampling, span, _stated_duration(log), start or 0.0)


def _align(
    streams: dict[str, bytes],
    sampling: Sampling,
    span: float | None,
    stated: float | None,
    start: float,
) -> Clip:
    """One grid for both streams: T from the span if it is known, else from what was decoded."""
    images = audio = None
    if "video" in streams:
        images = np.frombuffer(streams["video"], np.uint8)
        images = images.reshape(-1, IMAGE_SIZE, IMAGE_SIZE, 3)
    if "audio" in streams:
        audio = np.frombuffer(streams["audio"], np.float32)
    # The fps filter rounds up at the end of the stream, so it gives ceil(fps * duration) images.
    seen = 0.0 if images is None else len(images) / sampling.fps
    heard = 0.0 if audio is None else len(audio) / SAMPLE_RATE
    if not max(seen, heard):
        raise DecodeError("no frame could be decoded")
    expected = span if span is not None else (stated or 0.0) - start
    if max(seen, heard) < expected - 1.0:
        raise DecodeError(f"ends after {max(seen, heard):.1f} s of {expected:.1f} s: truncated?")
    if span is not None:
        duration = span
    elif heard > seen + CODEC_PADDING_S:
        duration = heard
    else:
        duration = min(seen, stated - start) if stated and stated > start else seen
        duration = max(duration, seen - 1 / sampling.fps + 1e-3)  # T images are T images
    frames = sampling.frames(duration)
    if images is not None:
        if not len(images):
            raise DecodeError("no image could be decoded")
        # After the last frame its image stays on the screen.
        images = images[np.minimum(np.arange(frames), len(images) - 1)]
    if audio is not None and not len(audio):
        raise DecodeError("no sound could be decoded")
    return Clip(duration, frames, images, audio)


def _run(
    path: Path,
    sampling: Sampling,
    start: float | None,
    end: float | None,
    crop: tuple[float, float, float, float] | None,
    wanted: list[str],
    timeout: float,
) -> tuple[int, str, dict[str, bytes]]:
    """Run ffmpeg; returns its exit status, its log and the bytes of each stream wanted."""
    seek = {} if start is None else {"ss": f"{start:.6f}"}
    if end is not None:
        seek["t"] = f"{end - (start or 0.0):.6f}"
    source = ffmpeg.input(f"file:{path}", **seek)  # file: keeps odd names from being protocols
    pipes = {kind: os.pipe() for kind in wanted}
    outputs = []
    for kind, (_, sink) in pipes.items():
        if kind == "video":
            options: dict[str, str | int] = {
                "format": "rawvideo",
                "pix_fmt": "rgb24",
                "vf": _picture(sampling, crop),
            }
        else:
            options = {"format": "f32le", "ar": SAMPLE_RATE, "ac": 1, "af": _sound(sampling)}
        outputs.append(ffmpeg.output(source[f"{kind[0]}:0"], f"pipe:{sink}", **options))
    graph = ffmpeg.merge_outputs(*outputs) if len(outputs) > 1 else outputs[0]
    graph = graph.global_args(
        "-nostdin", "-hide_banner", "-nostats", "-xerror", "-loglevel", "level+info"
    )
    process = subprocess.Popen(
        graph.compile(cmd=ffmpeg_exe()),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=[sink for _, sink in pipes.values()],
    )
    for _, sink in pipes.values():
        os.close(sink)  # only ffmpeg may hold the writing end, or reading would never end
    received: dict[str, bytes] = {}

    def drain(kind: str, descriptor: int) -> None:
        with open(descriptor, "rb") as pipe:
            received[kind] = pipe.read()

    assert process.stderr is not None
    readers = [threading.Thread(target=drain, args=(k, fd)) for k, (fd, _) in pipes.items()]
    readers.append(threading.Thread(target=drain, args=("log", os.dup(process.stderr.fileno()))))
    process.stderr.close()
    for reader in readers:
        reader.start()
    try:
        status = process.wait(timeout)
    except subprocess.TimeoutExpired:
        raise DecodeError(f"ffmpeg gave no result within {timeout:g} s") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        for reader in readers:
            reader.join()
    log = received.pop("log")[-_LOG_LIMIT:].decode("utf-8", "replace")
    return status, log, received


def _picture(sampling: Sampling, crop: tuple[float, float, float, float] | None) -> str:
    """The image shown at each t_i, short side to 224 (bicubic, antialiased), centre 224 x 224."""
    size = IMAGE_SIZE
    filters = [f"fps=fps={sampling.fps:g}:round=up:start_time=0"]
    if crop is not None:
        x, y, width, height = crop
        filters.append(f"crop=iw*{width:.6f}:ih*{height:.6f}:iw*{x:.6f}:ih*{y:.6f}")
    filters += [
        # sar: pixels need not be square. param1 = 0.5 is the bicubic kernel of Pillow and torch.
        f"scale=w='if(gte(iw*sar,ih),round({size}*iw*sar/ih),{size})'"
        f":h='if(gte(iw*sar,ih),{size},round({size}*ih/(iw*sar)))'"
        ":flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp+bitexact"
        ":param0=0:param1=0.5",
        f"crop={size}:{size}",
        "setsar=1",
    ]
    return ",".join(filters)


def _sound(sampling: Sampling) -> str:
    """Sound on the picture's clock: late sound is preceded by silence, gaps are filled."""
    aligned = "aresample=async=1:first_pts=0"
    return f"pan=mono|c0=c0,{aligned}" if sampling.channel == "first" else aligned


def _stated_duration(log: str) -> float | None:
    """What the container says of its own length, in seconds."""
    found = re.search(r"Duration: (\d+):(\d\d):(\d\d\.\d+)", log)
    if not found:
        return None
    hours, minutes, seconds = found.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def _last_words(log: str, path: Path) -> str:
    """The first error ffmpeg reports, without what differs between machines (paths, addresses)."""
    errors = [line for line in log.splitlines() if "[error]" in line or "[fatal]" in line]
    reason = re.sub(r"\[[^\]]*\]\s*", "", errors[0]).strip() if errors else ""
    for spelling in (f"file:{path}", str(path)):
        reason = reason.replace(spelling, path.name)
    return reason[:300]
