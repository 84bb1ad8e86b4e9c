"""Build the ffmpeg filter graph of one pass over a video: seek, sample, scale, crop, resample.

All times are the file's own, with its first timestamp at zero: ``-copyts -start_at_zero`` keep them
after a seek, so an utterance's bits do not depend on what else is decoded in the same pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import ffmpeg

from extract.sampling import IMAGE_SIZE, SAMPLE_RATE, TUBELET_S, Sampling

Span = tuple[float, float | None]
"""Begin and end of an utterance in seconds; an end of None means the file's end."""
Crop = tuple[float, float, float, float]
"""Part of the picture as fractions ``(x, y, width, height)``."""
Output = tuple[str, int]
"""``("vision", k)``: the images of span k; ``("later", k)``: the second ones of its tubelets.
``("audio", s)``: the sound from second s."""

PICTURE_LEAD_S = 1.0
"""Video is decoded from this much earlier, so that a deinterlacer has the previous frame."""
SOUND_GRID_S = 60
SOUND_LEAD_S = 5
"""Sound is decoded from a full minute, at least this long before the utterance.

A decoder's output depends on where it starts (overlap, bit reservoirs, noise): with a grid it
depends on the utterance only, and the lead lets the decoder settle.
"""
_ROUNDING_US = 2  # times of frames and utterances are rounded to microseconds

# The sizes and offsets of torchvision's Resize and CenterCrop, for displayed pixels: sar is the
# width of a stored pixel divided by its height.
_WIDE = "gte(iw*sar,ih)"
_SCALE = {
    "w": f"if({_WIDE},floor({IMAGE_SIZE}*iw*sar/ih+1e-6),{IMAGE_SIZE})",
    "h": f"if({_WIDE},{IMAGE_SIZE},floor({IMAGE_SIZE}*ih/(iw*sar)+1e-6))",
    "flags": "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp+bitexact",
    # the bicubic kernel of Pillow and torch: B = 0, C = 0.5
    "param0": 0,
    "param1": 0.5,
}
_CENTRE = {
    side: f"if(mod({length},2),2*round(({length}-{IMAGE_SIZE})/4),({length}-{IMAGE_SIZE})/2)"
    for side, length in {"x": "iw", "y": "ih"}.items()  # half pixels are rounded to even
}
_FIRST = {"x": "0", "y": "0"}
_LAST = {"x": f"iw-{IMAGE_SIZE}", "y": f"ih-{IMAGE_SIZE}"}


def outputs(
    sampling: Sampling, spans: Sequence[Span], seekable: bool, kinds: Sequence[str]
) -> list[Output]:
    """The output streams of one pass, for the kinds (``vision``, ``audio``) that the file has."""
    wanted: list[Output] = []
    if "vision" in kinds:
        wanted += [("vision", k) for k in range(len(spans))]
        if sampling.vision == "tubelet":
            wanted += [("later", k) for k in range(len(spans))]
    if "audio" in kinds:
        wanted += [("audio", s) for s in sorted({sound_origin(b, seekable) for b, _ in spans})]
    return wanted


def command(
    executable: str,
    path: Path,
    sampling: Sampling,
    spans: Sequence[Span],
    seekable: bool,
    crop: Crop | None,
    sinks: Mapping[Output, int],
) -> list[str]:
    """The command line that writes each output to its file descriptor.

    Images are rgb24 of 224 x 224 (three crops one after another), sound is float32, 16 kHz, mono.
    ``seekable`` is :func:`seeks_to_keyframes` of the file.
    """
    made = []
    pictures = [output for output in sinks if output[0] != "audio"]
    if pictures:
        begin = min(begin for begin, _ in spans) - PICTURE_LEAD_S
        branches = _input(path, begin if seekable else 0)["v:0"]
        # deinterlace only frames flagged as interlaced; one image per frame, at the frame's time
        branches = branches.filter("yadif", deint="interlaced").filter("settb", "AVTB")
        split = branches.filter_multi_output("split", len(pictures))
        for place, (kind, k) in enumerate(pictures):
            branch = split[place] if len(pictures) > 1 else branches
            images = _picture_filters(branch, sampling, spans[k], kind == "later", crop)
            sink = f"pipe:{sinks[kind, k]}"
            # the images are sampled already: ffmpeg must neither repeat nor drop one
            options = {"format": "rawvideo", "pix_fmt": "rgb24", "fps_mode": "passthrough"}
            made.append(ffmpeg.output(images, sink, **options))
    for origin in [s for kind, s in sinks if kind == "audio"]:
        ends = [end for begin, end in spans if sound_origin(begin, seekable) == origin]
        sound = _sound_filters(_input(path, origin)["a:0"], sampling, origin, ends)
        made.append(ffmpeg.output(sound, f"pipe:{sinks['audio', origin]}", format="f32le"))
    merged = ffmpeg.merge_outputs(*made) if len(made) > 1 else made[0]
    quiet = ["-nostdin", "-hide_banner", "-nostats", "-xerror", "-loglevel", "level+info"]
    return list(merged.global_args(*quiet, "-copyts", "-start_at_zero").compile(cmd=executable))


