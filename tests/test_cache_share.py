"""Sharing by real folders and a real S3 server: interrupted, damaged, at once, with secrets."""

import json
import multiprocessing
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cache import FeatureStore, Parts, Record, publish
from cache.__main__ import main
from cache.diff import diff
from cache.share import catalog
from cache.share.borrow import pull_named
from cache.share.location import Location, ShareError
from cache.share.pull import pull
from cache.share.push import push
from cache.share.remote_store import RemoteStore, resolve, resolve_one
from cache.share.repair import repair
from cache.share.secrets import redacted
from cache.share.verify import verify
from cache.store.checksums import CHECKSUMS, Checksums, stays_below
from cache.store.publish import is_published
from tests.stores import FILES, LENGTHS, RECIPE, build_store, recipe_of, tree_of

NAME = f"toy/{RECIPE.store_name}"
OTHER = recipe_of(weights="01")


@pytest.fixture
def store(tmp_path) -> Path:
    return build_store(tmp_path / "stores")


@pytest.fixture
def large(tmp_path, monkeypatch) -> Path:
    """A store of many files."""
    monkeypatch.setattr("cache.store.assemble.CHUNK_BYTES", 40)
    return build_store(tmp_path / "large", {f"u{i:02}": (4, 4) for i in range(16)})


def shared_files(share: str) -> list[str]:
    return sorted(Location.parse(share).sizes(""))


def overwrite(share: str, name: str, data: bytes) -> None:
    location = Location.parse(share)
    location.write(name, data, "elsewhere")


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 4])


def with_other_content(root: Path) -> Path:
    """The same recipe and features, different bytes: made on another machine."""
    store = build_store(root / "first")
    parts = root / "second" / NAME
    rows = FeatureStore.open(store).select(sorted(LENGTHS)).values
    errors = FeatureStore.open(store).column("error")
    records = [
        Record(i, FeatureStore.open(store).status[i], str(e), 1.5, *LENGTHS[i])
        for i, e in zip(sorted(LENGTHS), errors, strict=True)
    ]
    Parts(parts).write(records, {m: v.float().numpy() for m, v in rows.items()}, "float16")
    return publish(parts, RECIPE, {"audio": 3, "vision": 5}, {"creator": "else"}, list(LENGTHS))


# --- there and back -------------------------------------------------------------------------------


def test_push_list_pull_is_byte_identical(share, store, tmp_path, capsys):
    assert main(["push", str(store), share]) == 0
    output = capsys.readouterr().out
    assert f"{FILES} files copied" in output
    assert "licence of the dataset: none" in output
    assert "stay research-only" in output
    assert main(["list", share]) == 0
    listed = capsys.readouterr().out
    assert RECIPE.digest[:12] in listed
    assert "fps 2.0" in listed
    assert main(["pull", share, "--stores", str(tmp_path / "pulled")]) == 0
    pulled = tmp_path / "pulled" / NAME
    assert tree_of(pulled) == tree_of(store)
    assert verify(pulled) == []
    assert not any(p.stat().st_mode & 0o222 for p in pulled.rglob("*") if p.is_file())
    assert not [p for p in pulled.parent.iterdir() if p != pulled]
    assert not [name for name in shared_files(share) if "pushing" in name]


def test_what_is_there_is_not_copied_again(share, store, tmp_path):
    assert push(store, share)[1] == FILES
    assert push(store, share)[1] == 0
    source = resolve_one(share)
    assert pull(source, tmp_path / "pulled")[1] == FILES
    assert pull(source, tmp_path / "pulled")[1] == 0


def test_catalogue_lists_the_stores(share, store):
    push(store, share)
    location = Location.parse(share)
    (entry,) = catalog.entries(location)
    assert json.loads(location.read("catalog.json"))["stores"] == [entry.__dict__]
    assert (entry.path, entry.digest) == (NAME, RECIPE.digest)
    assert entry.content == Checksums.of(store).content
    assert entry.bytes == sum(len(data) for data in tree_of(store).values())
    assert (entry.utterances, entry.failures, entry.files) == (5, 1, FILES)
    assert entry.licence == "none"
    assert entry.who
    assert entry.when.endswith("+00:00")


def test_share_without_catalogue_is_searched(share, store):
    for name, data in tree_of(store).items():
        overwrite(share, f"{NAME}/{name}", data)
    overwrite(share, "toy/half.zarr/zarr.json", b"{}")
    (entry,) = catalog.entries(Location.parse(share))
    assert (entry.path, entry.digest, entry.when) == (NAME, RECIPE.digest, "")


