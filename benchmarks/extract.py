"""Compare the time of extraction with that of decoding alone and encoding alone.

The benchmark generates 720p clips, and a long 720p video with many utterances. They are processed
by ffmpeg alone, by the encoder alone, by our extraction, and utterance by utterance as a simple
script does. Each runs in a fresh process, in turns. The results are printed as a table.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file

from benchmarks import isolated, report
from benchmarks.command_line import benchmark_parser
from benchmarks.passes import MEASURED, Measured, Task
from extract.encoders import NAMES, PRECISIONS, EncoderSpec
from extract.encoders.imagebind_weights import HUGE, layout, seeded
from extract.ffmpeg import ffmpeg_exe
from extract.job import Utterance
from extract.settings import Settings

TITLES = {
    "decode": "ffmpeg alone, to null",
    "encode": "the encoder alone, on ready tensors",
    "ours": "ours",
    "naive": "utterance by utterance, batches of one",
}
WORK = ("benchmarks.passes", "extract.encoders.embedded", "extract.encoders.imagebind")
# the modules that other processes import

console = Console(stderr=True)


@dataclass(frozen=True)
class Size:
    """Generated videos: ``clips`` files of ``seconds``, and one of ``segments`` times it."""

    picture: str
    clips: int
    seconds: float
    segments: int


SIZES = {
    "tiny": Size("160x120", 2, 1.0, 2),
    "small": Size("1280x720", 8, 8.0, 8),
    "full": Size("1280x720", 32, 8.0, 40),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    sizes = "tiny: a smoke test; small: two minutes of video; full: ten minutes"
    parser = benchmark_parser("extract", __doc__, SIZES, sizes)
    parser.add_argument("--picture", help="size of the videos, such as 640x360 (default: 1280x720)")
    parser.add_argument("--encoder", choices=NAMES, default="embedded", help="default: embedded")
    parser.add_argument(
        "--checkpoint", type=Path, help="weights of imagebind (default: untrained, of full size)"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="default: fp32")
    parser.add_argument(
        "--scratch", type=Path, help="folder for videos and weights (default: /tmp)"
    )
    options = parser.parse_args(arguments)
    isolated.prepare(WORK)
    with tempfile.TemporaryDirectory(prefix="bench-extract-", dir=options.scratch) as scratch:
        tasks = _tasks(Path(scratch), options)
        rows, ratios = _measure(tasks, options.runs)
    text = f"{_table(rows)}\n\n{report.ratio_table(ratios)}\n"
    bars = [
        (f"{row['material']}: {row['name']}", row["video_s_per_s"], row["name"] == "ours")
        for row in rows
    ]
    title = f"Extraction with the encoder {options.encoder}"
    svg = report.bars_svg(title, "seconds of video a second", bars)
    report.write(options.out, "extract", ratios, rows, 1, text, svg)
    print(text)
    return 0


def _tasks(scratch: Path, options: argparse.Namespace) -> dict[str, Task]:
    """Generate the two materials and return the task of each."""
    size = SIZES[options.size]
    size = replace(size, picture=options.picture or size.picture)
    checkpoint = options.checkpoint
    if options.encoder == "imagebind" and checkpoint is None:
        checkpoint = scratch / "untrained.safetensors"
        save_file(seeded(layout(HUGE), seed=0), checkpoint)
    first = generate(scratch / "0.mp4", size.picture, size.seconds)
    for i in range(1, size.clips):
        (scratch / f"{i}.mp4").hardlink_to(first)
    generate(scratch / "long.mp4", size.picture, size.seconds, times=size.segments)
    encoder = EncoderSpec(options.encoder, checkpoint, options.device, options.precision)
    job = Settings(encoder).job(scratch / "store.zarr", scratch)
    ends = [size.seconds * (i + 1) for i in range(size.segments)]
    materials = {
        "clips": [Utterance(f"{i}", f"{i}.mp4") for i in range(size.clips)],
        "long": [Utterance(f"{end}", "long.mp4", end - size.seconds, end) for end in ends],
    }
    return {
        name: Task(replace(job, place=scratch / f"{name}.zarr"), utterances, size.seconds)
        for name, utterances in materials.items()
    }


def generate(path: Path, picture: str, seconds: float, times: int = 1) -> Path:
    """Write a video (H.264, AAC) of a moving, noisy picture and noise, repeated ``times`` times."""
    once = path.with_suffix(".once.mp4")
    inputs = [
        *("-f", "lavfi", "-i", f"testsrc2=s={picture}:r=25:d={seconds},noise=alls=8:allf=t"),
        *("-f", "lavfi", "-i", f"anoisesrc=r=44100:d={seconds}:seed=1:a=0.2"),
    ]
    codec = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "30", "-pix_fmt", "yuv420p"]
    quiet = [ffmpeg_exe(), "-nostdin", "-y", "-loglevel", "error"]
    subprocess.run([*quiet, *inputs, *codec, "-c:a", "aac", str(once)], check=True)
    again = ["-stream_loop", str(times - 1), "-i", str(once), "-c", "copy", str(path)]
    subprocess.run([*quiet, *again], check=True)
    once.unlink()
    return path


def _measure(tasks: dict[str, Task], runs: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Return the medians per material and competitor, and the medians of each run's ratios."""
    samples: dict[str, list[dict[str, Measured]]] = {m: [{} for _ in range(runs)] for m in tasks}
    turns = [(run, *turn) for run in range(runs) for turn in _shuffled(tasks, run)]
    for run, material, name in track(
        turns, "extracting", console=console, disable=not console.is_terminal
    ):
        samples[material][run][name], _ = isolated.run_isolated(MEASURED[name], tasks[material])
    rows = []
    for material, task in tasks.items():
        video = task.seconds * len(task.utterances)
        for name in TITLES:
            row = {
                key: statistics.median(asdict(sample[name])[key] for sample in samples[material])
                for key in ("seconds", "cpu_seconds", "frames", "memory")
            }
            speed = {
                "video_s_per_s": video / row["seconds"],
                "frames_per_s": row["frames"] / row["seconds"],
            }
            rows.append({"material": material, "name": name, "title": TITLES[name], **row, **speed})
    return rows, _ratios(samples)


