"""What a share, a store or a file from elsewhere says is looked at before anything is done."""

import json
import shutil
from pathlib import Path

import pytest

from cache import FeatureStore, find
from cache.__main__ import main
from cache.share import catalog
from cache.share.borrow import pull_named
from cache.share.location import Location, ShareError
from cache.share.pull import pull
from cache.share.push import push
from cache.share.remote_store import RemoteStore
from cache.share.verify import verify
from cache.store.checksums import Checksums
from tests.stores import RECIPE, build_store, recipe_of, tree_of
from tests.tampering import change_root, make_endless, reseal, unseal

NAME = RECIPE.store_name
CHUNK = "audio/values/c/0/0"


@pytest.fixture
def store(tmp_path) -> Path:
    return unseal(build_store(tmp_path / "here"))


def attribute(*path, value):
    """Sets one of the root attributes."""

    def change(root) -> None:
        place = root["attributes"]
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".git", "a/b", "a\\b", "a\nb", "\x1b[2J", " a", "a:"]
)
def test_no_dataset_or_encoder_is_called_so(tmp_path, store, name):
    for field in ("dataset", "encoder"):
        with pytest.raises(ValueError, match=f"{field} .* cannot be part of a file name"):
            recipe_of(**{field: name})
    with pytest.raises(ValueError, match="cannot be part of a file name"):
        RemoteStore(Location.parse(tmp_path), name, NAME)
    with pytest.raises(ValueError, match="is not a store"):
        RemoteStore.parse(f"s3://lab/{name}/x.zarr")


@pytest.mark.parametrize("name", ["src", "thesis.zarr", f"{NAME}.parts", f".{NAME}", f"{NAME}/x"])
def test_no_store_is_called_so(tmp_path, name):
    with pytest.raises(ValueError, match="name"):
        RemoteStore(Location.parse(tmp_path), "toy", name)


@pytest.mark.parametrize(
    ("dataset", "name"), [("thesis", "src"), ("..", NAME), ("toy", f"{NAME}.parts")]
)
def test_a_share_cannot_name_a_folder_of_ours(tmp_path, store, dataset, name):
    share, mine = tmp_path / "share", tmp_path / "mine"
    push(store, str(share))
    entry = json.loads((share / f"catalog/toy/{NAME}.json").read_bytes())
    entry |= {"dataset": dataset, "name": name}
    shutil.rmtree(share / "catalog")
    (share / "catalog" / "toy").mkdir(parents=True)
    (share / "catalog" / "toy" / "evil.zarr.json").write_text(json.dumps(entry))
    shutil.move(share / "toy", share / "elsewhere")
    (mine / dataset / name).mkdir(parents=True)
    (mine / dataset / name / "notes.txt").write_text("years of work")
    assert main(["pull", str(share), "--stores", str(mine)]) == 1
    assert (mine / dataset / name / "notes.txt").read_text() == "years of work"


@pytest.mark.parametrize("holds", ["file", "folder", "link"])
def test_pull_replaces_nothing_but_a_published_store(tmp_path, store, holds, capsys):
    push(store, str(tmp_path / "share"))
    mine = tmp_path / "mine" / "toy" / NAME
    mine.parent.mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    if holds == "file":
        mine.write_text("years of work")
    elif holds == "folder":
        mine.mkdir()
        (mine / "notes.txt").write_text("years of work")
    else:
        mine.symlink_to(tmp_path / "notes")
    assert main(["pull", str(tmp_path / "share"), "--stores", str(tmp_path / "mine")]) == 1
    assert f"{mine} exists but is not a published store" in capsys.readouterr().err
    kept = mine / "notes.txt" if holds == "folder" else mine
    assert mine.is_symlink() if holds == "link" else kept.read_text() == "years of work"


def test_a_store_cannot_be_pushed_out_of_the_share(tmp_path, store, capsys):
    change_root(store, attribute("dataset", value="../../evil"))
    (tmp_path / "lab").mkdir()
    assert main(["push", str(store), str(tmp_path / "lab" / "share")]) == 1
    assert "cannot be part of a file name" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "lab").iterdir()] == []


def test_a_renamed_store_is_not_pushed_under_a_false_name(tmp_path, store):
    other = store.rename(store.with_name("better-2fps-000000000000.zarr"))
    with pytest.raises(ValueError, match=rf"is toy/{NAME} according to its recipe"):
        push(other, str(tmp_path / "share"))
    assert FeatureStore.open(other).ids


# --- attributes -----------------------------------------------------------------------------------

