"""Names that every machine can have, and ids in either Unicode form."""

import unicodedata

import pandas as pd
import pytest
import torch

from cache import FeatureStore
from cache.convert.import_features import import_source, read
from cache.share.pull import pull
from cache.share.push import push
from cache.store.recipe import check_portable
from cache.store.temp_paths import TempPath
from manifests import Manifest
from tests.datasets import FAST, write_scores
from tests.foreign import RAGGED_FILE, write_npz
from tests.stores import RECIPE, build_store, recipe_of
from train.__main__ import main as train_main

STORE = RECIPE.store_name
NOT_PORTABLE = [
    *((name, "reserved name on Windows") for name in ("con", "NUL", "Com1", "lpt9.x", "aux .x")),
    *((f"a{mark}b", "cannot be seen") for mark in "\u202e\u2066\u200b\u00ad\ufeff\u2028\u061c"),
    ("a.", "ends with a dot"),
    ("a" * 256, "has 256 bytes; 255 are the most"),
    ("中" * 86, "has 258 bytes"),
    ("é" * 90, "has 270 bytes"),  # when its accents are separate
]


@pytest.mark.parametrize(("name", "reason"), NOT_PORTABLE, ids=range(len(NOT_PORTABLE)))
def test_a_dataset_that_another_system_could_not_have_is_not_published(tmp_path, name, reason):
    with pytest.raises(ValueError, match=f"the dataset .* {reason}.*; rename it in its card"):
        check_portable(name, STORE)
    path = write_npz(tmp_path / "f.npz", RAGGED_FILE)
    with pytest.raises(ValueError, match=reason):
        import_source(read(path, "npz"), "npz", tmp_path, name)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("name", ["a", "Ünï", "中文", "console", "com", "a.b", "a" * 255, "a b"])
def test_other_names_are_good(name):
    check_portable(name, STORE)


def test_the_longest_name_of_a_store_leaves_room_for_its_temporary_names(tmp_path):
    rest = len(STORE) - len("none")
    longest = recipe_of(encoder="e" * (255 - 42 - rest))
    store = build_store(tmp_path / "here", recipe=longest)
    for kind in TempPath:
        path = kind.next_to(store)
        path.touch()
        path.unlink()
    shared = push(store, str(tmp_path / "share"))[0]
    pulled, _ = pull(shared, tmp_path / "pulled")
    assert pulled.name == store.name
    with pytest.raises(ValueError, match=r"the store .* has 214 bytes; 213 are the most"):
        build_store(tmp_path, recipe=recipe_of(encoder="e" * (256 - 42 - rest)))


def test_a_store_that_an_earlier_release_published_is_read_but_not_pushed(tmp_path, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr("cache.store.publish.check_portable", lambda *_: None)
        store = build_store(tmp_path, recipe=recipe_of(dataset="a\u202eb"))
    assert FeatureStore.open(store).dataset == "a\u202eb"
    with pytest.raises(ValueError, match="cannot be seen"):
        push(store, str(tmp_path / "share"))
    assert not (tmp_path / "share").exists()


# --- ids ------------------------------------------------------------------------------------------

NFC, NFD = "é/1", unicodedata.normalize("NFD", "é/1")


@pytest.mark.parametrize(("stored", "asked"), [(NFC, NFD), (NFD, NFC)])
def test_ids_in_the_other_form_are_found_with_one_note(tmp_path, stored, asked, caplog):
    store = FeatureStore.open(build_store(tmp_path, {stored: (2, 3), "b": (1, 1)}))
    assert store.match([asked, "b", asked, "x"]) == {asked: stored, "b": "b"}
    features = store.select([asked, "b"])
    assert features.batch(torch.tensor([0]))["audio"].lengths.tolist() == [2]
    assert caplog.text.count("spells 1 ids with other Unicode characters") == 1


def test_ids_that_differ_in_their_form_only_stay_apart(tmp_path):
    store = FeatureStore.open(build_store(tmp_path, {NFC: (2, 3), NFD: (1, 1)}))
    assert store.match([NFC, NFD]) == {NFC: NFC, NFD: NFD}
    one = FeatureStore.open(build_store(tmp_path / "one", {NFC: (2, 3)}))
    assert one.match([NFC, NFD]) == {NFC: NFC}
    with pytest.raises(ValueError, match="lacks 1 utterances"):
        one.select([NFC, NFD])
    angstrom = "\u212b"  # a third spelling, of which NFC and NFD are Å and A with a ring
    two = FeatureStore.open(build_store(tmp_path / "two", {"Å": (1, 1), "A\u030a": (1, 1)}))
    assert two.match([angstrom]) == {}


def test_training_joins_ids_in_either_form(tmp_path, monkeypatch, capsys, caplog):
    write_scores(tmp_path)
    manifest = Manifest.load(tmp_path / "data/scores")
    table = manifest.table.assign(id=[f"{NFC}{i}" for i in manifest.table["id"]])
    Manifest(manifest.card, table).save(tmp_path / "data/scores")
    monkeypatch.setattr(
        FeatureStore, "ids", property(lambda s: [f"{NFD}{i}" for i in s.column("id")])
    )
    monkeypatch.chdir(tmp_path)
    assert train_main(["fit", "dataset=scores", *FAST, "train.epochs=1"]) == 0
    assert caplog.text.count("with other Unicode characters") == 1
    (run,) = (tmp_path / "runs").rglob("predictions.parquet")
    assert pd.read_parquet(run)["id"].str.startswith(NFC).all()