def test_stores_are_named_by_url_or_digest(share, store, tmp_path):
    push(store, share)
    push(build_store(tmp_path / "other", recipe=OTHER), share)
    assert str(resolve_one(f"{share}/{NAME}")).endswith(NAME)
    assert resolve_one(f"{share}/{RECIPE.digest[:12]}").name == RECIPE.store_name
    assert resolve_one(f"{share}/{OTHER.digest}").name == OTHER.store_name
    assert len(resolve(share)) == 2
    with pytest.raises(ValueError, match="several stores; name one") as caught:
        resolve_one(share)
    assert f"{share}/{NAME}" in str(caught.value)
    with pytest.raises(ValueError, match="No store with digest 000000000000 found in"):
        resolve_one(f"{share}/000000000000")
    assert main(["pull", share, "--all", "--stores", str(tmp_path / "all")]) == 0
    assert len(list((tmp_path / "all" / "toy").iterdir())) == 2


def test_pull_all_ends_with_a_table_whatever_fails(share, store, tmp_path, capsys):
    """One is there with other content, one is damaged, one cannot be placed, two come."""
    stores = [store] + [
        build_store(tmp_path / weights, recipe=recipe_of(weights=weights))
        for weights in ("01", "02", "03", "04")
    ]
    for pushed in stores:
        push(pushed, share)
    to = tmp_path / "to"
    build_store(to, {"a": (1, 1)})
    overwrite(share, f"toy/{stores[1].name}/audio/values/c/0/0", b"?")
    (to / "toy" / stores[2].name).mkdir()
    for come in (f"{FILES} files copied", "already there"):
        assert main(["pull", share, "--all", "--stores", str(to)]) == 1
        output, errors = capsys.readouterr()
        lines = {s.name: next(x for x in output.splitlines() if s.name in x) for s in stores}
        assert [("not pulled" in lines[s.name]) for s in stores] == [True] * 3 + [False] * 2
        assert all(come in lines[s.name] for s in stores[3:])
        assert errors.count("error: ") == 3
        assert "has the same recipe with different content" in errors
        assert "audio/values/c/0/0 is damaged" in errors
        assert "exists but is not a published store" in errors
    assert main(["pull", f"{share}/toy/{stores[4].name}", "--all", "--stores", str(to)]) == 0


def test_info_of_a_url_reads_no_features(s3, store, capsys):
    share = f"{s3}/info"
    push(store, share)
    for name in ("audio/values/c/0/0", "vision/values/c/0/0"):
        Location.parse(share).remove(f"{NAME}/{name}")
    assert main(["info", f"{share}/{NAME}"]) == 0
    assert "bad: failed: why" in capsys.readouterr().out


# --- interrupted ----------------------------------------------------------------------------------

# A clean process that has imported everything; its children start at once.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tests.test_cache_share"])


def command(environment: dict[str, str], after: int, arguments: list[str]) -> None:
    """``python -m cache ...``, killed after so many writes of a push or reads of a pull."""
    os.environ.update(environment)
    owner, name = {"push": (Location, "write"), "pull": (RemoteStore, "read")}[arguments[0]]
    work, calls = getattr(owner, name), []

    def killed(*some: object, **named: object) -> object:
        calls.append(name)
        if len(calls) > after:
            os.kill(os.getpid(), signal.SIGKILL)
        return work(*some, **named)

    setattr(owner, name, killed)
    sys.exit(main(arguments))


def start(*arguments: object, after: int = 10**9) -> BaseProcess:
    process = processes.Process(
        target=command, args=(dict(os.environ), after, [str(a) for a in arguments])
    )
    process.start()
    return process


