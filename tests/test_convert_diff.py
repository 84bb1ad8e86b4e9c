"""Comparing stores block by block."""

import numpy as np
import pytest
import torch

from cache import FeatureStore, Parts, Record, publish
from cache.diff import BLOCK_VALUES, diff
from tests.stores import build_store, recipe_of

WIDTHS = {"audio": 2, "vision": 300}
FRAMES = 4


def store_of(root, rows: dict[str, np.ndarray], dtype: str = "float32"):
    """A store of utterances of `FRAMES` rows in both modalities."""
    recipe = recipe_of(dtype=dtype)
    path = root / "d" / recipe.store_name
    count = len(rows["vision"]) // FRAMES
    records = [Record(f"u{n:06d}", "ok", "", 1.0, FRAMES, FRAMES) for n in range(count)]
    Parts(path).write(records, rows, dtype)
    return FeatureStore.open(publish(path, recipe, WIDTHS, {}, [r.id for r in records]))


def test_blocks_cover_every_row_once_and_tell_how_far_they_are(tmp_path):
    rng = np.random.default_rng(0)
    count = (
        2 * BLOCK_VALUES // (WIDTHS["vision"] * FRAMES) + 7
    )  # three blocks of vision, one of audio
    shape = (count * FRAMES, 1)
    ours = {m: rng.standard_normal((shape[0], w)).astype(np.float32) for m, w in WIDTHS.items()}
    theirs = {m: x + rng.normal(0, 0.1, x.shape).astype(np.float32) for m, x in ours.items()}
    place = shape[0] - FRAMES - 1  # in the last utterance but one
    theirs["vision"][place, 7] += 5
    theirs["audio"][:] = ours["audio"]
    calls: list[tuple[int, int]] = []
    found = diff(
        store_of(tmp_path / "a", ours),
        store_of(tmp_path / "b", theirs),
        on_bytes=lambda done, in_all: calls.append((done, in_all)),
    )
    x, y = (torch.from_numpy(rows["vision"]).double() for rows in (ours, theirs))
    distance = found.values["vision"]
    assert (distance.utterances, distance.rows) == (count, shape[0])
    assert distance.mean == pytest.approx(float((x - y).abs().mean()), rel=1e-12)
    assert distance.largest == float((x - y).abs().max())
    assert distance.farthest == f"u{count - 2:06d}"
    lowest = float(torch.cosine_similarity(x, y, dim=1).min())
    assert distance.cosine == pytest.approx(lowest, rel=1e-12)
    assert found.values["audio"].cosine == 1
    assert len(calls) == 4
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert {in_all for _, in_all in calls} == {calls[-1][0]}
    assert calls[-1][0] == sum(rows.nbytes for rows in ours.values())


def test_zeros_and_the_smallest_values_have_a_cosine_too(tmp_path):
    zeros = {m: np.zeros((FRAMES, w), np.float32) for m, w in WIDTHS.items()}
    tiny = {m: x + np.float32(1e-30) for m, x in zeros.items()}
    larger = {m: x * 1e20 for m, x in tiny.items()}
    a, b, c = (store_of(tmp_path / n, x) for n, x in zip("abc", (zeros, tiny, larger), strict=True))
    assert diff(a, b).values["vision"].cosine == 0
    assert diff(b, c).values["vision"].cosine == pytest.approx(1)


def test_stores_of_other_types_with_equal_values_do_not_differ_in_them(tmp_path):
    rows = {m: np.ones((FRAMES, w), np.float32) for m, w in WIDTHS.items()}
    found = diff(store_of(tmp_path / "a", rows), store_of(tmp_path / "b", rows, "float16"))
    assert list(found.recipe) == ["dtype"]
    assert found.values["vision"].largest == 0
    assert found.values["vision"].cosine == 1


def test_nothing_in_common_is_nothing_compared(tmp_path):
    left, right = (
        build_store(tmp_path / "a", {"a": (1, 1)}),
        build_store(tmp_path / "b", {"b": (1, 1)}),
    )
    found = diff(FeatureStore.open(left), FeatureStore.open(right))
    assert found.values["audio"].utterances == 0
    assert (found.only_a, found.only_b) == (["a"], ["b"])