UNSOUND = {
    "version 3": attribute("format_version", value=3),
    "version true": attribute("format_version", value=True),
    "version text": attribute("format_version", value="1"),
    "no attributes": lambda root: root.pop("attributes"),
    "attributes are a list": lambda root: root.update(attributes=[1]),
    "no recipe": lambda root: root["attributes"].pop("recipe"),
    "recipe is text": attribute("recipe", value="x"),
    "recipe lacks a key": lambda root: root["attributes"]["recipe"]["audio"].pop("weights"),
    "another digest": attribute("digest", value="f" * 64),
    "no fps": attribute("recipe", "audio", "sampling", value={}),
    "dataset is a number": attribute("dataset", value=5),
    "no counts": lambda root: root["attributes"].pop("counts"),
    "counts are text": attribute("counts", "utterances", value="x"),
    "huge counts": attribute("counts", "failed", value=10**400),
    "widths are a list": attribute("widths", value=[1, 2]),
    "widths lead out": attribute("widths", value={"audio": 3, "vision": 5, "../../x": 5}),
    "no audio": attribute("widths", value={"vision": 5}),
    "no width": attribute("widths", "audio", value=0),
    "rows of nothing": attribute("rows_per_frame", value={"vision": 0}),
}


@pytest.mark.parametrize("change", UNSOUND.values(), ids=UNSOUND)
def test_unsound_attributes_are_one_clear_line_everywhere(tmp_path, store, change, capsys):
    change_root(store, change)
    shared, to = str(tmp_path / "here"), str(tmp_path / "pulled")
    for command in (
        ["info", str(store)],
        ["verify", str(store)],
        ["push", str(store), str(tmp_path / "share")],
        ["pull", str(store), "--stores", to],
        ["diff", str(store), str(store)],
    ):
        assert main(command) == 1, command
        said = capsys.readouterr()
        assert "zarr.json" in said.err + said.out, command
    assert main(["list", shared]) == 0
    assert not (tmp_path / "pulled" / "toy" / NAME).exists()
    assert not [path for path in Path(to).rglob("*") if path.match(CHUNK)]  # nothing of the bulk


def test_deep_json_is_one_clear_line(tmp_path, store, capsys):
    for name in ("zarr.json", "checksums.json"):
        (store / name).write_text("[" * 200_000)
        assert main(["info", str(store)]) + main(["verify", str(store)]) >= 1
        assert main(["pull", str(store), "--stores", str(tmp_path)]) == 1
        assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("gone", ["audio", "vision/values/zarr.json", CHUNK])
def test_what_is_neither_there_nor_listed_is_refused(tmp_path, store, gone):
    path = store / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    reseal(store)
    with pytest.raises(ValueError, match=f"does not list {gone}"):
        push(store, str(tmp_path / "share"))
    with pytest.raises(ShareError, match=f"is not a valid store: .*does not list {gone}"):
        pull(RemoteStore.parse(store), tmp_path / "pulled")


def test_a_newer_store_is_passed_over_where_there_are_others(tmp_path, store, caplog):
    newer = build_store(tmp_path / "here", recipe=recipe_of(weights="01"))
    change_root(unseal(newer), attribute("format_version", value=3))
    assert find("toy", tmp_path / "here") == store
    assert f"skipping a store: {newer}/zarr.json has format version 3" in caplog.text
    shutil.rmtree(store)
    with pytest.raises(ValueError, match="install a newer release"):
        find("toy", tmp_path / "here")


# --- the list of files ----------------------------------------------------------------------------


def listing(**changes) -> dict:
    good = {"bytes": 3, "sha256": "ab" * 32}
    return {"algorithm": "sha256", "files": {"zarr.json": good}} | changes


@pytest.mark.parametrize(
    "plain",
    [
        {},
        listing(files={}),
        listing(algorithm="sha512"),
        *(
            listing(files={"zarr.json": {"bytes": size, "sha256": "ab" * 32}})
            for size in (-1, 1.5, "3", True, None, 10**300, float("inf"), 2**63)
        ),
        listing(files={"zarr.json": {"bytes": 3, "sha256": "AB" * 32}}),
        listing(files={"zarr.json": {"bytes": 3, "sha256": None}}),
        *(
            listing(files={**listing()["files"], name: {"bytes": 3, "sha256": "ab" * 32}})
            for name in ("../x", "/etc/x", "checksums.json")
        ),
    ],
)
def test_no_such_list_is_accepted(plain):
    assert Checksums.parse(json.dumps(listing()).encode(), "it").size
    with pytest.raises(ValueError, match=r"^it "):
        Checksums.parse(json.dumps(plain).encode(), "it")