def run_killed(after: int, *arguments: object) -> None:
    process = start(*arguments, after=after)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def test_killed_push_is_invisible_and_resumes(share, large, tmp_path):
    files = len(Checksums.of(large).files)
    run_killed(files // 2, "push", large, share)
    assert catalog.entries(Location.parse(share)) == []
    with pytest.raises(ShareError, match="is not a published store"):
        pull(RemoteStore.parse(f"{share}/toy/{large.name}"), tmp_path / "pulled")
    copied = push(large, share)[1]
    assert 0 < copied <= files * 3 // 4
    pull(resolve_one(share), tmp_path / "pulled")
    assert tree_of(tmp_path / "pulled" / NAME) == tree_of(large)
    assert not [name for name in shared_files(share) if "pushing" in name]


def test_push_killed_before_the_catalogue_is_entered_by_the_next(share, large):
    run_killed(len(Checksums.of(large).files) + 2, "push", large, share)  # claim, checksums
    assert catalog.entries(Location.parse(share))  # found by looking for it
    assert push(large, share)[1] == 0
    assert "catalog.json" in shared_files(share)


def test_killed_pull_is_invisible_and_resumes(share, large, tmp_path):
    push(large, share)
    files = len(Checksums.of(large).files)
    run_killed(files // 2, "pull", share, "--stores", tmp_path / "pulled")
    pulled = tmp_path / "pulled" / NAME
    assert not pulled.exists()
    assert pull(resolve_one(share), tmp_path / "pulled")[1] <= files * 3 // 4
    assert tree_of(pulled) == tree_of(large)
    assert list(pulled.parent.iterdir()) == [pulled]


def test_interrupted_push_of_one_store_is_not_completed_with_another(share, tmp_path):
    """Files with equal names and sizes but different bytes: they must not be mixed."""
    store = build_store(tmp_path / "a")
    theirs = with_other_content(tmp_path / "b")
    run_killed(12, "push", store, share)
    with pytest.raises(ValueError, match=r"different content .* --take-over"):
        push(theirs, share)
    assert main(["push", str(theirs), share, "--take-over"]) == 0
    pull(resolve_one(share), tmp_path / "pulled")
    assert tree_of(tmp_path / "pulled" / NAME) == tree_of(theirs)
    with pytest.raises(ValueError, match="is not overwritten"):
        push(store, share)


# --- damaged --------------------------------------------------------------------------------------


def test_flipped_bit_on_the_share_is_refused(share, store, tmp_path):
    push(store, share)
    name = "vision/values/c/0/0"
    good = (store / name).read_bytes()
    overwrite(share, f"{NAME}/{name}", flip(good))
    with pytest.raises(ShareError, match=f"{name} is damaged"):
        pull(resolve_one(share), tmp_path / "pulled")
    pulled = tmp_path / "pulled" / NAME
    assert not pulled.exists()
    overwrite(share, f"{NAME}/{name}", good)
    assert pull(resolve_one(share), tmp_path / "pulled")[1] < 20
    assert tree_of(pulled) == tree_of(store)


def test_damaged_store_is_not_pushed(share, store):
    path = store / "utterances" / "id" / "c" / "0"
    path.chmod(0o644)
    path.write_bytes(flip(path.read_bytes()))
    with pytest.raises(ValueError, match=r"utterances/id/c/0 is damaged; run: .* verify"):
        push(store, share)
    assert catalog.entries(Location.parse(share)) == []


def test_share_cannot_name_files_outside_the_store(share, store, tmp_path):
    push(store, share)
    listing = json.loads((store / CHECKSUMS).read_bytes())
    listing["files"]["../../outside"] = listing["files"]["zarr.json"]
    overwrite(share, f"{NAME}/{CHECKSUMS}", json.dumps(listing).encode())
    overwrite(share, "outside", (store / "zarr.json").read_bytes())
    with pytest.raises(ShareError, match="not a path inside a store"):
        pull(resolve_one(share), tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


@given(st.lists(st.sampled_from(["..", ".", "", "a", "/", "\\", "c:", "\0"]), max_size=5))
def test_accepted_names_stay_below(parts):
    name, root = "/".join(parts), Path("/root/store")
    below = Path(os.path.normpath(root / name)).is_relative_to(root)
    assert not stays_below(name) or (below and "\\" not in name and "\0" not in name)


def test_other_store_of_that_name_is_kept(share, store, tmp_path):
    push(store, share)
    with_other_content(tmp_path)
    with pytest.raises(ValueError, match="different content; compare the two with python -m cache"):
        pull(resolve_one(share), tmp_path / "second")


def test_broken_catalogue_entries_are_passed_over(share, store, caplog):
    push(store, share)
    good = json.loads(Location.parse(share).read(f"catalog/{NAME}.json"))
    overwrite(share, "catalog/toy/b.zarr.json", b"{")
    overwrite(share, "catalog/toy/c.zarr.json", json.dumps({**good, "dataset": ".."}).encode())
    overwrite(share, "catalog/toy/d.zarr.json", json.dumps({**good, "bytes": "many"}).encode())
    overwrite(share, "catalog/toy/e.zarr.json", json.dumps(good).encode())  # of another store
    overwrite(share, f"catalog/{NAME}.json", json.dumps({**good, "later": 1}).encode())
    assert [e.path for e in catalog.entries(Location.parse(share))] == [NAME]
    assert caplog.text.count("skipping an entry") == 4


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "add", "checksums"])
def test_repair_fetches_just_what_is_faulty(share, store, tmp_path, capsys, harm):
    push(store, share)
    before = tree_of(store)
    name = CHECKSUMS if harm == "checksums" else "audio/values/c/0/0"
    path = store / name
    path.chmod(0o644)
    if harm == "flip":
        path.write_bytes(flip(path.read_bytes()))
    elif harm == "truncate":
        path.write_bytes(path.read_bytes()[:-3])
    elif harm == "add":
        (store / "audio" / "notes.txt").write_text("hello")
    else:
        path.unlink()
    others = {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file() and p != path}
    assert main(["verify", str(store)]) == 1
    assert tree_of(store) != before
    assert main(["verify", str(store), "--repair", share]) == 0
    assert "every file is as published" in capsys.readouterr().out
    assert tree_of(store) == before
    others.pop(store / "audio" / "notes.txt", None)
    assert all(p.stat().st_mtime_ns == then for p, then in others.items())
    path.exists() and path.chmod(0o444)


def test_repair_takes_nothing_from_a_wrong_copy(store, tmp_path):
    wrong = with_other_content(tmp_path)
    for name in ("zarr.json", "audio/values/c/0/0"):
        (store / name).unlink()
    with pytest.raises(
        ShareError, match=r"1 files have no intact copy there: .*zarr.json is damaged"
    ):
        repair(store, str(wrong))
    assert [fault.file for fault in verify(store)] == ["zarr.json"]


# --- at once --------------------------------------------------------------------------------------


def test_pushers_at_once_keep_all_entries(share, tmp_path):
    recipes = [recipe_of(weights=f"{i:02}") for i in range(5)]
    stores = [build_store(tmp_path / f"s{i}", recipe=r) for i, r in enumerate(recipes)]
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda store: push(store, share, workers=2), stores + stores))
    listed = json.loads(Location.parse(share).read("catalog.json"))["stores"]
    assert {entry["digest"] for entry in listed} == {recipe.digest for recipe in recipes}
    for i, shared in enumerate(resolve(share)):
        assert is_published(pull(shared, tmp_path / "pulled")[0]), i


