"""Stores that are exported and imported again are what they were."""

import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import FeatureStore
from cache.convert.export import export
from cache.convert.import_features import import_source, read
from tests.foreign import (
    back,
    manifest_of,
    mmsa_file,
    ramp,
    rows_of,
    split_of,
)
from tests.stores import LENGTHS, WIDTHS, WITH_TEXT, build_store, tree_of

IDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
RAGGED_WITH_TEXT = st.dictionaries(IDS, st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=6)
RAGGED = st.dictionaries(
    IDS, st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=6
)
ROUND_TRIPS = settings(max_examples=10, deadline=None)


@pytest.mark.parametrize("form", ["h5", "npz"])
@ROUND_TRIPS
@given(lengths=RAGGED)
def test_a_store_survives_the_round_trip(form, lengths):
    with tempfile.TemporaryDirectory() as folder:
        store = build_store(Path(folder, "a"), lengths)
        out = Path(folder, f"file.{form}")
        export(store, form, out)
        copy = import_source(read(out, form), form, Path(folder, "b"))
        assert rows_of(copy) == rows_of(store)
        before, after = FeatureStore.open(store), FeatureStore.open(copy)
        assert (after.dataset, after.widths, after.status) == ("toy", WIDTHS, before.status)
        for column in ("error", "duration"):
            assert list(after.column(column)) == list(before.column(column))
        # Everything but the root attributes is the same, byte for byte.
        changed = {"zarr.json", "checksums.json"}
        files = [
            {name: data for name, data in tree_of(s).items() if name not in changed}
            for s in (store, copy)
        ]
        assert files[0] == files[1]


@ROUND_TRIPS
@given(lengths=RAGGED)
def test_a_store_survives_the_round_trip_through_mmsa(lengths):
    with tempfile.TemporaryDirectory() as folder:
        store = build_store(Path(folder, "a"), lengths)
        out = Path(folder, "file.pkl")
        export(store, "mmsa", out, manifest_of(Path(folder), list(lengths)))
        source = read(out, "mmsa")
        assert rows_of(back(out, "mmsa", Path(folder, "b"))) == rows_of(store)
        assert source.table is not None
        texts = dict(zip(source.table["id"], source.table["text"], strict=True))
        assert texts == {i: f"words of {i}" for i in lengths}


@pytest.mark.parametrize("form", ["h5", "npz", "mmsa"])
@ROUND_TRIPS
@given(lengths=RAGGED_WITH_TEXT)
def test_text_features_survive_the_round_trip(form, lengths):
    with tempfile.TemporaryDirectory() as folder:
        store = build_store(Path(folder, "a"), lengths, WITH_TEXT)
        before = FeatureStore.open(store)
        assert before.counts["text_frames"] == sum(n[2] for n in lengths.values())
        out = Path(folder, f"file.{form}")
        manifest = manifest_of(Path(folder), list(lengths)) if form == "mmsa" else None
        export(store, form, out, manifest)
        copy = back(out, form, Path(folder, "b"))
        assert FeatureStore.open(copy).widths == WITH_TEXT
        assert rows_of(copy) == rows_of(store)
        assert FeatureStore.open(copy).status == before.status
        without = import_source(read(out, form, text=False), form, Path(folder, "b"), "toy")
        assert FeatureStore.open(without).widths == WIDTHS
        assert rows_of(without) == {i: rows[:2] for i, rows in rows_of(store).items()}


def test_mmsa_files_have_the_structure_that_mmsa_reads(tmp_path):
    store = build_store(tmp_path)
    export(store, "mmsa", tmp_path / "f.pkl", manifest_of(tmp_path, list(LENGTHS)))
    content = pickle.loads((tmp_path / "f.pkl").read_bytes())  # our own, just written
    assert list(content) == ["train", "valid", "test"]
    for part in content.values():
        count = len(part["id"])
        assert part["audio"].shape == (count, 4, 3)  # the longest of all splits
        assert part["vision"].shape == (count, 4, 5)
        assert part["audio"].dtype == np.float32
        assert {len(part[key]) for key in part} == {count}
        assert set(part) == {
            *("raw_text", "audio", "vision", "id", "text", "text_bert", "audio_lengths"),
            *("vision_lengths", "annotations", "regression_labels", "regression_labels_T"),
            "classification_labels",
        }
    found = {
        (annotation, float(label), float(number))
        for part in content.values()
        for annotation, label, number in zip(
            part["annotations"],
            part["regression_labels"],
            part["classification_labels"],
            strict=True,
        )
    }
    assert found == {("Negative", -1.5, 0.0), ("Neutral", 0.0, 1.0), ("Positive", 2.0, 2.0)}


def test_order_in_the_file_means_nothing(tmp_path):
    store = build_store(tmp_path / "a")
    export(store, "npz", tmp_path / "f.npz")
    found = dict(np.load(tmp_path / "f.npz"))
    order = np.random.default_rng(0).permutation(len(found["ids"]))
    for name in ("ids", "status", "error", "duration"):
        found[name] = found[name][order]
    for m in WIDTHS:
        runs = np.split(found[f"{m}/values"], found[f"{m}/offsets"][1:-1])
        found[f"{m}/values"] = np.concatenate([runs[place] for place in order])
        lengths = np.diff(found[f"{m}/offsets"])[order]
        found[f"{m}/offsets"] = np.concatenate([[0], np.cumsum(lengths)])
    np.savez(tmp_path / "g.npz", **found)
    assert rows_of(back(tmp_path / "g.npz", "npz", tmp_path / "b")) == rows_of(store)


def test_the_same_file_gives_the_same_store_under_any_path(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        mmsa_file(tmp_path / folder, split_of(["a", "b"], ramp(2, 3, 2), ramp(2, 3, 4)))
    stores = [
        back(tmp_path / f / "features.pkl", "mmsa", tmp_path / f / "stores") for f in ("x", "y")
    ]
    assert stores[0].name == stores[1].name
    assert tree_of(stores[0]) == tree_of(stores[1])
    again = back(tmp_path / "x" / "features.pkl", "mmsa", tmp_path / "x" / "stores")
    assert again == stores[0]


def test_what_is_asked_of_an_import_is_in_its_digest(tmp_path):
    path = mmsa_file(tmp_path, split_of(["a"], ramp(1, 3, 2), ramp(1, 3, 4)))
    changes = [{}, {"dtype": "float32"}, {"non_finite": "zero"}, {"name": "other"}]
    stores = [back(path, "mmsa", tmp_path, **change) for change in changes]
    assert len({FeatureStore.open(store).digest for store in stores}) == len(changes)
