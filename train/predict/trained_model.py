"""TrainedModel: the model of a finished run, loaded from the run's folder alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cache import Features
from cache.store.recipe import NAMES_ONLY, Recipe
from manifests import Card
from train import run_folder
from train.config import load_config
from train.data import Batch, frame_limit
from train.methods import build_method
from train.model.language_model import load_tokenizer, tokenize
from train.predict.inputs import check_run
from train.task import Task

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Prediction:
    """The model's output for one utterance.

    Attributes:
        prediction: a score, the name of a class, or the names of all classes that apply.
        scores: per sub-task ("M" gives the prediction) the score, or a probability for each class.
        reported: the values that the method reports per utterance, by name.
    """

    prediction: float | str | list[str]
    scores: dict[str, float | dict[str, float]]
    reported: dict[str, float]


class TrainedModel:
    """The model of a finished run, in evaluation mode.

    Args:
        folder: the run's folder.
        device: a PyTorch device, such as ``cpu`` or ``cuda:0``.

    Attributes:
        card: the card of the dataset that the model was trained on.
        config: the run's configuration.
        recipe: the encoder, settings and sampling that made the run's features.
        widths: the width of the features of each modality.
        frame_limit: the largest number of frames of an utterance, or None.

    Raises:
        ValueError: the run did not finish, it was trained on text features, or the device does
            not exist.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        check_run(folder)
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"--device {device}: PyTorch sees no such GPU; use cpu")
        self.config = load_config(folder)
        text, loss = self.config.text, self.config.loss
        if text.source == "features" or text.model is None:
            raise ValueError(
                f"{folder} was trained on the text features of its store, which cannot be made "
                "from a transcript here: train with text.source=model"
            )
        self.card = Card.load(folder / "card.yaml")
        encoder = run_folder.read_json(folder / "encoder.json")
        self.recipe = Recipe.of_store({"format_version": NAMES_ONLY, **encoder})
        self.widths: dict[str, int] = encoder["widths"]
        self.frame_limit = frame_limit(self.config.perceiver)
        self._task = Task.from_card(self.card, loss.regression, tuple(self.config.sccl.bins))
        self._tokenizer = load_tokenizer(text.model)
        try:
            self._device = torch.device(device)
        except RuntimeError as error:
            raise ValueError(f"--device {device}: use cpu, cuda or cuda:0") from error
        self._method = build_method(self.config, self._task, self.widths)
        run_folder.load_weights(self._method, folder)
        self._method.to(self._device).eval()

    @torch.inference_mode()
    def predict(
        self, features: Features, texts: Sequence[str], contexts: Sequence[Sequence[str]]
    ) -> list[Prediction]:
        """Predict utterances, in the order of ``features``.

        Args:
            features: audio and vision, as a store with the run's recipe contains them.
            texts: the transcripts; an empty one leaves the language model's special tokens.
            contexts: the preceding utterances of each transcript, oldest first.
        """
        if not len(features):
            return []
        text = self.config.text
        before = contexts if text.context_turns else None
        tokens = tokenize(self._tokenizer, texts, text.max_tokens, before)
        predictions = []
        for index_B in torch.arange(len(features)).split(self.config.train.batch_size):
            packed = features.batch(index_B)
            dummy_labels = torch.zeros(len(index_B), self._task.outputs)  # unused at inference
            batch = Batch(
                index_B, tokens.batch(index_B), packed["audio"], packed["vision"], dummy_labels
            ).to(self._device)
            precision = AUTOCAST_DTYPES.get(self.config.train.precision)
            with torch.autocast(self._device.type, precision, enabled=precision is not None):
                outputs = self._method(batch)
            scores = {
                name: self._task.scores(x_BC).cpu() for name, x_BC in outputs.predictions.items()
            }
            reported = {name: x_B.float().cpu() for name, x_B in outputs.reported.items()}
            rows = range(len(index_B))
            predictions += [self._prediction(row, scores, reported) for row in rows]
        return predictions

    def _prediction(
        self, row: int, scores: dict[str, Tensor], reported: dict[str, Tensor]
    ) -> Prediction:
        task = self._task
        decided = task.names(task.to_decision(scores["M"][row : row + 1].numpy()))
        prediction: float | str | list[str]
        if task.kind == "regression":
            prediction = float(decided[""][0])
        elif task.kind == "classification":
            prediction = str(decided[""][0])
        else:
            prediction = [name.removeprefix("_") for name, yes in decided.items() if yes[0]]
        return Prediction(
            prediction,
            {name: self._plain(x_BC[row]) for name, x_BC in scores.items()},
            {name: float(x_B[row]) for name, x_B in reported.items()},
        )

    def _plain(self, score_C: Tensor) -> float | dict[str, float]:
        if self._task.kind == "regression":
            return float(score_C[0])
        return dict(zip(self._task.classes, score_C.tolist(), strict=True))