def _ratios(samples: dict[str, list[dict[str, Measured]]]) -> dict[str, float]:
    """Return the medians per material; names without a prefix are those of the worse material."""
    by_material: dict[str, dict[str, float]] = {}
    for material, runs in samples.items():
        each = [_ratios_of(run) for run in runs]
        by_material[material] = {
            name: statistics.median(ratios[name] for ratios in each) for name in each[0]
        }
    found = list(by_material.values())
    worse = {
        name: (min if name.endswith("_ours") else max)(ratios[name] for ratios in found)
        for name in found[0]
    }
    prefixed = {f"{m}_{name}": v for m, ratios in by_material.items() for name, v in ratios.items()}
    return {**worse, **prefixed}


def _ratios_of(run: dict[str, Measured]) -> dict[str, float]:
    decode, encode, ours, naive = (run[name].seconds for name in TITLES)
    work = run["decode"].cpu_seconds + run["encode"].cpu_seconds
    return {
        "vs_larger_floor": ours / max(decode, encode),
        "vs_sum_of_floors": ours / (decode + encode),
        "cpu_vs_sum_of_floors": run["ours"].cpu_seconds / work,
        "naive_vs_ours": naive / ours,
        "encode_vs_ours": encode / ours,
    }


def _shuffled(tasks: dict[str, Task], run: int) -> list[tuple[str, str]]:
    """Return a different order for every run, so that no two competitors always run in sequence."""
    turns = [(material, name) for material in tasks for name in TITLES]
    return random.Random(run).sample(turns, len(turns))


def _table(rows: Sequence[dict[str, Any]]) -> str:
    headings = ["Material", "what", "video-s/s", "frames/s", "seconds", "CPU s", "memory MB"]
    cells = [
        [
            row["material"],
            row["title"],
            *(
                report.number(row[key])
                for key in ("video_s_per_s", "frames_per_s", "seconds", "cpu_seconds")
            ),
            report.number(row["memory"] / 1e6),
        ]
        for row in rows
    ]
    return report.markdown(headings, cells)


if __name__ == "__main__":
    sys.exit(main())
