"""``python -m train predict RUN CLIPS``: predict new videos with a finished run.

A clip is decoded, sampled, encoded and rounded by the same code and settings as the store that the
run was trained on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manifests.command_line import add_command
from manifests.console import Console
from train.predict.inputs import check_clips, check_run

if TYPE_CHECKING:  # the imports take seconds; `--help` and wrong paths must not wait
    import numpy as np

    from cache import Features, Record
    from extract.job import Job
    from manifests import Manifest
    from train.predict.trained_model import Prediction, TrainedModel

EXIT_SOME_FAILED = 3
MISSING = {
    "text": "no transcript",
    "audio": "no sound",
    "vision": "no picture",
    "context": "no preceding utterances",
}


def add_commands(commands: Any) -> None:
    """Register ``predict``."""
    parser = add_command(
        commands,
        "predict",
        _predict,
        "predict new videos with a finished run",
        ['RUN clip.mp4 --text "the film was good"', "RUN clips.csv --json predictions.json"],
        "Run new videos through the encoder and the model of a finished run. Missing sound or "
        "pictures are treated as a missing modality, a missing transcript as an empty text; the "
        "output names what is missing.",
        status=(
            "Exit status: 0 all clips predicted, 1 error, 2 wrong usage, "
            f"{EXIT_SOME_FAILED} some clips could not be read."
        ),
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument(
        "clips",
        type=Path,
        metavar="CLIPS",
        help="a video, a folder of videos, or a CSV with the column video and, where known, text, "
        "start, end (seconds) and id",
    )
    parser.add_argument("--text", help="transcript of a single video")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write all numbers to FILE, in the order of CLIPS; lines are printed in the order in "
        "which files are read",
    )
    parser.add_argument("--checkpoint", type=Path, help="weights file of the encoder imagebind")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument(
        "--timeout",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="longest time to decode one file (default: 600)",
    )


def _predict(options: argparse.Namespace, console: Console) -> int:
    check_run(options.folder)
    check_clips(options.clips, options.text)
    from train import run_folder
    from train.predict.clips import read_clips
    from train.predict.trained_model import TrainedModel
    from train.report import print_plain, quiet_transformers

    quiet_transformers(console)
    run = TrainedModel(options.folder, options.device)
    data, clips, unread = read_clips(options.clips, options.text, run.card)
    if unread:
        print_plain(console, f"note: columns that are not read: {', '.join(unread)}")
    job = encoder_job(run, options.checkpoint, options.device, options.timeout)
    results: dict[str, ClipResult] = {}
    try:
        for result in predict(run, job, clips, data):
            print_plain(console, result.line())
            results[result.id] = result
    finally:
        if options.json:  # after an error too: the clips predicted so far, in the order given
            rows = [asdict(results[i]) for i in map(str, clips.table["id"]) if i in results]
            about = {"run": str(options.folder), "dataset": run.card.name, "task": run.card.task}
            run_folder.write_json(options.json, {**about, "clips": rows})
    return EXIT_SOME_FAILED if any(result.error for result in results.values()) else 0


@dataclass(frozen=True)
class ClipResult:
    """The result for one clip.

    Attributes:
        id: the clip's id.
        video: the path of its video, as given.
        error: why the clip could not be predicted; empty if it could.
        missing: the inputs treated as missing, of text, audio, vision and context.
        answer: the model's prediction; None with an error.
    """

    id: str
    video: str
    error: str
    missing: list[str]
    answer: Prediction | None

    def line(self) -> str:
        """Format the result as one line: the prediction, then the scores of the sub-tasks."""
        if self.answer is None:
            return f"{self.id}: failed: {self.error}"
        prediction, scores = self.answer.prediction, self.answer.scores
        if isinstance(prediction, float):
            parts = [f"{prediction:.3f}", *(f"{k} {scores[k]:.3f}" for k in scores if k != "M")]
        else:
            classes = [prediction] if isinstance(prediction, str) else prediction
            parts = [", ".join(classes) or "none"]
            for k, score_of_class in scores.items():
                assert isinstance(score_of_class, dict)
                numbers = (f"{score_of_class[name]:.3f}" for name in classes or score_of_class)
                parts.append(f"{k} {', '.join(numbers)}")
        line = f"{self.id}: {'  '.join(parts)}"
        missing = ", ".join(MISSING[name] for name in self.missing)
        return f"{line}  ({missing}: treated as missing)" if missing else line


def encoder_job(run: TrainedModel, checkpoint: Path | None, device: str, timeout: float) -> Job:
    """Return the job that extracts clips exactly as the run's store was extracted.

    Args:
        run: provides the encoder's name, the sampling and the stored dtype.
        checkpoint: weights file of the encoder imagebind; None: its default place.
        device: the encoder's device.
        timeout: seconds that decoding one file may take.

    Raises:
        ValueError: the available encoder differs from the one that made the run's features.
    """
    from extract.encoders import NAMES, PRECISIONS, EncoderIdentity, EncoderSpec, load
    from extract.job import Job
    from extract.sampling import Sampling

    made_by = run.recipe.encoders["audio"]
    name, settings = run.recipe.encoder, made_by.settings
    if name not in NAMES:
        raise ValueError(
            f"the run was trained on features of {name!r}, which were not extracted here: they "
            f"cannot be made from a new video (encoders: {', '.join(NAMES)})"
        )
    precisions = {dtype: precision for precision, dtype in PRECISIONS.items()}
    precision = precisions[settings.get("precision", "float32")]
    spec = EncoderSpec(name, checkpoint, device, precision)
    trained = EncoderIdentity(made_by.weights, settings, made_by.preprocess)
    difference = EncoderIdentity.of(load(spec)).difference(trained)
    if difference:
        raise ValueError(
            f"the encoder {name} differs from the one that the run was trained with: "
            f"{difference}; use the same weights and release, or extract and train again"
        )
    return Job(
        data=Path(),
        place=Path(),
        store=None,
        encoder=spec,
        identity=trained,
        sampling=Sampling(**run.recipe.sampling),
        dtype=run.recipe.dtype,
        timeout=timeout,
    )


def predict(run: TrainedModel, job: Job, clips: Manifest, data: Path) -> Iterator[ClipResult]:
    """Extract and predict clips block by block; clips of one video are decoded together.

    Args:
        run: the model.
        job: the job of `encoder_job`; no store is written.
        clips: the clips; their labels are ignored.
        data: the folder that the clips' paths are relative to.
    """
    from cache.store.parts import round_to_dtype
    from extract.block import encode_block, single_thread
    from extract.plan import durations, plan_blocks, utterances_of
    from train.context import has_context, preceding

    rows, turns = clips.table, run.config.text.context_turns
    with_context = turns > 0 and has_context(rows)
    before = preceding(rows, turns) if with_context else [[] for _ in range(len(rows))]
    texts = dict(zip(rows["id"], rows["text"].fillna("").str.strip(), strict=True))
    contexts = dict(zip(rows["id"], before, strict=True))
    utterances = utterances_of(clips)
    for block in plan_blocks(utterances, durations(utterances, data), 1):
        with single_thread():
            extracted, encoded = encode_block(replace(job, data=data.resolve()), block)
        records = {record.id: record for record in extracted}
        errors = {i: _error(record, run.frame_limit) for i, record in records.items()}
        ids = [i for i in records if not errors[i]]
        features = _features(extracted, round_to_dtype(extracted, encoded, job.dtype), ids)
        answers = run.predict(features, [texts[i] for i in ids], [contexts[i] for i in ids])
        answer_of = dict(zip(ids, answers, strict=True))
        for u in block:
            missing = _missing(records[u.id], texts[u.id], turns > 0 and not with_context)
            yield ClipResult(u.id, u.video, errors[u.id], missing, answer_of.get(u.id))


def _error(record: Record, frame_limit: int | None) -> str:
    """Return why an extracted clip cannot be predicted; empty if it can."""
    if record.status == "failed":
        return record.error
    frames = max(record.audio_frames, record.vision_frames)
    if frame_limit is not None and frames > frame_limit:
        return f"too long: {frames} frames, the model takes {frame_limit}; give start and end"
    return ""


def _missing(record: Record, text: str, no_context: bool) -> list[str]:
    """Return the names of a clip's missing inputs; none of a failed clip."""
    missing = {
        "text": not text,
        "audio": not record.audio_frames,
        "vision": not record.vision_frames,
        "context": no_context,
    }
    return [] if record.status == "failed" else [name for name in missing if missing[name]]


def _features(records: list[Record], encoded: dict[str, np.ndarray], ids: list[str]) -> Features:
    """Return the features of some utterances of a block, as a store returns them."""
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
