"""Write the clips of the demonstration dataset as MP4 files: H.264 images and AAC sound."""

import hashlib
import json
import multiprocessing
import os
import subprocess
import tempfile
import wave
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from manifests.atomic import atomic_path, atomic_write
from manifests.console import Console
from manifests.demo.face import SIZE, draw_frames
from manifests.demo.plan import FPS, DemoClip
from manifests.demo.voice import SAMPLE_RATE, speak

# Increment it when a change to the face, the voice or the encoding changes the files.
VERSION = 1
WORKERS = 2


def ffmpeg() -> str:
    """Return the path of ffmpeg: ``$SEMANTICMAC_FFMPEG``, or else imageio-ffmpeg's."""
    return os.environ.get("SEMANTICMAC_FFMPEG") or str(imageio_ffmpeg.get_ffmpeg_exe())


def write_clip(clip: DemoClip, path: Path) -> None:
    """Draw, speak and encode one clip, and write it atomically.

    The same ffmpeg gives the same bytes: one thread, no dates, no version in the metadata.

    Raises:
        ChildProcessError: ffmpeg failed; with the end of its output.
    """
    voice = speak(clip)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, atomic_path(path) as temporary:
        sound = Path(folder) / "voice.wav"
        _write_wave(sound, voice.waveform)
        images = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{SIZE}x{SIZE}", "-r", str(FPS)]
        video = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "21", "-pix_fmt", "yuv420p"]
        audio = ["-c:a", "aac", "-b:a", "96k", "-ar", "48000", "-ac", "1"]
        plain = ["-threads", "1", "-map_metadata", "-1", "-fflags", "+bitexact"]
        plain += ["-flags:v", "+bitexact", "-flags:a", "+bitexact", "-movflags", "+faststart"]
        command = [ffmpeg(), "-v", "error", "-y", *images, "-i", "pipe:0", "-i", f"file:{sound}"]
        command += ["-map", "0:v", "-map", "1:a", *video, *audio, *plain, "-f", "mp4"]
        frames = b"".join(draw_frames(clip, voice.opening))
        done = subprocess.run([*command, f"file:{temporary}"], input=frames, capture_output=True)
        if done.returncode != 0:
            words = done.stderr.decode(errors="replace").strip()[-500:]
            raise ChildProcessError(f"{path}: {command[0]} failed ({done.returncode}): {words}")


def write_clips(clips: list[DemoClip], folder: Path) -> int:
    """Write the clips that `folder` lacks, named by id; return how many were written.

    ``index.json`` records the parameters and the size of each file: a file is kept only if both are
    still the same.
    """
    index = _read_index(folder)
    todo = [clip for clip in clips if index.get(clip.id) != _made(clip, folder)]
    if not todo:
        return 0
    # Forked workers would inherit the threads of the progress bar in an unknown state.
    spawn = multiprocessing.get_context("spawn")
    workers = min(WORKERS, os.cpu_count() or 1, len(todo))
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        ProcessPoolExecutor(workers, mp_context=spawn) as pool,
        Progress(
            *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
        ) as progress,
    ):
        bar = progress.add_task("drawing and speaking", total=len(todo))
        jobs = {pool.submit(write_clip, clip, clip_path(folder, clip)): clip for clip in todo}
        try:
            for job in as_completed(jobs):
                job.result()
                index[jobs[job].id] = _made(jobs[job], folder)
                progress.advance(bar)
        finally:
            # Also after a failure or Ctrl-C: finished clips are not generated again.
            pool.shutdown(cancel_futures=True)
            folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(index, indent=1, sort_keys=True)
            atomic_write(folder / "index.json", text.encode())
    return len(todo)


def clip_path(folder: Path, clip: DemoClip) -> Path:
    """Return the path of the clip in `folder`."""
    return folder / f"{clip.id}.mp4"


def _made(clip: DemoClip, folder: Path) -> list[object]:
    """Return a clip's index entry: digest of its parameters, and the file's size (-1: no file)."""
    parameters = json.dumps([VERSION, asdict(clip)], sort_keys=True)
    path = clip_path(folder, clip)
    size = path.stat().st_size if path.is_file() else -1
    return [hashlib.sha256(parameters.encode()).hexdigest(), size]


def _read_index(folder: Path) -> dict[str, object]:
    try:
        index = json.loads((folder / "index.json").read_text())
    except (FileNotFoundError, ValueError):  # after a damaged index the clips are generated again
        return {}
    return index if isinstance(index, dict) else {}


def _write_wave(path: Path, waveform: np.ndarray) -> None:
    """Write the waveform as 16-bit mono."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.round(waveform * 32767).astype("<i2").tobytes())