def test_two_processes_push_at_once(store, tmp_path):
    share = tmp_path / "share"
    other = build_store(tmp_path / "other", recipe=OTHER)
    running = [start("push", s, share) for s in (store, other, store)]
    for process in running:
        process.join(60)
    assert [process.exitcode for process in running] == [0, 0, 0]
    assert len(json.loads((share / "catalog.json").read_bytes())["stores"]) == 2
    assert verify(share / NAME) == []
    assert not list(share.glob("toy/*.pushing"))


def test_pulls_at_once_give_one_store(share, large, tmp_path):
    push(large, share)
    source = resolve_one(share)
    with ThreadPoolExecutor(4) as pool:
        pulled = list(pool.map(lambda _: pull(source, tmp_path / "pulled")[0], range(4)))
    assert set(pulled) == {tmp_path / "pulled" / NAME}
    assert tree_of(pulled[0]) == tree_of(large)
    assert verify(pulled[0]) == []


# --- access and secrets ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAKEY:hunter22@bucket/x",
        "s3://AKIAKEY:hun/ter22@bucket/x",
        "s3://hunter22@bucket/x",
        "https://host/x?X-Amz-Signature=hunter22",
        "https://hunter22@host/x",
        "http://host:80/x#hunter22",
        "ssh://me:hunter22@host/x",
        "gs://bucket/x?key=hunter22",
    ],
)
def test_secrets_are_refused_and_not_repeated(url, store, monkeypatch, capsys):
    for command in (["push", str(store), url], ["pull", f"{url}/toy/a.zarr"], ["list", url]):
        assert main(command) == 1
        output = capsys.readouterr()
        assert "must not" in output.err
        assert "ter22" not in output.out + output.err
    with pytest.raises(ValueError, match="must not"):
        pull_named(RECIPE, [url], store.parent)


@given(secret=st.text("abcXYZ019/+=@:", min_size=8, max_size=40))
@example("a/b:c@d/e")
def test_no_password_gets_into_a_location(secret):
    with pytest.raises(ValueError, match=r"location contains") as caught:
        Location.parse(f"s3://user:{secret}@bucket/path")
    assert secret not in str(caught.value)


def test_users_and_ports_are_no_secrets():
    assert str(Location.parse("ssh://me@host:2222/data")) == "ssh://me@host:2222/data"
    assert str(Location.parse("http://host:8000/a b/")) == "http://host:8000/a b"
    assert Location.parse("s3://bucket/a@b").name == "a@b"


