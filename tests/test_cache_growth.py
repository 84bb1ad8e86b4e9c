"""Any sequence of datasets: only new contents are extracted, and the store is that made at once."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import Parts, Record, publish
from cache.at_hand import AtHand, find_at_hand, find_by_name
from cache.share import catalog
from cache.share.location import Location
from cache.share.push import push
from cache.share.verify import verify
from cache.store.parts import Cut
from cache.store.publish import Finished, is_published
from cache.store.publish import replace as replace_store
from cache.store.recipe import digest_of_segments, digest_of_sources
from cache.store.sources import Source
from cache.store.store_source import StoreSource, Wanted
from tests.stores import WIDTHS, build_store, recipe_of, tree_of
from tests.tampering import change_root, reseal, unseal

RECIPE = recipe_of(utterances="")
CUTS: list[Cut] = [(None, None, None), (0.5, 1.5, None), (0.5, 1.5, (0.0, 0.0, 0.5, 1.0))]
Dataset = dict[str, tuple[int, int]]
"""Utterance id to the number of its file's content and of its cut."""

datasets = st.dictionaries(
    st.sampled_from(["a", "b", "ü/x", "c d", "e"]),
    st.tuples(st.integers(0, 3), st.integers(0, len(CUTS) - 1)),
    min_size=1,
)


def content(number: int) -> Source:
    return Source(100 + number, sha256(bytes([number])).hexdigest())


def extracted(i: str, number: int, cut: int) -> tuple[Record, dict[str, np.ndarray]]:
    """What an extraction gives: it depends on the content and the cut only."""
    frames, random = 1 + number, np.random.default_rng([number, cut])
    rows = {m: random.integers(-9, 9, (frames, w)).astype(np.float32) for m, w in WIDTHS.items()}
    source, (start, end, crop) = content(number), CUTS[cut]
    where = (source.sha256, source.bytes, start, end, *(crop or (None,) * 4))
    return Record(i, "ok", "", frames / 2, frames, frames, 0, *where), rows


def grow(stores: Path, dataset: Dataset) -> tuple[Path, set[tuple[int, int]]]:
    """Make the store of a dataset as `extract` does; return it and what was extracted for it."""
    wanted = [Wanted(i, CUTS[cut], content(number)) for i, (number, cut) in dataset.items()]
    sources = {w.id: w.source.sha256 for w in wanted}
    recipe = replace(
        RECIPE, utterances=digest_of_sources((w.id, w.source.sha256, *w.cut) for w in wanted)
    )
    store = stores / recipe.dataset / recipe.store_name
    if is_published(store):
        return store, set()
    hand = find_at_hand(recipe, wanted, stores, (), stores / "borrowed")
    new = {i: key for i, key in dataset.items() if i not in hand.rows}
    for i, key in new.items():
        record, rows = extracted(i, *key)
        Parts(store).write([record], rows, "float16")
    about = {"segments": digest_of_segments((w.id, "v", *w.cut) for w in wanted)}
    finished = Finished(Parts(store), hand.rows, sources)
    return publish(store, recipe, WIDTHS, about, list(dataset), finished=finished), {*new.values()}


@settings(max_examples=10, deadline=None)
@given(st.lists(datasets, min_size=2, max_size=4))
def test_growth_extracts_what_is_new_and_gives_the_same_bytes(steps):
    with tempfile.TemporaryDirectory() as folder:
        seen: set[tuple[int, int]] = set()
        for dataset in steps:
            store, new = grow(Path(folder, "grown"), dataset)
            assert not new & seen
            seen |= {*dataset.values()}
        once, _ = grow(Path(folder, "once"), steps[-1])
        assert once.name == store.name
        assert tree_of(once) == tree_of(store)
        assert verify(store) == []


def test_rows_of_a_store_that_is_replaced_meanwhile_are_not_mixed(tmp_path):
    store, _ = grow(tmp_path, {"a": (0, 0), "b": (1, 0)})
    source = StoreSource(store)
    rows = source.records
    assert len(source.read("audio", np.array([0]), np.array([rows[0].audio_frames]))) == 1
    other, _ = grow(tmp_path / "other", {"a": (2, 0), "b": (1, 0)})
    replace_store(store, other)
    with pytest.raises(ValueError, match="was replaced or deleted by another process"):
        source.read("audio", np.array([0]), np.array([1]))


def test_a_damaged_shared_store_is_passed_over_for_the_next_one(tmp_path, caplog):
    share = tmp_path / "share"
    wanted = {"a": (0, 0), "b": (1, 0)}
    for name, dataset in (("one", {**wanted, "e": (3, 0)}), ("two", {**wanted, "e": (2, 1)})):
        push(grow(tmp_path / name, dataset)[0], str(share))
    listed = sorted(catalog.entries(Location.parse(share)), key=lambda entry: entry.when)
    chunk = share / listed[-1].path / "vision/values/c/0/0"
    chunk.chmod(0o644)
    chunk.write_bytes(bytes(chunk.stat().st_size))
    rows = [Wanted(i, CUTS[cut], content(number)) for i, (number, cut) in wanted.items()]
    hand = find_at_hand(RECIPE, rows, tmp_path / "ours", [str(share)], tmp_path / "borrowed")
    assert hand.borrowed == {"a", "b"}
    assert "skipping a shared store" in caplog.text
    for i, row in hand.rows.items():
        _, features = extracted(i, *wanted[i])
        first = sum(r.audio_frames for r in row.source.records[: row.index])
        where = np.array([first]), np.array([row.record.audio_frames])
        assert np.array_equal(row.source.read("audio", *where), features["audio"])


