"""The catalogue of a share: complete, believed only where the store agrees, and cheap to list."""

from __future__ import annotations

import hashlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import boto3
import pytest
from werkzeug.serving import WSGIRequestHandler

from cache import open_store
from cache.__main__ import main
from cache.share import catalog
from cache.share.location import Location, ShareError
from cache.share.pull import pull
from cache.share.push import push
from cache.share.remote_store import resolve, resolve_one
from cache.store.checksums import Checksums
from tests.stores import FILES, RECIPE, build_store, recipe_of, tree_of
from tests.tampering import change_root, unseal
from tests.web import WebServer

NAME = f"toy/{RECIPE.store_name}"
RECIPES = [recipe_of(weights=f"{i:02}") for i in range(3)]


@pytest.fixture
def stores(tmp_path) -> list[Path]:
    return [build_store(tmp_path / f"s{i}", recipe=r) for i, r in enumerate(RECIPES)]


def copy_by_hand(store: Path, share: str, at: str = "") -> None:
    """What `cp -r` or `aws s3 cp` do."""
    for name, data in tree_of(store).items():
        Location.parse(share).write(f"{at or f'toy/{store.name}'}/{name}", data, "tmp")
    Location.parse(share).remove("tmp")


def listed(share: str) -> list[str]:
    return [entry.digest for entry in catalog.entries(Location.parse(share))]


# --- complete -------------------------------------------------------------------------------------


def test_the_first_push_hides_no_store_that_was_copied_by_hand(share, stores, tmp_path):
    for store in stores[:2]:
        copy_by_hand(store, share)
    assert sorted(listed(share)) == sorted(r.digest for r in RECIPES[:2])
    push(stores[2], share)
    assert sorted(listed(share)) == sorted(r.digest for r in RECIPES)
    index = json.loads(Location.parse(share).read("catalog.json"))["stores"]
    assert sorted(e["digest"] for e in index) == sorted(r.digest for r in RECIPES)
    assert [bool(e["when"]) for e in sorted(index, key=lambda e: e["digest"])] == [
        r is RECIPES[2] for r in sorted(RECIPES, key=lambda r: r.digest)
    ]
    for recipe in RECIPES:
        pull(resolve_one(f"{share}/{recipe.digest[:12]}"), tmp_path / "pulled")


def test_a_store_that_is_copied_by_hand_later(share, stores):
    """A folder is searched each time, an object store by the next push."""
    push(stores[0], share)
    copy_by_hand(stores[1], share)
    assert len(listed(share)) == (1 if share.startswith("s3") else 2)
    assert resolve_one(f"{share}/{RECIPES[1].digest}").name == RECIPES[1].store_name
    push(stores[0], share)
    assert len(listed(share)) == 2


def test_a_store_that_was_copied_by_hand_and_pushed_is_signed(share, stores):
    copy_by_hand(stores[0], share)
    push(stores[1], share)
    push(stores[0], share)
    assert all(entry.when for entry in catalog.entries(Location.parse(share)))


def test_a_web_server_lists_what_was_copied_by_hand(stores, tmp_path):
    share = str(tmp_path / "share")
    (tmp_path / "share").mkdir()
    copy_by_hand(stores[0], share)
    push(stores[1], share)
    server = WebServer(tmp_path / "share")
    try:
        assert len(resolve(server.url)) == 2
    finally:
        server.stop()


# --- believed where the store agrees --------------------------------------------------------------


def forge(share: str, change: dict[str, str]) -> None:
    """Change the entry of the first store."""
    where = Location.parse(share)
    entry = json.loads(where.read(f"catalog/{NAME}.json"))
    where.write(f"catalog/{NAME}.json", json.dumps(entry | change).encode(), "catalog")


@pytest.fixture
def first(share, stores) -> Path:
    push(stores[0], share)
    return stores[0]