def test_messages_lose_their_secrets(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter22/x")
    text = "GET https://me:pw@host/x?Signature=abc 403, key hunter22/x"
    assert redacted(text) == "GET https://host/x 403, key ***"


def test_nothing_on_a_share_holds_a_secret(s3, store, caplog):
    share = f"{s3}/secrets"
    push(store, share)
    for name in shared_files(share):
        assert b"testing-secret" not in Location.parse(share).read(name), name
    assert "testing-secret" not in caplog.text


def test_share_that_is_not_ours_is_one_clear_line(s3, store, capsys):
    assert main(["push", str(store), "s3://nobodys-bucket/x"]) == 1
    assert capsys.readouterr().err.startswith("error: s3://nobodys-bucket/x/toy/")


@pytest.mark.parametrize(("url", "package"), [("s3://b/x", "s3fs"), ("gs://b/x", "gcsfs")])
def test_missing_back_end_names_its_package(monkeypatch, capsys, url, package):
    monkeypatch.setitem(sys.modules, package, None)
    known = sys.modules["fsspec.registry"]._registry
    monkeypatch.delitem(known, url.partition(":")[0], raising=False)
    assert main(["list", url]) == 1
    assert f"pip install {package}" in capsys.readouterr().err


def test_unknown_scheme_and_read_only_share_are_refused(store, capsys):
    assert main(["list", "ftp://host/x"]) == 1
    assert "s3://" in capsys.readouterr().err
    assert main(["push", str(store), "http://host/x"]) == 1
    assert "read-only" in capsys.readouterr().err


# --- looked up before extracting ------------------------------------------------------------------


def test_recipe_is_pulled_from_the_first_share_that_has_it(share, store, tmp_path, caplog):
    push(store, share)
    gone = str(tmp_path / "not mounted")
    empty = tmp_path / "empty"
    empty.mkdir()
    root = tmp_path / "root"
    assert pull_named(RECIPE, [gone, str(empty), share], root).endswith(NAME)
    assert "not mounted: no such folder" in caplog.text
    assert tree_of(root / NAME) == tree_of(store)
    assert pull_named(OTHER, [share], root) is None


# --- diff -----------------------------------------------------------------------------------------


def test_equal_stores_do_not_differ(store, tmp_path, capsys):
    other = with_other_content(tmp_path)
    assert diff(FeatureStore.open(store), FeatureStore.open(other)).equal
    assert main(["diff", str(store), str(other)]) == 0
    assert "nothing differs" in capsys.readouterr().out


def test_diff_measures_what_differs(store, tmp_path, capsys):
    audio = np.ones((3, 3), np.float32)
    vision = np.array([[0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 2, 0, 0, 0]], np.float32)
    recipes = [RECIPE, recipe_of(sampling={"fps": 2.0, "window_s": 1.0}, settings={})]
    stores = []
    for recipe, change in zip(recipes, (0.0, 0.5), strict=True):
        path = tmp_path / "d" / recipe.store_name
        last = Record("z" if change else "y", "ok", "", 1.0, 1, 0)
        records = [Record("a", "ok", "", 1.0, 1, 2), Record("b", "ok", "", 1.0, 1, 1), last]
        if change:
            records[0] = replace(records[0], status="no_audio", audio_frames=0)
        moved = vision + np.array([[0] * 5, [0] * 5, [change] + [0] * 4], np.float32)
        rows = {"audio": audio[: 2 if change else 3], "vision": moved}
        Parts(path).write(records, rows, "float16")
        publish(path, recipe, {"audio": 3, "vision": 5}, {}, [r.id for r in records])
        stores.append(path)
    found = diff(*map(FeatureStore.open, stores))
    assert found.recipe == {"sampling.window_s": (2.0, 1.0), "settings.mean": (0.5, None)}
    assert (found.only_a, found.only_b) == (["y"], ["z"])
    assert found.status == {"a": ("ok", "no_audio")}
    assert (found.values["audio"].utterances, found.values["audio"].lengths) == (1, 1)
    distance = found.values["vision"]
    assert (distance.utterances, distance.rows, distance.farthest) == (2, 3, "b")
    assert distance.largest == 0.5
    assert distance.mean == pytest.approx(0.5 / 15)
    assert distance.cosine == pytest.approx(2 / np.sqrt(4.25))
    assert main(["diff", *map(str, stores)]) == 1
    output = capsys.readouterr().out
    assert "recipe: sampling.window_s: 2.0 | 1.0" in output
    assert "the stores differ" in output


def test_stores_of_other_widths_are_not_compared(store, tmp_path):
    other = build_store(tmp_path / "w", widths={"audio": 3, "vision": 4})
    found = diff(FeatureStore.open(store), FeatureStore.open(other))
    assert found.widths == {"vision": (5, 4)}
    assert found.values["audio"].largest == 0
    assert not found.equal
