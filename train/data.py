"""Join a manifest and a feature store by id into the batches of a split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cache import MODALITIES, Features, FeatureStore, Packed, find
from cache.upgrade import differing_sizes
from manifests import Manifest
from manifests.card import SPLITS
from manifests.printing import get_logger, preview
from train.config import Config, PerceiverConfig
from train.context import has_context, preceding
from train.model.language_model import TokenizedTexts, Tokens, tokenize
from train.task import Task

log = get_logger(__name__)


@dataclass(frozen=True)
class Batch:
    """A batch of utterances of one split.

    Attributes:
        index: ``[B]`` int64, positions in the split.
        text: tokens, or with ``text.source=features`` the store's text features.
        audio: one row per frame; an absent modality has length 0.
        vision: same as audio.
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
        """Copy the batch to a device."""
        return Batch(
            self.index.to(device, non_blocking=True),
            self.text.to(device),
            self.audio.to(device),
            self.vision.to(device),
            self.labels.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class Split:
    """The utterances of one split, in the order of their ids.

    Features and labels are read on first use and then kept in memory; those of the test split are
    first used after the best epoch is chosen.

    Attributes:
        name: train, valid or test.
        rows: manifest rows.
        tokens: the texts; None with ``text.source=features``.
        cache: the feature store.
        task: encodes the labels.
        dropped: ids of the utterances that are excluded because their extraction failed.
    """

    name: str
    rows: pd.DataFrame
    tokens: TokenizedTexts | None
    cache: FeatureStore
    task: Task
    dropped: list[str]

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def ids(self) -> list[str]:
        """Utterance ids; a batch's `index` points into this list."""
        return [str(i) for i in self.rows["id"]]

    @cached_property
    def features(self) -> Features:
        """Features of the frozen encoder."""
        unread = () if self.tokens is None else ("text",)
        modalities = [m for m in self.cache.widths if m not in unread]
        return self.cache.select(self.ids, modalities=modalities)

    @cached_property
    def labels(self) -> Tensor:
        """``[N, C]`` float32 targets."""
        return self.task.encode(self.rows)

    @property
    def text_lengths(self) -> Tensor:
        """``[N]`` int64: tokens, or rows of text features, of each utterance."""
        return self.features.lengths["text"] if self.tokens is None else self.tokens.lengths

    def batch(self, index_B: Tensor) -> Batch:
        """Return the utterances at positions ``index_B``."""
        packed = self.features.batch(index_B)
        text = packed["text"] if self.tokens is None else self.tokens.batch(index_B)
        return Batch(index_B, text, packed["audio"], packed["vision"], self.labels[index_B])

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Iterate over all utterances once, longest text first to keep padding low."""
        order = self.text_lengths.argsort(descending=True, stable=True)
        for index_B in order.split(batch_size):
            yield self.batch(index_B)


def resolve(config: Config, manifest: Manifest) -> Config:
    """Return a copy of the configuration, with the defaults that depend on the dataset.

    If unset, ``text.model`` becomes the language model of the dataset's card (unless
    ``text.source=features``) and ``cache`` the dataset's store in ``stores``.

    Raises:
        ValueError: ``stores`` has no store of the dataset, or several that fit equally well.
    """
    text, store = config.text, config.cache
    if text.source == "model":
        text = replace(text, model=text.model or manifest.card.language_model)
    if not store:
        store = str(find(manifest.card.name, config.stores, manifest.digest, manifest.cuts))
    return replace(config, text=text, cache=store)


def load_splits(
    manifest: Manifest, cache: FeatureStore, task: Task, tokenizer: Any, config: Config
) -> dict[str, Split]:
    """Load all three splits; invalid input is reported here, not after training.

    Args:
        manifest: ids, splits, transcripts and labels.
        cache: the feature store of the same dataset.
        task: encodes the labels.
        tokenizer: the language model's; None to use the store's text features.
        config: limits.

    Raises:
        ValueError: two splits share an id; the store lacks an utterance, belongs to another
            dataset or has several rows per frame; a label is invalid; a video has more frames than
            ``perceiver.max_frames``; a split is empty; or ``text.context_turns`` is set and the
            manifest has no context.
    """
    if cache.dataset != manifest.card.name:
        raise ValueError(
            f"{cache.path} has features of {cache.dataset!r}, not of {manifest.card.name!r}"
        )
    rows = cache.attributes.get("rows_per_frame", {}).get("vision", 1)
    if rows > 1:
        raise ValueError(
            f"{cache.path} has {rows} vision rows per frame (one per crop), training expects one: "
            "extract with --crop-rows mean"
        )
    if tokenizer is None and "text" not in cache.widths:
        raise ValueError(
            f"{cache.path} has no text features, which text.source=features needs: choose a store "
            "with text features (cache=<path>), or set text.source=model"
        )
    if config.text.context_turns and not has_context(manifest.table):
        raise ValueError(
            f"text.context_turns={config.text.context_turns}: the manifest of "
            f"{manifest.card.name!r} has neither a column `context` nor dialogues and turns; set "
            "text.context_turns=0"
        )
    check_no_leak(manifest.table)
    _warn_of_other_videos(manifest, cache)
    return {name: _load_split(name, manifest, cache, task, tokenizer, config) for name in SPLITS}


def _load_split(
    name: str,
    manifest: Manifest,
    cache: FeatureStore,
    task: Task,
    tokenizer: Any,
    config: Config,
) -> Split:
    rows = manifest.split(name)
    status = rows["id"].map(cache.match(rows["id"])).map(cache.status)
    if status.isna().any():
        raise ValueError(
            f"{cache.path} has no features of {int(status.isna().sum())} utterances of the split "
            f"{name!r}, the first is {str(rows.loc[status.isna(), 'id'].iloc[0])!r}; it was "
            "extracted from another manifest: extract again"
        )
    failed = status == "failed"
    if failed.all():
        raise ValueError(f"the split {name!r} of {manifest.card.name!r} has no usable utterance")
    kept = rows[~failed].reset_index(drop=True)
    tokens = None
    if tokenizer is not None:
        texts = [str(text) for text in kept["text"].fillna("")]
        contexts = None
        if config.text.context_turns:
            before = preceding(rows, config.text.context_turns)
            contexts = [c for c, excluded in zip(before, failed, strict=True) if not excluded]
        tokens = tokenize(tokenizer, texts, config.text.max_tokens, contexts)
    dropped = [str(i) for i in rows.loc[failed, "id"]]
    split = Split(name, kept, tokens, cache, task, dropped)
    _check_frames(split, frame_limit(config.perceiver))
    task.encode(kept)  # for its errors only; the labels are encoded again on first use
    return split


def _warn_of_other_videos(manifest: Manifest, cache: FeatureStore) -> None:
    """Log a warning if videos next to the manifest are not those that the store was made from."""
    if manifest.path is None:
        return
    other = differing_sizes(cache, manifest.cuts, manifest.path.parent)
    if other:
        log.warning(
            "the videos of %d utterances have other sizes than those that %s was made from: %s; to "
            "compare their contents: python -m cache sources %s",
            *(len(other), cache.path, preview(other), cache.path),
        )


def check_no_leak(table: pd.DataFrame) -> None:
    """Raise a ValueError if an id is in more than one split (data leak)."""
    splits = table.groupby("id")["split"].agg(lambda names: sorted(set(names)))
    shared = splits[splits.map(len) > 1]
    if len(shared):
        raise ValueError(
            f"{len(shared)} ids are in several splits, the first is {str(shared.index[0])!r} in "
            f"{' and '.join(shared.iloc[0])}: give every utterance a unique id in one split"
        )


def frame_limit(config: PerceiverConfig) -> int | None:
    """Return the maximum number of frames; None if longer utterances are subsampled."""
    subsampled = config.frames is not None or config.long_video == "subsample"
    return None if subsampled else config.max_frames


def _check_frames(split: Split, limit: int | None) -> None:
    if limit is None:
        return
    position = {i: row for row, i in enumerate(split.cache.ids)}
    own = split.cache.match(split.ids)
    rows = [position[own[i]] for i in split.ids]
    for modality in MODALITIES:
        lengths = np.diff(split.cache.offsets(modality))[rows]
        longest = int(lengths.argmax())
        if lengths[longest] > limit:
            raise ValueError(
                f"utterance {split.ids[longest]!r} has {lengths[longest]} {modality} "
                f"frames, the frame embedding has {limit} rows: raise perceiver.max_frames, "
                "or set perceiver.long_video=subsample"
            )