@pytest.mark.usefixtures("first")
def test_an_entry_of_another_digest_is_not_believed(share, tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.setenv("SEMANTICMAC_CACHE", str(tmp_path / "mirror"))
    forge(share, {"digest": "0" * 64})
    assert RECIPE.digest in listed(share) or share.startswith("s3")
    assert "0" * 64 not in listed(share)
    assert "is not the name of a store 000000000000" in caplog.text
    assert main(["pull", f"{share}/{'0' * 12}", "--stores", str(tmp_path / "pulled")]) == 1
    assert "No store with digest 000000000000" in capsys.readouterr().err


@pytest.mark.usefixtures("first")
def test_a_digest_that_differs_behind_its_name_is_an_error(share, tmp_path, monkeypatch, capsys):
    """The name has 12 digits only; the entry and the user give all 64."""
    monkeypatch.setenv("SEMANTICMAC_CACHE", str(tmp_path / "mirror"))
    other = RECIPE.digest[:12] + "0" * 52
    forge(share, {"digest": other})
    for named in (f"{share}/{other}", f"{share}/{other[:12]}", share):
        for command in (["pull", named, "--stores", str(tmp_path / "a")], ["info", named]):
            assert main(command) == 1
            message = capsys.readouterr().err
            assert f"has the digest {RECIPE.digest}, but the catalogue of {share}" in message
        with pytest.raises(ShareError, match="has the digest"):
            open_store(named)
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "mirror").exists()


def test_a_store_under_the_name_of_another_is_an_error(share, stores, tmp_path, capsys):
    push(stores[0], share)
    Location.parse(share).remove(NAME)
    copy_by_hand(stores[1], share, at=NAME)
    for command in (["pull"], ["info"], ["verify"]):
        assert main([*command, f"{share}/{RECIPE.digest[:12]}"]) == 1
        assert f"is toy/{RECIPES[1].store_name} according to its recipe" in capsys.readouterr().err
    assert not (tmp_path / "pulled").exists()


def test_a_store_whose_attributes_are_damaged_is_still_verified(share, first, capsys):
    """It is found by its digest, else it could not be repaired by that name."""
    Location.parse(share).write(f"{NAME}/zarr.json", b"{}", "catalog")
    named = f"{share}/{RECIPE.digest[:12]}"
    assert main(["verify", named]) == 1
    assert "zarr.json: wrong size" in capsys.readouterr().out
    assert main(["verify", named, "--repair", str(first)]) == 0


@pytest.mark.usefixtures("first")
def test_an_entry_under_the_name_of_another_is_skipped(share, caplog):
    where = Location.parse(share)
    where.write("catalog/toy/a.zarr.json", where.read(f"catalog/{NAME}.json"), "catalog")
    assert listed(share) == [RECIPE.digest]
    assert f"a.zarr.json: skipping an entry: it is of {NAME}" in caplog.text


@dataclass(frozen=True)
class Later(catalog.Entry):
    """An entry of a later release."""

    features: str = ""
    format_version: int = 1


def test_entries_may_have_optional_keys(first):
    attributes = open_store(first).attributes
    plain = asdict(catalog.Entry.of(RECIPE.store_name, attributes, Checksums.of(first)))
    assert Later.from_json(plain).format_version == 1
    assert Later.from_json({**plain, "features": "ab", "format_version": 2}).features == "ab"
    with pytest.raises(ValueError, match="format_version is '2'"):
        Later.from_json({**plain, "format_version": "2"})
    with pytest.raises(ValueError, match="not a catalogue entry"):
        Later.from_json({key: value for key, value in plain.items() if key != "who"})


def test_the_index_keeps_keys_of_later_releases(share, stores):
    push(stores[0], share)
    forge(share, {"segments": "ab"})
    push(stores[1], share)
    index = json.loads(Location.parse(share).read("catalog.json"))["stores"]
    assert [e.get("segments") for e in index if e["digest"] == RECIPE.digest] == ["ab"]


# --- cheap ----------------------------------------------------------------------------------------


@pytest.fixture
def requests(monkeypatch) -> list[str]:
    """Every request that the S3 server has answered: method and path."""
    answered: list[str] = []
    monkeypatch.setattr(
        WSGIRequestHandler,
        "log_request",
        lambda self, *_: answered.append(f"{self.command} {self.path}"),
    )
    return answered


def write_entries(share: str, count: int) -> list[str]:
    """Write the entries of stores that are not there; returns their digests."""
    plain = {
        "dataset": "toy",
        "encoder": "none",
        "sampling": {"fps": 2.0},
        "content": "ab" * 32,
        "bytes": 1,
        "files": 1,
        "utterances": 1,
        "failures": 0,
        "who": "me",
        "when": "2024-01-01T00:00:00+00:00",
        "licence": "",
    }
    digests = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(count)]
    client, where = boto3.client("s3"), Location.parse(share)

    def put(digest: str) -> None:
        name = f"none-2fps-{digest[:12]}.zarr"
        body = json.dumps({**plain, "name": name, "digest": digest}).encode()
        key = f"{where.path[1:]}/catalog/toy/{name}.json"
        client.put_object(Bucket=where.host, Key=key, Body=body)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, digests))
    return digests


