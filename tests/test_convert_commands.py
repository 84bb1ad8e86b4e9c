"""Converting on the command line."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from cache import FeatureStore
from cache.__main__ import main
from cache.convert.export import export
from cache.convert.import_features import read
from manifests import Card, Manifest
from tests.foreign import (
    GOOD,
    RAGGED_FILE,
    back,
    manifest_of,
    mmsa_file,
    write_npz,
)
from tests.stores import build_store


def test_mmsa_file_to_store_and_manifest_on_the_command_line(tmp_path, capsys):
    more = {
        "raw_text": ["one", "two"],
        "regression_labels_T": [0.5, -0.5],
        "annotations": ["Negative", "Positive"],
    }
    path = mmsa_file(tmp_path, GOOD | more)
    data = tmp_path / "data" / "mine"
    command = ["import", str(path), "--from", "mmsa", "--dataset", "mine", "--name", "facet"]
    command += ["--stores", str(tmp_path / "stores"), "--manifest-out", str(data)]
    assert main([*command, "--licence", "CC0"]) == 0
    (store,) = (tmp_path / "stores" / "mine").glob("facet-*.zarr")
    said = capsys.readouterr()
    assert str(store) in said.out
    assert f"{data / 'card.yaml'} is a draft" in said.err
    manifest = Manifest.load(data)
    assert (manifest.card.name, manifest.card.licence) == ("mine", "CC0")
    assert (manifest.card.task, manifest.card.range) == ("regression", [-1, 1])
    assert manifest.table.dropna(axis="columns").to_dict("records") == [
        {"id": "a", "video": "", "split": "train", "text": "one", "language": "en"}
        | {"label": -1.0, "label_t": 0.5, "annotation": "Negative"},
        {"id": "b", "video": "", "split": "train", "text": "two", "language": "en"}
        | {"label": 1.0, "label_t": -0.5, "annotation": "Positive"},
    ]
    assert main(["verify", str(store)]) == 0
    again = [str(store), "--to", "mmsa", str(tmp_path / "again.pkl"), "--manifest", str(data)]
    assert main(["export", *again]) == 0
    assert read(tmp_path / "again.pkl", "mmsa").ids == ["a", "b"]


def imported(tmp_path, content, out) -> int:
    path = mmsa_file(tmp_path, content)
    command = ["import", str(path), "--from", "mmsa", "--dataset", "mine", "--stores"]
    return main([*command, str(tmp_path / "stores"), "--manifest-out", str(out)])


@pytest.mark.parametrize("out", ["mine", "mine/manifest.parquet"])
def test_a_card_in_the_folder_is_kept_and_its_faults_are_noted(tmp_path, capsys, out):
    card = tmp_path / "mine" / "card.yaml"
    Card("mine", "My features", "regression", range=[-0.5, 0.5], language="zh").save(card)
    before = card.read_bytes()
    assert imported(tmp_path, GOOD | {"raw_text": ["one", "two"]}, tmp_path / out) == 0
    error = capsys.readouterr().err
    assert "(id 'a'): label -1.0 is not in [-0.5, 0.5]" in error
    assert ", and 1 more" in error
    assert "draft" not in error
    assert card.read_bytes() == before
    assert list(Manifest.load(tmp_path / "mine").table["language"]) == ["zh", "zh"]


def test_labels_and_texts_that_are_missing_show_in_the_draft(tmp_path, capsys):
    scores = np.array([0.5, np.nan], np.float32)
    assert imported(tmp_path, GOOD | {"regression_labels": scores}, tmp_path / "mine") == 0
    error = capsys.readouterr().err
    assert "(id 'b'): no label: fill it in" in error
    assert "2 texts are empty" in error
    assert not Manifest.load(tmp_path / "mine").card.transcripts


@pytest.mark.parametrize(
    ("annotations", "classes"),
    [(["Positive", "Negative"], ["Negative", "Positive"]), (["Other"] * 2, ["0", "2"])],
)
def test_class_labels_give_a_card_with_classes(tmp_path, annotations, classes):
    content = {key: value for key, value in GOOD.items() if key != "regression_labels"}
    content |= {"classification_labels": np.array([2.0, 0.0]), "annotations": annotations}
    assert imported(tmp_path, content, tmp_path / "mine") == 0
    manifest = Manifest.load(tmp_path / "mine")
    assert (manifest.card.task, manifest.card.classes) == ("classification", classes)
    assert list(manifest.table["label"]) == classes[::-1]


def test_a_table_of_another_name_has_its_card_in_the_same_folder(tmp_path):
    assert imported(tmp_path, GOOD, tmp_path / "sub" / "m.parquet") == 0
    assert sorted(path.name for path in (tmp_path / "sub").iterdir()) == ["card.yaml", "m.parquet"]
    assert imported(tmp_path, GOOD, tmp_path / "sub" / "m.parquet") == 1


def test_the_old_name_of_an_option_works_with_a_note(tmp_path, capsys):
    path = mmsa_file(tmp_path, GOOD)
    command = ["import", str(path), "--from", "mmsa", "--dataset", "d", "--root", str(tmp_path)]
    assert main(command) == 0
    assert list((tmp_path / "d").glob("*.zarr"))
    assert (
        "note: --root is now called --stores; the next release drops the old name\n"
        in capsys.readouterr().err
    )


def test_a_manifest_on_request_is_checked_before_the_work(tmp_path, capsys):
    path = mmsa_file(tmp_path, {k: v for k, v in GOOD.items() if k != "regression_labels"})
    command = ["import", str(path), "--from", "mmsa", "--dataset", "d", "--stores", str(tmp_path)]
    assert main([*command, "--manifest-out", str(tmp_path / "m.parquet")]) == 1
    assert "neither regression_labels nor" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("import missing.pkl --from mmsa --dataset d", "no such file"),
        ("import features.pkl --from mmsa", "does not name its dataset: pass --dataset"),
        ("import features.pkl --from mmsa --dataset a/b", "cannot be part of a file name"),
        ("import features.pkl --from h5 --dataset d", "cannot be read as HDF5"),
        ("import features.pkl --from npz --dataset d", "cannot be read as npz"),
        ("export STORE --to mmsa out.pkl", "pass --manifest"),
        ("export STORE --to mmsa out.pkl --manifest nowhere", "nowhere/manifest.parquet"),
        ("export STORE --to h5 out.h5 --manifest nowhere", "--manifest is for mmsa"),
        ("export STORE --to h5 features.pkl", "exists"),
        ("export features.pkl --to h5 out.h5", "features.pkl is not a published feature store"),
    ],
)
def test_mistakes_end_with_one_clear_line(tmp_path, monkeypatch, capsys, command, message):
    monkeypatch.chdir(tmp_path)
    mmsa_file(tmp_path, GOOD)
    store = build_store(tmp_path)
    assert main([str(store) if word == "STORE" else word for word in command.split()]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("*out.*"))


@pytest.mark.parametrize("dataset", [".", "..", "../up", "a\0b", "a\udc80"])
def test_a_dataset_name_that_a_folder_cannot_have_is_refused(tmp_path, capsys, dataset):
    path = write_npz(tmp_path / "f.npz", RAGGED_FILE)
    root = tmp_path / "deep" / "stores"
    command = ["import", str(path), "--from", "npz", "--stores", str(root), "--dataset", dataset]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: dataset ")
    assert error.endswith("cannot be part of a file name; pass --dataset or --name\n")
    assert not root.parent.exists()


def test_files_whose_names_are_not_unicode_are_read_and_written(tmp_path, capsys):
    """They cannot be printed as they are: the captured output is strict UTF-8, as a terminal."""
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    path = write_npz(folder / os.fsdecode(b"\xfe.npz"), RAGGED_FILE)
    with pytest.raises(ValueError, match=r"encoder '\\udcfe' .*; pass --dataset or --name"):
        back(path, "npz", folder)
    into = ["import", str(path), "--from", "npz", "--dataset", "d", "--stores", str(folder)]
    assert main([*into, "--name", "f"]) == 0
    (store,) = (folder / "d").glob("f-*.zarr")
    assert main(["export", str(store), "--to", "h5", str(folder / "f.h5")]) == 0
    assert "\\udcff/f.h5" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", [["import", "f", "--from", "zip"], ["export", "s", "--to", "h5"]]
)
def test_bad_usage_has_its_own_exit_status(command):
    with pytest.raises(SystemExit) as exit_:
        main(command)
    assert exit_.value.code == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "all"}, "split 'all'"),
        ({"label": np.nan}, "label of 'a' is nan"),
        ({"label": "joy"}, "label of 'a' is joy"),
        ({"id": "unknown"}, "lacks 1 utterances, the first is"),
        ({"text": None}, "no column text"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path, change, message):
    store = build_store(tmp_path)
    table = pd.read_parquet(manifest_of(tmp_path, ["a"]))
    ((column, value),) = change.items()
    table = table.drop(columns=column) if value is None else table.assign(**change)
    table.to_parquet(tmp_path / "m.parquet")
    with pytest.raises(ValueError, match=message):
        export(store, "mmsa", tmp_path / "f.pkl", tmp_path / "m.parquet")
    assert not list(tmp_path.glob("*f.pkl*"))


def test_utterances_outside_the_manifest_are_reported(tmp_path):
    store = build_store(tmp_path)
    notes = export(store, "mmsa", tmp_path / "f.pkl", manifest_of(tmp_path, ["a", "b"]))
    assert any("3 utterances of the store are not in the manifest" in note for note in notes)


def test_ids_that_a_format_cannot_keep_are_refused(tmp_path):
    store = build_store(tmp_path, {"a\0": (1, 1)})
    with pytest.raises(ValueError, match="NUL, which HDF5 cannot keep"):
        export(store, "h5", tmp_path / "f.h5")


def test_a_store_that_was_imported_says_so(tmp_path):
    path = mmsa_file(tmp_path, GOOD)
    attributes = FeatureStore.open(back(path, "mmsa", tmp_path, licence="CC0")).attributes
    assert attributes["imported"]["format"] == "mmsa"
    assert attributes["licence"] == "CC0"
    assert str(tmp_path) not in json.dumps(attributes)


def test_help_works_without_a_terminal():
    done = subprocess.run(
        [sys.executable, "-m", "cache", "import", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "--manifest-out" in done.stdout
    assert "--root" not in done.stdout
    assert done.stdout.count("python -m cache import") == 3  # the usage and two examples