def sound_origin(begin: float, seekable: bool) -> int:
    """The second from which an utterance's sound is decoded."""
    return max(0, int(begin - SOUND_LEAD_S) // SOUND_GRID_S * SOUND_GRID_S) if seekable else 0


def seeks_to_keyframes(path: Path) -> bool:
    """Whether ffmpeg seeks exactly: MP4/MOV, Matroska/WebM and AVI have an index.

    In other files (mostly MPEG streams) a seek may end between keyframes and lose the images up to
    the next one; they are decoded from the begin of the file.
    """
    with path.open("rb") as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" or head[:4] == b"\x1a\x45\xdf\xa3" or head[8:] == b"AVI "


def _input(path: Path, begin: float) -> ffmpeg.nodes.FilterableStream:
    # -noaccurate_seek: the image shown at the begin starts before it
    seek = {"noaccurate_seek": None, "ss": f"{begin:.6f}"} if begin > 0 else {}
    return ffmpeg.input(f"file:{path}", **seek)  # file: so that no name is taken for a protocol


def extra_images(sampling: Sampling) -> int:
    """Number of images decoded before the second image of an utterance's first tubelet.

    The first of them is at or before the utterance's begin, where an image exists: ffmpeg fails if
    an output is empty.
    """
    return math.ceil(TUBELET_S * sampling.fps)


def _picture_filters(
    stream: ffmpeg.nodes.FilterableStream,
    sampling: Sampling,
    span: Span,
    later: bool,
    crop: Crop | None,
) -> ffmpeg.nodes.FilterableStream:
    """Sample the image at each t_i (or later), resize its short side to 224 (bicubic) and crop."""
    begin, end = span
    extra = extra_images(sampling) if later else 0
    first = begin + TUBELET_S - extra / sampling.fps if later else begin
    stream = stream.filter("setpts", f"PTS-{round(first * 1e6) + _ROUNDING_US}")
    # round="up": output i is the last frame whose time is at most i / fps
    stream = stream.filter("fps", fps=f"{sampling.fps:.9g}", round="up", start_time=0)
    if end is not None:
        stream = stream.filter("trim", end_frame=extra + sampling.frames(end - begin))
    if crop is not None:
        x, y, width, height = (f"{fraction:.6f}" for fraction in crop)
        stream = stream.filter("crop", f"iw*{width}", f"ih*{height}", f"iw*{x}", f"ih*{y}")
    # rgb24: with chroma at half resolution only even offsets would be possible
    stream = stream.filter("scale", **_SCALE).filter("format", "rgb24")
    if sampling.crops == 1:
        stream = stream.filter("crop", IMAGE_SIZE, IMAGE_SIZE, **_CENTRE)
    else:  # stacked vertically: [3, 224, 224, 3] in memory
        split = stream.filter_multi_output("split", 3)
        squares = [
            split[i].filter("crop", IMAGE_SIZE, IMAGE_SIZE, **place)
            for i, place in enumerate((_FIRST, _CENTRE, _LAST))
        ]
        stream = ffmpeg.filter(squares, "vstack", inputs=3)
    return stream.filter("setsar", 1)


def _sound_filters(
    stream: ffmpeg.nodes.FilterableStream,
    sampling: Sampling,
    origin: int,
    ends: Sequence[float | None],
) -> ffmpeg.nodes.FilterableStream:
    """Resample sound and align it with the picture: late starts and gaps become silence."""
    if sampling.channel == "first":
        stream = stream.filter("channelmap", map=0, channel_layout="mono")
    start = origin * SAMPLE_RATE
    if origin:
        stream = stream.filter("atrim", start=origin).filter("asetpts", f"PTS-{origin}/TB")
    # The mix's weights sum to one: two equal channels are as loud as one, without clipping.
    mono = {"out_chlayout": "mono", "out_sample_fmt": "flt", "rematrix_maxval": 1}
    stream = stream.filter("aresample", SAMPLE_RATE, first_pts=0, **{"async": 1}, **mono)
    if None not in ends:
        last = max(end for end in ends if end is not None)
        stream = stream.filter("atrim", end_sample=max(1, round(last * SAMPLE_RATE) - start))
    return stream
