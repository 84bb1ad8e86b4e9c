"""Compare two stores: recipes, utterances, statuses and values.

Stores with the same recipe should agree to the rounding of their dtype, whatever machine made them;
stores with different recipes show the effect of a setting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cache.features import Features
from cache.reader import FeatureStore
from cache.store.recipe import FORMAT_VERSION, NAMES_ONLY, Recipe

BLOCK_VALUES = 1 << 20
"""Values compared at a time, which bounds the memory for stores of any size."""


@dataclass(frozen=True)
class Distance:
    """Differences between the values of one modality, over the utterances that can be compared.

    Attributes:
        utterances: compared utterances: in both stores, with equally many rows, at least one.
        rows: compared rows.
        lengths: utterances that have different numbers of rows, which are not compared.
        largest: the largest absolute difference.
        mean: the mean absolute difference.
        cosine: the lowest cosine of two rows; 1 where both are zero.
        farthest: the utterance with the largest difference, empty if there is none.
    """

    utterances: int = 0
    rows: int = 0
    lengths: int = 0
    largest: float = 0.0
    mean: float = 0.0
    cosine: float = 1.0
    farthest: str = ""


@dataclass(frozen=True)
class Difference:
    """The differences between two stores, a and b.

    Attributes:
        recipe: setting -> its values in a and b, None where a store has no such setting.
        only_a: utterances that only a has.
        only_b: utterances that only b has.
        status: utterance -> its statuses in a and b.
        widths: modality -> its columns in a and b, if they differ; its values are not compared.
        values: modality -> distance, if a and b have equally many columns.
    """

    recipe: dict[str, tuple[Any, Any]]
    only_a: list[str]
    only_b: list[str]
    status: dict[str, tuple[str, str]]
    widths: dict[str, tuple[int, int]]
    values: dict[str, Distance]

    @property
    def equal(self) -> bool:
        """Whether the stores are equal in every bit."""
        different = self.recipe or self.only_a or self.only_b or self.status or self.widths
        return not different and not any(d.largest or d.lengths for d in self.values.values())


def diff(
    a: FeatureStore, b: FeatureStore, on_bytes: Callable[[int, int], None] | None = None
) -> Difference:
    """Compare two stores.

    Args:
        a: a store.
        b: another one.
        on_bytes: called with (bytes of a's features compared, total bytes).

    Raises:
        ValueError: a store is damaged.
    """
    left, right = _settings(a.recipe, b.recipe), _settings(b.recipe, a.recipe)
    both = [i for i in a.ids if i in b.status]
    columns = {m: (a.widths.get(m, 0), b.widths.get(m, 0)) for m in {**a.widths, **b.widths}}
    return Difference(
        recipe={
            key: (left.get(key), right.get(key))
            for key in sorted(left.keys() | right.keys())
            if left.get(key) != right.get(key)
        },
        only_a=[i for i in a.ids if i not in b.status],
        only_b=[i for i in b.ids if i not in a.status],
        status={i: (a.status[i], b.status[i]) for i in both if a.status[i] != b.status[i]},
        widths={m: pair for m, pair in columns.items() if pair[0] != pair[1]},
        values=_distances(a, b, both, [m for m, (n, o) in columns.items() if n == o], on_bytes),
    )


def _distances(
    a: FeatureStore,
    b: FeatureStore,
    ids: list[str],
    modalities: list[str],
    on_bytes: Callable[[int, int], None] | None,
) -> dict[str, Distance]:
    # Mapped, not loaded: each row is read once.
    pairs = {m: (a.select(ids, False, [m]), b.select(ids, False, [m])) for m in modalities}
    total = sum(_bytes_compared(ours, theirs, m) for m, (ours, theirs) in pairs.items())
    compared_bytes = 0

    def on_block(size: int) -> None:
        nonlocal compared_bytes
        compared_bytes += size
        if on_bytes is not None:
            on_bytes(compared_bytes, total)

    return {m: _distance(ours, theirs, m, on_block) for m, (ours, theirs) in pairs.items()}


def _distance(
    ours: Features, theirs: Features, modality: str, on_block: Callable[[int], None]
) -> Distance:
    lengths, compared = ours.lengths[modality], _comparable(ours, theirs, modality)
    largest, total, cosine, farthest = 0.0, 0.0, 1.0, ""
    for block in _blocks(compared, lengths, ours.values[modality].shape[1]):
        x = ours.batch(block)[modality].values
        y = theirs.batch(block)[modality].values
        on_block(x.nbytes)
        if x.dtype == y.dtype and torch.equal(x, y):
            continue
        x, y = x.double(), y.double()
        apart = (x - y).abs_()
        total += float(apart.sum())
        cosine = min(cosine, float(_cosine(x, y).min()))
        by_row = apart.amax(dim=1)
        if float(by_row.max()) > largest:
            largest = float(by_row.max())
            ends = lengths[block].cumsum(0)
            place = torch.searchsorted(ends, int(by_row.argmax()), right=True)
            farthest = ours.ids[int(block[place])]
    rows = int(lengths[compared].sum())
    return Distance(
        utterances=len(compared),
        rows=rows,
        lengths=int((lengths != theirs.lengths[modality]).sum()),
        largest=largest,
        mean=total / max(1, rows * ours.values[modality].shape[1]),
        cosine=cosine,
        farthest=farthest,
    )


def _comparable(ours: Features, theirs: Features, modality: str) -> Tensor:
    """Indices of the utterances with equally many rows, at least one."""
    lengths = ours.lengths[modality]
    return torch.nonzero((lengths == theirs.lengths[modality]) & (lengths > 0)).squeeze(1)


def _bytes_compared(ours: Features, theirs: Features, modality: str) -> int:
    rows = int(ours.lengths[modality][_comparable(ours, theirs, modality)].sum())
    values = ours.values[modality]
    return rows * values.shape[1] * values.element_size()


def _blocks(places: Tensor, lengths: Tensor, width: int) -> tuple[Tensor, ...]:
    """Split utterances into blocks of about `BLOCK_VALUES` values, at least one in each."""
    ends = lengths[places].cumsum(0) * width
    _, counts = torch.unique_consecutive(ends.sub(1) // BLOCK_VALUES, return_counts=True)
    return places.split(counts.tolist())


def _cosine(x: Tensor, y: Tensor) -> Tensor:
    """Cosine of each row of ``x`` with the row of ``y``; 1 where they are equal, also if zero."""
    products, xx, yy = (torch.einsum("rd,rd->r", *pair) for pair in ((x, y), (x, x), (y, y)))
    cosine = products / (xx * yy).sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where((x == y).all(dim=1), torch.ones_like(cosine), cosine)


def _settings(recipe: Recipe, other: Recipe) -> dict[str, Any]:
    """The settings of a recipe; not by modality if both recipes have one encoder for all."""
    one = recipe.has_one_encoder and other.has_one_encoder
    same_form = replace(recipe, version=NAMES_ONLY if one else FORMAT_VERSION)
    return _flat({"dataset": recipe.dataset, **same_form.as_dict()})


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten ``{"sampling": {"fps": 2}}`` to ``{"sampling.fps": 2}``."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