def search(dataset: Dataset, tmp_path: Path, *shares: Path) -> AtHand:
    """Search the shares for the rows of a dataset."""
    wanted = [Wanted(i, CUTS[cut], content(number)) for i, (number, cut) in dataset.items()]
    return find_at_hand(RECIPE, wanted, tmp_path / "s", [*map(str, shares)], tmp_path / "borrowed")


def check_values(hand: AtHand, dataset: Dataset) -> None:
    """Check that each row is what its extraction gives."""
    for i, row in hand.rows.items():
        first = sum(r.audio_frames for r in row.source.records[: row.index])
        where = np.array([first]), np.array([row.record.audio_frames])
        assert np.array_equal(
            row.source.read("audio", *where), extracted(i, *dataset[i])[1]["audio"]
        )


def test_stores_of_one_name_on_two_shares_are_not_mixed(tmp_path):
    """One of them was retried: all rows behind the retried one have other places."""
    dataset: Dataset = {"a": (1, 0), "b": (2, 0)}
    store, _ = grow(tmp_path / "one", dataset)
    push(store, str(tmp_path / "with"))
    for row in extracted("a", 1, 0), extracted("b", 2, 0):
        record, rows = row
        if record.id == "a":
            record = replace(record, status="failed", duration=0.0, audio_frames=0, vision_frames=0)
            rows = {m: values[:0] for m, values in rows.items()}
        Parts(tmp_path / "two/toy" / store.name).write([record], rows, "float16")
    own = StoreSource(store).attributes["recipe"]["utterances"]
    other = tmp_path / "two/toy" / store.name
    publish(other, replace(RECIPE, utterances=own), WIDTHS, {}, list(dataset))
    push(other, str(tmp_path / "without"))
    hand = search(dataset, tmp_path, tmp_path / "without", tmp_path / "with")
    assert hand.borrowed == {"a", "b"}
    check_values(hand, dataset)


def swap_sources(store: Path) -> None:
    path = store / "utterances/source_sha256/c/0"
    data = path.read_bytes()
    path.write_bytes(data[:8] + data[76:140] + data[72:76] + data[8:72] + data[140:])
    reseal(store)


def move_rows(store: Path) -> None:
    path = store / "audio/offsets/c/0"
    path.write_bytes(np.array([0, 10**6, 5]).astype("<i8").tobytes())
    reseal(store)


def empty_root(store: Path) -> None:
    change_root(store, lambda root: root.clear())


FORGERIES = [swap_sources, move_rows, empty_root]


@pytest.mark.parametrize("forge", FORGERIES)
def test_rows_of_an_inconsistent_store_are_not_used(tmp_path, caplog, forge: Callable):
    dataset: Dataset = {"a": (1, 0), "b": (2, 0)}
    forged, _ = grow(tmp_path / "one", dataset)
    push(forged, str(tmp_path / "share"))
    good, _ = grow(tmp_path / "two", {"b": (2, 0)})
    push(good, str(tmp_path / "share"))
    forge(unseal(tmp_path / "share/toy" / forged.name))
    hand = search(dataset, tmp_path, tmp_path / "share")
    assert hand.rows.keys() == {"b"}
    check_values(hand, dataset)
    segments = StoreSource(forged).attributes["segments"]
    assert not find_by_name(RECIPE, segments, {}, tmp_path / "s", [str(tmp_path / "share")])
    assert "skipping a shared store" in caplog.text
    local = tmp_path / "local/toy" / forged.name
    grow(tmp_path / "local", dataset)
    forge(unseal(local))
    wanted = [Wanted("a", CUTS[0], content(1))]
    assert find_at_hand(RECIPE, wanted, tmp_path / "local", (), tmp_path / "borrowed").rows == {}


@pytest.mark.parametrize("lie", ["features", "segments"])
def test_a_catalogue_that_lies_is_not_believed(tmp_path, caplog, lie):
    share = tmp_path / "share"
    if lie == "features":
        store = build_store(tmp_path / "one", {"a": (2, 2)}, recipe=recipe_of(weights="01"))
    else:
        store, _ = grow(tmp_path / "one", {"a": (1, 0)})
    push(store, str(share))
    entry = share / "catalog/toy" / f"{store.name}.json"
    claims = {"features": RECIPE.features_digest, "segments": "5" * 64}
    entry.write_text(json.dumps(json.loads(entry.read_text()) | claims))
    assert find_by_name(RECIPE, "5" * 64, {}, tmp_path / "s", [str(share)]) is None
    assert f"has other {'encoders' if lie == 'features' else 'segments'} than" in caplog.text
    assert not (tmp_path / "s").exists()
    if lie == "features":
        assert search({"a": (1, 0)}, tmp_path, share).rows == {}
