"""The store: recipe, parts, publishing, reading, verifying — with real Zarr in real folders."""

import hashlib
import json
import multiprocessing
import os
import signal
import stat
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import FeatureStore, Parts, Record, find, open_store, publish
from cache.__main__ import main
from cache.share.verify import verify
from cache.store.assemble import chunk_rows
from cache.store.checksums import CHECKSUMS
from cache.store.parts import best_per_id
from cache.store.publish import is_published
from cache.store.recipe import digest_of_segments
from tests.stores import (
    LENGTHS,
    RECIPE,
    WIDTHS,
    build_store,
    features_of,
    recipe_of,
    records_of,
    tree_of,
    write_part,
)

# --- recipe ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"encoder": "other"},
        {"weights": "01"},
        {"settings": {"mean": 0.25}},
        {"sampling": {"fps": 2.0, "window_s": 1.0}},
        {"preprocess": 2},
        {"utterances": "12"},
        {"dtype": "float32"},
    ],
)
def test_every_setting_that_matters_changes_the_digest(change):
    assert recipe_of(**change).digest != RECIPE.digest


def test_the_dataset_places_a_store_and_is_not_part_of_its_digest():
    assert recipe_of(dataset="other").digest == RECIPE.digest


def test_spelling_of_settings_does_not_change_the_digest():
    reordered = {"window_s": 2.0, "fps": 2.0}
    assert recipe_of(sampling=reordered).digest == RECIPE.digest


@given(st.permutations([("a", "v/a.mp4", None, None, None), ("b", "v/b.mp4", 0.5, 1.0, None)]))
def test_order_of_utterances_does_not_change_the_digest(rows):
    assert digest_of_segments(rows) == digest_of_segments(sorted(rows))


@pytest.mark.parametrize("change", [(0, "z"), (1, "w.mp4"), (2, 0.1), (3, 2.0), (4, (0, 0, 1, 1))])
def test_what_is_cut_changes_the_digest(change):
    row = ["a", "v.mp4", 0.0, 1.0, None]
    before = digest_of_segments([tuple(row)])
    row[change[0]] = change[1]
    assert digest_of_segments([tuple(row)]) != before


def test_recipe_refuses_what_cannot_be_stored():
    with pytest.raises(ValueError, match="float16 or float32"):
        recipe_of(dtype="int8")
    with pytest.raises(ValueError, match="file name"):
        recipe_of(dataset="../other")


# --- parts ----------------------------------------------------------------------------------------


def test_part_survives_a_round_trip(tmp_path):
    records = records_of(LENGTHS)
    write_part(tmp_path / "s.zarr", records)
    (part,) = Parts(tmp_path / "s.zarr").read()
    assert list(part.records) == records
    assert np.array_equal(part.values("audio")[:2], features_of("b", "audio", 2, WIDTHS["audio"]))


def test_damaged_part_is_dropped(tmp_path, caplog):
    path = write_part(tmp_path / "s.zarr", records_of(LENGTHS))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert Parts(tmp_path / "s.zarr").read() == []
    assert "damaged" in caplog.text
    assert not path.exists()


@pytest.mark.parametrize("value", [1e6, np.nan, np.inf])
def test_value_that_does_not_fit_is_named(tmp_path, value):
    rows = {"audio": np.zeros((5, 3), np.float32), "vision": np.zeros((5, 5), np.float32)}
    rows["audio"][3, 1] = value
    records = [Record("one", "ok", "", 1, 2, 2), Record("two", "ok", "", 1, 3, 3)]
    with pytest.raises(ValueError, match=r"'two': audio feature .* does not fit float16"):
        Parts(tmp_path / "s.zarr").write(records, rows, "float16")
    assert Parts(tmp_path / "s.zarr").read() == []


def test_success_wins_over_failure(tmp_path):
    store = tmp_path / "s.zarr"
    write_part(store, [Record("a", "failed", "timeout")])
    write_part(store, [Record("a", "ok", "", 1.0, 2, 2)])
    assert best_per_id(Parts(store).read())["a"].record.status == "ok"


# --- publishing -----------------------------------------------------------------------------------