def test_a_size_beyond_all_numbers_is_one_clear_line(store, capsys):
    path = store / "checksums.json"
    path.write_bytes(path.read_bytes().replace(b'"bytes": 54', b'"bytes": 1e400', 1))
    assert main(["verify", str(store)]) == 1
    assert f"error: {path} cannot be read: {CHUNK} has" in capsys.readouterr().err


@pytest.mark.parametrize("harm", ["endless", "sparse", "pipe", "folder"])
def test_no_more_is_read_than_there_may_be(tmp_path, store, harm, capsys):
    for name in (CHUNK, "zarr.json", "checksums.json"):
        share = shutil.copytree(store, tmp_path / name.replace("/", "-") / "toy" / NAME)
        path = share / name
        if harm == "folder":
            path.unlink()
            path.mkdir()
        else:
            make_endless(path, harm)
        assert main(["pull", str(share), "--stores", f"{share}-pulled"]) == 1
        assert name in capsys.readouterr().err


def test_an_empty_file_on_a_share_is_damaged(share, store, tmp_path):
    push(store, share)
    where = Location.parse(share)
    where.remove(f"toy/{NAME}/{CHUNK}")
    where.write(f"toy/{NAME}/{CHUNK}", b"", "waiting")
    with pytest.raises(ShareError, match=f"{CHUNK} is damaged"):
        pull(RemoteStore(where, "toy", NAME), tmp_path / "pulled")


# --- the catalogue --------------------------------------------------------------------------------

BROKEN = {
    "bytes": {"bytes": 10**400},
    "negative": {"utterances": -1},
    "true": {"files": True},
    "digest": {"digest": "x"},
    "sampling": {"sampling": [1]},
    "dataset": {"dataset": "../.."},
    "hidden": {"dataset": ".ssh"},
    "no text": {"who": "\ud800"},
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_a_broken_entry_hides_no_other(tmp_path, store, change, caplog, capsys):
    push(store, str(tmp_path / "share"))
    entries = tmp_path / "share" / "catalog" / "toy"
    entry = json.loads((entries / f"{NAME}.json").read_bytes())
    (entries / "a.zarr.json").write_text(json.dumps(entry | change))
    assert main(["list", str(tmp_path / "share")]) == 0
    assert RECIPE.digest[:12] in capsys.readouterr().out
    assert caplog.text.count("skipping an entry") == 1


def test_entries_that_are_none_hide_no_other(tmp_path, store, caplog):
    push(store, str(tmp_path / "share"))
    entries = tmp_path / "share" / "catalog" / "toy"
    (entries / "deep.zarr.json").write_text("[" * 200_000)
    (entries / "null.zarr.json").write_text("null")
    (entries / "bytes.zarr.json").write_bytes(b"\xff\xfe")
    (entries / "endless.zarr.json").symlink_to("/dev/zero")
    (entries / "large.zarr.json").write_bytes(b"[" + b"1," * (1 << 20))
    found = catalog.entries(Location.parse(tmp_path / "share"))
    assert [entry.name for entry in found] == [NAME]
    assert caplog.text.count("skipping an entry") == 5


# --- while it changes -----------------------------------------------------------------------------


def test_a_pull_of_what_is_replaced_meanwhile_says_to_pull_again(tmp_path, store, monkeypatch):
    share, retried = str(tmp_path / "share"), build_store(tmp_path / "new", {"a": (4, 4)})
    push(store, share)
    source, read = RemoteStore(Location.parse(share), "toy", NAME), RemoteStore.read

    def replaced_before(self, name, expected):
        if name == CHUNK:
            shutil.rmtree(tmp_path / "share" / "toy")
            push(retried, share)
            (tmp_path / "share" / "toy" / NAME / CHUNK).unlink()
        return read(self, name, expected)

    with monkeypatch.context() as patch:
        patch.setattr(RemoteStore, "read", replaced_before)
        with pytest.raises(ShareError, match="was replaced while it was being pulled; pull again"):
            pull(source, tmp_path / "pulled", workers=1)
    shutil.rmtree(tmp_path / "share" / "toy")
    push(retried, share)
    pulled, _ = pull(source, tmp_path / "pulled")
    assert tree_of(pulled) == tree_of(retried)
    assert verify(pulled) == []


def test_what_came_stays_when_a_share_fails(tmp_path, store, caplog):
    push(store, str(tmp_path / "share"))
    path = tmp_path / "share" / "toy" / NAME / "vision/values/c/0/0"
    path.unlink()
    root = tmp_path / "root"
    assert pull_named(RECIPE, [str(tmp_path / "share")], root) is None
    partial = root / "toy" / f"{NAME}.partial"
    assert (partial / CHUNK).is_file()
    assert f"kept in {partial}" in caplog.text
