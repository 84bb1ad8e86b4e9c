"""``python -m train predict RUN CLIPS``: new videos through a run's own encoder and model.

A clip takes the way that it would have taken through extraction and evaluation, by the same code:
sampling, encoder and rounding are those of the store that the run was trained on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:  # the imports take seconds, `--help` and typos should not wait
    import numpy as np

    from cache import Features, Record
    from extract.job import Job
    from manifests import Manifest
    from train.predict.finished_run import Answer, TrainedModel

EXIT_SOME_FAILED = 3
LACKS = {
    "text": "no transcript",
    "audio": "no sound",
    "vision": "no picture",
    "context": "nothing said before",
}


def add_commands(commands: Any) -> None:
    """Register ``predict``."""
    parser = commands.add_parser(
        "predict",
        help="judge new videos by a finished run",
        description="Take new videos through the encoder and the model of a finished run. A "
        "sound or picture that a clip lacks is treated as missing, a transcript is read as an "
        "empty text; either is said.",
        epilog="Exit status: 0 all clips judged, 1 error, 2 wrong usage, "
        f"{EXIT_SOME_FAILED} some clips could not be read.",
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument(
        "clips",
        type=Path,
        metavar="CLIPS",
        help="a video, a folder of videos, or a CSV with a column video and, where known, text, "
        "start, end (seconds) and id",
    )
    parser.add_argument("--text", help="transcript of the one video")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write all numbers there, clips in the order given; lines come as files are read",
    )
    parser.add_argument("--checkpoint", type=Path, help="weights file of the encoder imagebind")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument(
        "--timeout", type=float, default=600.0, help="seconds a file may take (600)"
    )
    parser.set_defaults(run=_predict)


def _predict(options: argparse.Namespace, console: Console) -> int:
    from train import run_folder
    from train.predict.clips import read_clips
    from train.predict.finished_run import TrainedModel
    from train.report import quiet_transformers, say

    quiet_transformers(console)
    run = TrainedModel(options.folder, options.device)
    data, clips, unread = read_clips(options.clips, options.text, run.card)
    if unread:
        say(console, f"note: columns that are not read: {', '.join(unread)}")
    job = encoder_job(run, options.checkpoint, options.device, options.timeout)
    found: dict[str, Prediction] = {}
    try:
        for prediction in predict(run, job, clips, data):
            say(console, prediction.line())
            found[prediction.id] = prediction
    finally:
        if options.json:  # what was judged is kept, in the order given
            rows = [asdict(found[i]) for i in map(str, clips.table["id"]) if i in found]
            about = {"run": str(options.folder), "dataset": run.card.name, "task": run.card.task}
            run_folder.write_json(options.json, {**about, "clips": rows})
    return EXIT_SOME_FAILED if any(each.error for each in found.values()) else 0


@dataclass(frozen=True)
class Prediction:
    """What a run says of one clip.

    Attributes:
        id: of the clip.
        video: its path as it was given.
        error: why it could not be judged; empty if it was.
        missing: what was treated as missing, of text, audio, vision and context.
        answer: of the model; None with an error.
    """

    id: str
    video: str
    error: str
    missing: list[str]
    answer: Answer | None

    def line(self) -> str:
        """For a reader: the prediction, then the scores of the sub-tasks."""
        if self.answer is None:
            return f"{self.id}: failed: {self.error}"
        said, scores = self.answer.prediction, self.answer.scores
        if isinstance(said, float):
            parts = [f"{said:.3f}", *(f"{k} {scores[k]:.3f}" for k in scores if k != "M")]
        else:
            chosen = [said] if isinstance(said, str) else said
            parts = [", ".join(chosen) or "none"]
            for k, of_class in scores.items():
                assert isinstance(of_class, dict)
                numbers = (f"{of_class[name]:.3f}" for name in chosen or of_class)
                parts.append(f"{k} {', '.join(numbers)}")
        line = f"{self.id}: {'  '.join(parts)}"
        lacks = ", ".join(LACKS[what] for what in self.missing)
        return f"{line}  ({lacks}: treated as missing)" if lacks else line


def encoder_job(run: TrainedModel, checkpoint: Path | None, device: str, timeout: float) -> Job:
    """How clips are extracted, so that they give what the run's store would hold.

    Args:
        run: names its encoder, sampling and stored type.
        checkpoint: weights file of the encoder imagebind, where it is not in its usual place.
        device: where the encoder runs.
        timeout: seconds that decoding one file may take.

    Raises:
        ValueError: the encoder at hand is not the one that made the run's features.
    """
    from extract.encoders import NAMES, PRECISIONS, EncoderIdentity, EncoderSpec, load
    from extract.job import Job
    from extract.sampling import Sampling

    recipe = run.recipe
    name, settings = recipe["encoder"], recipe["settings"]
    if name not in NAMES:
        raise ValueError(
            f"the run was trained on features of {name!r}, which were not extracted here: nothing "
            f"makes such features of a new video (encoders: {', '.join(NAMES)})"
        )
    precisions = {dtype: precision for precision, dtype in PRECISIONS.items()}
    precision = precisions[settings.get("precision", "float32")]
    spec = EncoderSpec(name, checkpoint, device, precision)
    trained = EncoderIdentity(recipe["weights"], settings, recipe["preprocess"])
    difference = EncoderIdentity.of(load(spec)).difference(trained)
    if difference:
        raise ValueError(
            f"the encoder {name} at hand is not the one that the run was trained with: "
            f"{difference}; use the same weights and release, or extract and train again"
        )
    return Job(
        data=Path(),
        store=Path(),
        encoder=spec,
        identity=trained,
        sampling=Sampling(**recipe["sampling"]),
        dtype=recipe["dtype"],
        timeout=timeout,
    )


def predict(run: TrainedModel, job: Job, clips: Manifest, data: Path) -> Iterator[Prediction]:
    """Judge clips as they are extracted, neighbours in one video together.

    Args:
        run: the model.
        job: from `encoder_job`; nothing is written, so that it needs no store.
        clips: what to judge; labels are not read.
        data: the folder that their paths are relative to.
    """
    from cache.store.parts import rounded
    from extract.block import encode_block, single_thread
    from extract.plan import durations, plan_blocks, utterances_of
    from train.context import has_context, preceding

    rows, turns = clips.table, run.config.text.context_turns
    told = turns > 0 and has_context(rows)
    before = preceding(rows, turns) if told else [[] for _ in range(len(rows))]
    texts = dict(zip(rows["id"], rows["text"].fillna("").str.strip(), strict=True))
    contexts = dict(zip(rows["id"], before, strict=True))
    utterances = utterances_of(clips)
    for block in plan_blocks(utterances, durations(utterances, data), 1):
        with single_thread():
            made, encoded = encode_block(replace(job, data=data.resolve()), block)
        records = {record.id: record for record in made}
        errors = {i: _error(record, run.frame_limit) for i, record in records.items()}
        ids = [i for i in records if not errors[i]]
        features = _features(made, rounded(made, encoded, job.dtype), ids)
        answers = run.answers(features, [texts[i] for i in ids], [contexts[i] for i in ids])
        found = dict(zip(ids, answers, strict=True))
        for u in block:
            missing = _missing(records[u.id], texts[u.id], turns > 0 and not told)
            yield Prediction(u.id, u.video, errors[u.id], missing, found.get(u.id))


def _error(record: Record, frame_limit: int | None) -> str:
    """Why an extracted clip cannot be judged, empty if it can."""
    if record.status == "failed":
        return record.error
    frames = max(record.audio_frames, record.vision_frames)
    if frame_limit is not None and frames > frame_limit:
        return f"too long: {frames} frames, the model takes {frame_limit}; give start and end"
    return ""


def _missing(record: Record, text: str, no_context: bool) -> list[str]:
    """What is treated as missing: an empty transcript leaves the special tokens alone."""
    lacks = {
        "text": not text,
        "audio": not record.audio_frames,
        "vision": not record.vision_frames,
        "context": no_context,
    }
    return [] if record.status == "failed" else [what for what, lacking in lacks.items() if lacking]


def _features(records: list[Record], encoded: dict[str, np.ndarray], ids: list[str]) -> Features:
    """The features of some of a block's utterances, as a store would give them."""
    import torch

    from cache import Features

    kept = torch.tensor([record.id in ids for record in records])
    values, starts, lengths = {}, {}, {}
    for modality, rows in encoded.items():
        length_N = torch.tensor([record.frames(modality) for record in records])
        starts[modality] = (length_N.cumsum(0) - length_N)[kept]
        lengths[modality] = length_N[kept]
        values[modality] = torch.from_numpy(rows)
    return Features(ids, values, starts, lengths, resident=False)