def test_plain_zarr_reads_the_published_layout(tmp_path):
    store = build_store(tmp_path, LENGTHS)
    root = zarr.open_group(store, mode="r")
    assert list(root["utterances/id"][:]) == sorted(LENGTHS)
    assert root["audio/values"].dtype == np.float16
    assert root["audio/offsets"][:].tolist() == [0, 4, 6, 6, 9, 9]
    assert np.array_equal(root["audio/values"][4:6], features_of("b", "audio", 2, WIDTHS["audio"]))
    assert root.attrs["format_version"] == 2
    assert root.attrs["counts"]["failed"] == 1
    assert root.attrs["recipe"] == RECIPE.as_dict()
    assert not Parts(store).folder.exists()


def read_as_documented(store: Path) -> dict[str, dict[str, np.ndarray]]:
    """A reader written from docs/cache-format.md alone, without Zarr and without our package."""

    def strings(column: str) -> list[str]:
        data, found = (store / "utterances" / column / "c" / "0").read_bytes(), []
        (count,), at = struct.unpack_from("<I", data), 4
        for _ in range(count):
            (size,) = struct.unpack_from("<I", data, at)
            found.append(data[at + 4 : at + 4 + size].decode())
            at += 4 + size
        return found

    features: dict[str, dict[str, np.ndarray]] = {i: {} for i in strings("id")}
    attributes = json.loads((store / "zarr.json").read_text())["attributes"]
    for modality, width in attributes["widths"].items():
        offsets = np.fromfile(store / modality / "offsets" / "c" / "0", "<i8")
        chunks = sorted((store / modality / "values" / "c").iterdir(), key=lambda p: int(p.name))
        rows = np.concatenate([np.fromfile(chunk / "0", "<f2") for chunk in chunks])
        rows = rows.reshape(-1, width)[: offsets[-1]]
        for n, i in enumerate(features):
            features[i][modality] = rows[offsets[n] : offsets[n + 1]]
    return features


def test_the_documented_format_is_the_format(tmp_path, monkeypatch):
    monkeypatch.setattr("cache.store.assemble.CHUNK_BYTES", 20)
    store = build_store(tmp_path, LENGTHS)
    features = read_as_documented(store)
    assert list(features) == sorted(LENGTHS, key=str.encode)
    for i, frames in LENGTHS.items():
        for m, count in zip(WIDTHS, frames, strict=True):
            assert np.array_equal(features[i][m], features_of(i, m, count, WIDTHS[m]))
    attributes = json.loads((store / "zarr.json").read_text())["attributes"]
    text = json.dumps(
        {"format_version": 2, **attributes["recipe"]},
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
    )
    assert attributes["digest"] == hashlib.sha256(text.encode()).hexdigest()
    assert store.name == f"none-2fps-{attributes['digest'][:12]}.zarr"


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(list(LENGTHS)), block=st.integers(1, 5))
def test_bytes_depend_on_neither_order_nor_blocks(tmp_path_factory, order, block):
    reference = build_store(tmp_path_factory.mktemp("a"), LENGTHS)
    lengths = {i: LENGTHS[i] for i in order}
    shuffled = build_store(tmp_path_factory.mktemp("b"), lengths, block=block)
    assert tree_of(shuffled) == tree_of(reference)


def test_parts_and_stores_have_the_same_bytes_on_every_machine(tmp_path):
    part = write_part(tmp_path / "x.zarr", records_of(LENGTHS))
    assert part.name == "3ae01c0a460f6d94eeb0c5170faee7f1.part"
    published = (build_store(tmp_path) / CHECKSUMS).read_bytes()
    assert hashlib.sha256(published).hexdigest() == (
        "f771085119d319bf61fb4d76d9db7d98f234eade439a116f39957e3aa4246c05"
    )


def test_published_files_are_read_only(tmp_path):
    store = build_store(tmp_path, LENGTHS)
    assert not any(p.stat().st_mode & stat.S_IWUSR for p in store.rglob("*") if p.is_file())


def test_missing_utterance_is_refused(tmp_path):
    write_part(tmp_path / "s.zarr", records_of({"a": (1, 1)}))
    with pytest.raises(ValueError, match=r"1 utterances are missing from the parts: b"):
        publish(tmp_path / "s.zarr", RECIPE, WIDTHS, {}, ["a", "b"])
    assert not is_published(tmp_path / "s.zarr")


def test_second_publisher_uses_what_is_there(tmp_path):
    store = build_store(tmp_path, LENGTHS)
    before = tree_of(store)
    assert build_store(tmp_path, LENGTHS, block=3) == store
    assert tree_of(store) == before
    assert [path.name for path in store.parent.iterdir()] == [store.name]