def test_a_list_of_500_stores_is_a_handful_of_requests(s3, stores, requests):
    share = f"{s3}/many"
    digests = write_entries(share, 500)
    push(stores[0], share)  # writes the index
    requests.clear()
    assert sorted(listed(share)) == sorted([*digests, RECIPE.digest])
    assert len(requests) <= 3
    requests.clear()
    found = resolve_one(f"{share}/{RECIPE.digest[:12]}")
    assert found.name == RECIPE.store_name
    assert [r for r in requests if "/catalog" in r and "list-type" not in r] == [
        f"GET /lab/many/catalog/{NAME}.json"
    ]
    assert len(requests) <= 4
    requests.clear()
    push(stores[1], share)
    assert len(requests) < 2 * FILES + 20  # no entry of the others
    assert not [r for r in requests if "GET" in r and "/catalog/" in r and "list" not in r][2:]


def test_an_entry_that_is_not_in_the_index_is_listed(s3, stores, requests):
    """A push was killed after it had written its entry, or had replaced one."""
    share = f"{s3}/killed"
    push(stores[0], share)
    where = Location.parse(share)
    before = where.read("catalog.json")
    push(stores[1], share)
    forge(share, {"licence": "new"})
    where.write("catalog.json", before, "catalog")
    requests.clear()
    found = {e.digest: e for e in catalog.entries(where)}
    assert found.keys() == {r.digest for r in RECIPES[:2]}
    assert found[RECIPE.digest].licence == "new"
    assert len(requests) == 4  # the list, the index, and two entries
    where.remove_file(f"catalog/{NAME}.json")
    assert listed(share) == [RECIPES[1].digest]


@pytest.mark.parametrize(
    "index", [b"{", b"[]", b'{"stores": []}', b'{"stores": [1], "tags": {}}', b'{"tags": 1}']
)
def test_an_index_that_is_damaged_or_of_an_earlier_release_is_not_needed(s3, stores, index):
    share = f"{s3}/old"
    push(stores[0], share)
    Location.parse(share).write("catalog.json", index, "catalog")
    assert listed(share) == [RECIPE.digest]


def test_of_two_writers_the_last_writes_all_entries(share, stores, monkeypatch):
    """The second pushes between the first one's look at the entries and its index."""
    write, others = Location.write, [stores[1]]

    def after_another(self, name, data, temporary):
        if name == "catalog.json" and others:
            push(others.pop(), share)
        write(self, name, data, temporary)

    monkeypatch.setattr(Location, "write", after_another)
    push(stores[0], share)
    index = json.loads(Location.parse(share).read("catalog.json"))["stores"]
    assert sorted(e["digest"] for e in index) == sorted(r.digest for r in RECIPES[:2])


# --- markers --------------------------------------------------------------------------------------


def test_folders_that_a_program_made_in_a_bucket_are_no_files(s3, stores, tmp_path):
    """The S3 console and some tools make an empty object with a slash at its end."""
    share = f"{s3}/markers"
    client = boto3.client("s3")

    def mark(*folders: str) -> None:
        for folder in folders:
            client.put_object(Bucket="lab", Key=f"markers/{folder}", Body=b"")

    mark("", "toy/", f"{NAME}/", f"{NAME}/audio/", f"{NAME}/new folder/", "catalog/", "other/")
    assert listed(share) == []
    push(stores[0], share)
    mark(f"{NAME}/vision/", "catalog/toy/", f"{NAME}.pushing/")
    assert push(stores[0], share)[1:] == (0, 0)
    assert listed(share) == [RECIPE.digest]
    assert main(["verify", f"{share}/{NAME}"]) == 0
    assert tree_of(pull(resolve_one(share), tmp_path)[0]) == tree_of(stores[0])


def test_a_newer_store_in_a_folder_does_not_stop_a_push(stores, tmp_path, caplog):
    share = tmp_path / "share"
    newer = unseal(shutil.copytree(stores[1], share / "toy" / stores[1].name))
    change_root(newer, lambda root: root["attributes"].update(format_version=99))
    push(stores[0], str(share))
    assert listed(str(share)) == [RECIPE.digest]
    assert "format version 99" in caplog.text
