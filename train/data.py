"""A manifest and a feature cache joined, by id, into the batches of a split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from cache import MODALITIES, FeatureCache, Features, Packed
from manifests import Manifest
from train.config import Config
from train.task import Task
from train.text import TokenizedTexts, Tokens, tokenize

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Batch:
    """Some utterances of one split.

    Attributes:
        index: ``[B]`` int64, their places in the split.
        text: their tokens, or with ``text.source=features`` the store's text features.
        audio: one row per frame; an absent modality has length 0.
        vision: the same.
        labels: ``[B, C]`` float32 targets.
    """

    index: Tensor
    text: Tokens | Packed
    audio: Packed
    vision: Packed
    labels: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch(
            self.index.to(device, non_blocking=True),
            self.text.to(device),
            self.audio.to(device),
            self.vision.to(device),
            self.labels.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class Split:
    """The utterances of one split, resident in memory, in the order of their ids.

    Attributes:
        name: train, valid or test.
        rows: their manifest rows.
        tokens: their texts; None with ``text.source=features``.
        features: what the frozen encoder saw and heard.
        labels: ``[N, C]`` float32 targets.
        dropped: utterances of the split whose extraction failed; they are not here.
    """

    name: str
    rows: pd.DataFrame
    tokens: TokenizedTexts | None
    features: Features
    labels: Tensor
    dropped: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def ids(self) -> list[str]:
        """Utterance ids; a batch's `index` points into this list."""
        return self.features.ids

    @property
    def text_lengths(self) -> Tensor:
        """``[N]`` int64: tokens, or rows of text features, of each utterance."""
        return self.features.lengths["text"] if self.tokens is None else self.tokens.lengths

    def batch(self, index_B: Tensor) -> Batch:
        """The utterances at ``index_B``."""
        packed = self.features.batch(index_B)
        text = packed["text"] if self.tokens is None else self.tokens.batch(index_B)
        return Batch(index_B, text, packed["audio"], packed["vision"], self.labels[index_B])

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """All utterances once, longest text first, so that little is padding."""
        order = self.text_lengths.argsort(descending=True, stable=True)
        for index_B in order.split(batch_size):
            yield self.batch(index_B)


def load_splits(
    manifest: Manifest, cache: FeatureCache, task: Task, tokenizer: Any, config: Config
) -> dict[str, Split]:
    """All three splits.

    Args:
        manifest: ids, splits, transcripts and labels.
        cache: features of the same dataset.
        task: encodes the labels.
        tokenizer: the language model's; None where the cache's text features stand in for it.
        config: limits.

    Raises:
        ValueError: the cache lacks an utterance or belongs to another dataset, a label cannot be
            read, a video has more frames than ``perceiver.max_frames``, or a split is empty.
    """
    if cache.dataset != manifest.card.name:
        raise ValueError(
            f"{cache.path} holds features of {cache.dataset!r}, not of {manifest.card.name!r}"
        )
    if tokenizer is None and "text" not in cache.widths:
        raise ValueError(
            f"{cache.path} holds no text features, which text.source=features asks for: name a "
            "store that was imported with some (cache=<path>), or set text.source=model"
        )
    return {name: _load_split(name, manifest, cache, task, tokenizer, config) for name in SPLITS}


def _load_split(
    name: str,
    manifest: Manifest,
    cache: FeatureCache,
    task: Task,
    tokenizer: Any,
    config: Config,
) -> Split:
    rows = manifest.split(name)
    failed = rows["id"].map(cache.status) == "failed"
    dropped = [str(i) for i in rows.loc[failed, "id"]]
    rows = rows[~failed].reset_index(drop=True)
    if rows.empty:
        raise ValueError(f"the split {name!r} of {manifest.card.name!r} has no usable utterance")
    features = cache.select([str(i) for i in rows["id"]])
    if config.perceiver.long_video == "error":
        _check_frames(features, config.perceiver.max_frames)
    tokens = None
    if tokenizer is not None:
        texts = [str(text) for text in rows["text"].fillna("")]
        tokens = tokenize(tokenizer, texts, config.text.max_tokens)
    return Split(name, rows, tokens, features, task.encode(rows), dropped)


def _check_frames(features: Features, max_frames: int) -> None:
    for modality in MODALITIES:
        lengths = features.lengths[modality]
        longest = int(lengths.argmax())
        if lengths[longest] > max_frames:
            raise ValueError(
                f"utterance {features.ids[longest]!r} has {int(lengths[longest])} {modality} "
                f"frames, the frame embedding has {max_frames} rows: raise perceiver.max_frames, "
                "or set perceiver.long_video=subsample"
            )