def test_chunks_are_about_eight_mebibytes():
    assert chunk_rows(1024, 2) == 4096
    for width in (256, 768, 1280, 1024):
        assert 0.8 < chunk_rows(width, 2) * width * 2 / 2**23 <= 1
        assert chunk_rows(width, 2) * width * 2 % 4096 == 0
    assert chunk_rows(10**8, 4) == 1


def _publish_slowly(root: str) -> None:
    build_store(Path(root), {f"u{i:03}": (3, 3) for i in range(200)}, block=4)


@pytest.mark.parametrize("delay", [0.02, 0.1, 0.2, 0.3])
def test_killed_at_any_moment_the_next_run_publishes_the_same(tmp_path, delay):
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_publish_slowly, args=(str(tmp_path / "killed"),))
    process.start()
    time.sleep(delay)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    _publish_slowly(str(tmp_path / "killed"))
    _publish_slowly(str(tmp_path / "calm"))
    assert tree_of(tmp_path / "killed") == tree_of(tmp_path / "calm")


# --- reading --------------------------------------------------------------------------------------


def test_select_and_batch_give_each_utterance_its_rows(tmp_path):
    cache = FeatureStore.open(build_store(tmp_path, LENGTHS))
    assert cache.widths == WIDTHS
    assert cache.status == {r.id: r.status for r in records_of(LENGTHS)}
    features = cache.select(["c", "a", "ü/x", "b"])
    for indices in ([0, 1, 2, 3], [3, 1], [2], [1, 1, 0]):
        batch = features.batch(torch.tensor(indices))
        for m in WIDTHS:
            x_BTD, mask_BT = batch[m].padded()
            for row, index in enumerate(indices):
                i = features.ids[index]
                frames = LENGTHS[i][m == "vision"]
                assert mask_BT[row].sum() == frames
                assert np.array_equal(
                    x_BTD[row, :frames].numpy(), features_of(i, m, frames, WIDTHS[m])
                )
                assert not x_BTD[row, frames:].any()


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_selection_crosses_chunks(tmp_path_factory, data):
    lengths = data.draw(
        st.dictionaries(
            st.text("abcäß/ .0", min_size=1, max_size=4),
            st.tuples(st.integers(0, 9), st.integers(0, 9)),
            min_size=1,
            max_size=8,
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cache.store.assemble.CHUNK_BYTES", 40)  # small arrays shall have many chunks
        store = build_store(tmp_path_factory.mktemp("s"), lengths)
    cache = FeatureStore.open(store)
    ids = data.draw(st.lists(st.sampled_from(sorted(lengths)), unique=True))
    features = cache.select(ids)
    for m in WIDTHS:
        expected = [features_of(i, m, lengths[i][m == "vision"], WIDTHS[m]) for i in ids]
        expected = np.concatenate([np.empty((0, WIDTHS[m]), np.float32), *expected])
        assert np.array_equal(features.values[m].numpy(), expected)


def test_recompressed_store_is_read_through_zarr(tmp_path):
    store = build_store(tmp_path, LENGTHS)
    expected = FeatureStore.open(store).select(["b", "a"]).values["audio"]
    root = zarr.open_group(store, mode="r+")
    values = root["audio/values"][:]
    for path in store.rglob("*"):
        path.chmod(0o755)
    root["audio"].create_array("values", data=values, chunks=(4, 3), overwrite=True)
    assert torch.equal(FeatureStore.open(store).select(["b", "a"]).values["audio"], expected)


def test_unknown_id_and_unknown_store_are_clear_errors(tmp_path):
    with pytest.raises(ValueError, match="'missing'"):
        FeatureStore.open(build_store(tmp_path, LENGTHS)).select(["a", "missing"])
    with pytest.raises(ValueError, match="not a published feature store"):
        FeatureStore.open(tmp_path / "none.zarr")


def test_only_open_store_takes_urls(tmp_path):
    with pytest.raises(ValueError, match="is a URL, not a path: open it with"):
        FeatureStore.open("s3://lab/toy/none-2fps-0123456789ab.zarr")
    store = build_store(tmp_path, LENGTHS)
    assert open_store(store).ids == open_store(str(store)).ids == FeatureStore.open(store).ids


def test_newer_format_is_refused(tmp_path):
    store = build_store(tmp_path, LENGTHS)
    path = store / "zarr.json"
    meta = json.loads(path.read_text())
    meta["attributes"]["format_version"] = 3
    path.chmod(0o644)
    path.write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="format version 3"):
        FeatureStore.open(store)


def test_find_wants_exactly_one_store(tmp_path):
    with pytest.raises(ValueError, match="python -m extract toy"):
        find("toy", tmp_path)
    store = build_store(tmp_path, LENGTHS)
    assert find("toy", tmp_path) == store
    other = recipe_of(weights="01")
    write_part(store.with_name(other.store_name), records_of({"a": (1, 1)}))
    about = {"manifest_digest": "m"}
    publish(store.with_name(other.store_name), other, WIDTHS, about, ["a"])
    with pytest.raises(ValueError, match="several stores"):
        find("toy", tmp_path)
    assert find("toy", tmp_path, manifest_digest="m") == store.with_name(other.store_name)


def test_find_prefers_what_was_cut_as_the_manifest_says(tmp_path, caplog):
    cuts = [(i, f"{i}.mp4", None, None, None) for i in LENGTHS]
    other_cuts = [("a", "a.mp4", 1.0, 2.0, None), *cuts[1:]]
    third = [("a", "a.mp4", 2.0, 3.0, None), *cuts[1:]]
    store = build_store(tmp_path, LENGTHS, about={"segments": digest_of_segments(cuts)})
    assert find("toy", tmp_path, "corrected label", cuts) == store
    renamed = [(i, f"clips/{video}", *cut) for i, video, *cut in cuts]
    assert find("toy", tmp_path, "renamed videos", renamed) == store
    assert caplog.text == ""
    assert find("toy", tmp_path, "other times", other_cuts) == store
    assert f"{store} was extracted from other utterances, times or crops" in caplog.text
    caplog.clear()
    about = {"segments": digest_of_segments(other_cuts)}
    other = build_store(tmp_path, LENGTHS, recipe=recipe_of(utterances="22"), about=about)
    assert find("toy", tmp_path, "corrected label", other_cuts) == other
    assert find("toy", tmp_path, "corrected label", cuts) == store
    assert caplog.text == ""
    with pytest.raises(ValueError, match="several stores"):
        find("toy", tmp_path, "another manifest", third)


def test_find_takes_an_imported_store_as_it_is(tmp_path, caplog):
    store = tmp_path / "toy" / RECIPE.store_name
    write_part(store, records_of(LENGTHS))
    publish(store, RECIPE, WIDTHS, {"imported": {"format": "npz"}}, list(LENGTHS))
    assert find("toy", tmp_path, "m", [("a", "a.mp4", 1.0, 2.0, None)]) == store
    assert caplog.text == ""


# --- verifying ------------------------------------------------------------------------------------


def test_untouched_store_has_no_faults(tmp_path, capsys):
    store = build_store(tmp_path, LENGTHS)
    assert verify(store) == []
    assert main(["verify", str(store)]) == 0
    assert "every file is as published" in capsys.readouterr().out


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "add"])
def test_every_harm_is_found_and_named(tmp_path, capsys, harm):
    store = build_store(tmp_path, LENGTHS)
    path = store / "audio" / "values" / "c" / "0" / "0"
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    if harm == "flip":
        data[5] ^= 16
        path.write_bytes(data)
    elif harm == "truncate":
        path.write_bytes(data[:-1])
    elif harm == "remove":
        path.unlink()
    else:
        path = store / "audio" / "notes.txt"
        path.write_text("hello")
    (fault,) = verify(store)
    assert fault.file == path.relative_to(store).as_posix()
    problem = {"flip": "changed", "truncate": "wrong size", "remove": "missing", "add": "extra"}
    assert fault.problem == problem[harm]
    assert fault.utterances == (() if harm == "add" else ("a", "b", "c"))
    assert main(["verify", str(store)]) == 1
    assert fault.file in capsys.readouterr().out


def test_lost_checksums_are_an_error(tmp_path, capsys):
    store = build_store(tmp_path, LENGTHS)
    (store / CHECKSUMS).unlink()
    assert main(["verify", str(store)]) == 1
    assert CHECKSUMS in capsys.readouterr().err


def test_info_names_the_failed(tmp_path, capsys):
    assert main(["info", str(build_store(tmp_path, LENGTHS))]) == 0
    assert "bad: failed: why" in capsys.readouterr().out
