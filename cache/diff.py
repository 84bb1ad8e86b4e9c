"""How far two stores lie apart: recipes, utterances, statuses, values.

Stores of one recipe should agree to the rounding of their element type, whatever machine made them;
stores of different recipes show what a setting is worth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cache.reader import FeatureCache

_BLOCK = 256
"""Utterances compared at a time: memory stays bounded whatever the stores' size."""


@dataclass(frozen=True)
class Distance:
    """How far the values of one modality lie apart, over the utterances both stores can compare.

    Attributes:
        utterances: compared: in both stores, with the same number of rows, at least one.
        rows: compared rows.
        lengths: utterances whose numbers of rows differ: not compared.
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
    """What differs between two stores, a and b.

    Attributes:
        recipe: setting -> its values in a and b, None where a store has no such setting.
        only_a: utterances that only a holds.
        only_b: utterances that only b holds.
        status: utterance -> its statuses in a and b.
        widths: modality -> its columns in a and b, where they differ: not compared.
        values: modality -> distance, where the columns are as many.
    """

    recipe: dict[str, tuple[Any, Any]]
    only_a: list[str]
    only_b: list[str]
    status: dict[str, tuple[str, str]]
    widths: dict[str, tuple[int, int]]
    values: dict[str, Distance]

    @property
    def equal(self) -> bool:
        """Whether nothing differs, not one bit of a value."""
        apart = self.recipe or self.only_a or self.only_b or self.status or self.widths
        return not apart and not any(d.largest or d.lengths for d in self.values.values())


def diff(a: FeatureCache, b: FeatureCache) -> Difference:
    """Compare two stores.

    Raises:
        ValueError: a store is damaged.
    """
    left, right = _flat(a.recipe), _flat(b.recipe)
    both = [i for i in a.ids if i in b.status]
    widths = {m: (a.widths.get(m, 0), b.widths.get(m, 0)) for m in {**a.widths, **b.widths}}
    return Difference(
        recipe={
            key: (left.get(key), right.get(key))
            for key in sorted(left.keys() | right.keys())
            if left.get(key) != right.get(key)
        },
        only_a=[i for i in a.ids if i not in b.status],
        only_b=[i for i in b.ids if i not in a.status],
        status={i: (a.status[i], b.status[i]) for i in both if a.status[i] != b.status[i]},
        widths={m: pair for m, pair in widths.items() if pair[0] != pair[1]},
        values=_distances(a, b, both, [m for m, pair in widths.items() if pair[0] == pair[1]]),
    )


def _distances(
    a: FeatureCache, b: FeatureCache, ids: list[str], modalities: list[str]
) -> dict[str, Distance]:
    ours, theirs = a.select(ids), b.select(ids)
    distances = {}
    for modality in modalities:
        lengths = ours.lengths[modality]
        same = lengths == theirs.lengths[modality]
        compared = torch.nonzero(same & (lengths > 0)).squeeze(1)
        largest, total, cosine, farthest = 0.0, 0.0, 1.0, ""
        for block in compared.split(_BLOCK):
            x = ours.batch(block)[modality].values.double()
            y = theirs.batch(block)[modality].values.double()
            apart = (x - y).abs()
            total += float(apart.sum())
            cosine = min(cosine, float(_cosine(x, y).min()))
            if float(apart.max()) > largest:
                largest = float(apart.max())
                row = int(apart.amax(dim=1).argmax())
                ends = lengths[block].cumsum(0)
                farthest = ids[int(block[torch.searchsorted(ends, row, right=True)])]
        rows = int(lengths[compared].sum())
        distances[modality] = Distance(
            utterances=len(compared),
            rows=rows,
            lengths=int((~same).sum()),
            largest=largest,
            mean=total / max(1, rows * a.widths[modality]),
            cosine=cosine,
            farthest=farthest,
        )
    return distances


def _cosine(x: Tensor, y: Tensor) -> Tensor:
    """Cosine of every row of ``x`` with that of ``y``: 1 where they are equal, zeros included."""
    cosine = torch.cosine_similarity(x, y, dim=1)
    return torch.where((x == y).all(dim=1), torch.ones_like(cosine), cosine)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"sampling": {"fps": 2}}`` as ``{"sampling.fps": 2}``."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
