"""Damaged shares: found by verify wherever they are, mended by push and by repair."""

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache import FeatureStore, Record, open_store
from cache.__main__ import main
from cache.command_line import check_exists
from cache.share.claims import claim
from cache.share.location import Location, ShareError
from cache.share.pull import pull
from cache.share.push import push
from cache.share.remote_store import RemoteStore, resolve_one
from cache.share.repair import repair
from cache.share.verify import find_problems, verify
from cache.store.checksums import CHECKSUMS, Checksums
from cache.store.publish import Parts, republish
from tests.stores import RECIPE, WIDTHS, build_store, tree_of, write_part
from tests.web import WebServer

NAME = f"toy/{RECIPE.store_name}"
CHUNK = "audio/values/c/0/0"


@pytest.fixture
def store(tmp_path) -> Path:
    return build_store(tmp_path / "stores")


@pytest.fixture
def shared(share, store) -> RemoteStore:
    """The store on a share."""
    return push(store, share).target


@pytest.fixture
def web(tmp_path, store) -> Iterator[str]:
    push(store, str(tmp_path / "share"))
    server = WebServer(tmp_path / "share")
    yield server.url
    server.stop()


def harm(shared: RemoteStore, how: str, name: str = CHUNK) -> None:
    """Damage one file of a store on a share."""
    data = shared.where.read(name) if how != "extra" else b""
    shared.where.remove_file(name)
    if how == "extra":
        shared.where.write("audio/notes.txt", b"hello", "elsewhere")
    elif how != "missing":
        data = data[:-3] if how == "wrong size" else bytes(len(data))
        shared.where.write(name, data, "elsewhere")
    shared.where.remove("elsewhere")


def files_of(shared: RemoteStore) -> dict[str, bytes]:
    return {name: shared.where.read(name) for name in shared.where.sizes("")}


# --- push -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["missing", "wrong size"])
def test_push_sends_what_the_share_lost(share, store, shared, how, capsys):
    harm(shared, how)
    harm(shared, how, "utterances/id/c/0")
    assert main(["push", str(store), share]) == 0
    assert ": 2 files mended" in capsys.readouterr().out
    assert files_of(shared) == tree_of(store)
    assert not [n for n in Location.parse(share).sizes("") if "pushing" in n]
    assert push(store, share)[1:] == (0, 0)


def test_push_check_sends_what_is_damaged_on_the_share(share, store, shared, capsys):
    harm(shared, "changed")
    assert push(store, share).mended == 0
    assert main(["push", str(store), share, "--check"]) == 0
    assert ": 1 files mended" in capsys.readouterr().out
    assert files_of(shared) == tree_of(store)
    assert push(store, share, check=True)[1:] == (0, 0)


def test_a_damaged_store_mends_nothing(share, store, shared):
    harm(shared, "missing")
    (store / CHUNK).chmod(0o644)
    (store / CHUNK).write_bytes(b"x" * (store / CHUNK).stat().st_size)
    with pytest.raises(ValueError, match=f"{CHUNK} is damaged; run: .* verify"):
        push(store, share)
    assert find_problems(shared, Checksums.of(store)) == {CHUNK: "missing"}


@pytest.mark.parametrize("how", ["wrong size", "changed"])
def test_push_restores_a_damaged_list(share, store, shared, how, tmp_path, capsys):
    """The catalogue knows the list's SHA-256; another content of the same recipe is refused."""
    harm(shared, how, CHECKSUMS)
    harm(shared, "changed")
    other = build_store(tmp_path / "other", {"a": (1, 1)})
    assert main(["push", str(other), share, "--check"]) == 1
    message = capsys.readouterr().err
    assert f"verify {shared} --repair COPY" in message
    assert main(["push", str(store), share]) == 0
    assert ": 2 files mended" in capsys.readouterr().out
    assert files_of(shared) == tree_of(store)


def test_a_store_that_is_being_replaced_is_not_mended(share, store, shared, tmp_path):
    """Else old files would get between the new ones, and the new list would be written to them."""
    new = build_store(tmp_path / "new")
    retry = new.with_name(f"{new.name}.retry")
    write_part(retry, [Record("bad", "ok", "", 1.5, 2, 2)])
    retried = republish(new, RECIPE, WIDTHS, {"licence": "none"}, Parts(retry))
    content = Checksums.of(retried).content
    claim(shared, content)
    harm(shared, "missing")
    with pytest.raises(ValueError, match=r"different content is unfinished .*--take-over"):
        push(store, share)
    assert find_problems(shared, Checksums.of(store)) == {CHUNK: "missing"}
    push(retried, share, replace=True)
    assert files_of(shared) == tree_of(retried)


def test_a_push_of_what_is_there_leaves_the_claims_of_others(share, store, shared):
    claim(shared, "ab" * 32)
    push(store, share)
    assert [n for n in Location.parse(share).sizes("toy") if n.endswith(f"{'ab' * 32}.claim")]


def test_an_object_named_like_a_folder_is_removed_alone(s3, store):
    share = f"{s3}/named"
    where = Location.parse(share)
    where.write(f"{NAME}/audio", b"no folder", "elsewhere")
    push(store, share)
    assert files_of(RemoteStore(where, *NAME.split("/"))) == tree_of(store)


# --- verify ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["missing", "wrong size", "changed"])
def test_verify_finds_faults_on_a_share(share, shared, how, capsys):
    assert verify(shared) == []
    harm(shared, how)
    (fault,) = verify(shared)
    assert (fault.file, fault.problem, fault.utterances) == (CHUNK, how, ("a", "b", "c"))
    for text in (f"{share}/{NAME}", f"{share}/{RECIPE.digest[:12]}", share):
        assert main(["verify", text]) == 1
        output = capsys.readouterr().out
        assert f"{CHUNK}: {how} (utterances a, b, c)" in output
        assert f"python -m cache verify {text} --repair COPY" in output


def test_verify_finds_extra_files_on_a_share(shared, capsys):
    harm(shared, "missing")
    harm(shared, "extra")
    assert {f.file: f.problem for f in verify(shared)} == {
        CHUNK: "missing",
        "audio/notes.txt": "extra",
    }


@pytest.mark.parametrize("how", ["missing", "wrong size", "changed"])
def test_verify_reads_a_web_server(web, tmp_path, how, capsys):
    assert main(["verify", f"{web}/{NAME}"]) == 0
    harm(RemoteStore(Location.parse(tmp_path / "share"), *NAME.split("/")), how)
    assert main(["verify", f"{web}/{RECIPE.digest}"]) == 1
    assert f"{CHUNK}: {how} (utterances a, b, c)" in capsys.readouterr().out
    assert main(["verify", web, "--repair", str(tmp_path / "stores" / NAME)]) == 1
    assert "a web server is read-only" in capsys.readouterr().err


def test_verify_of_a_share_without_its_index_names_no_utterance(shared):
    harm(shared, "changed")
    harm(shared, "changed", "utterances/id/c/0")
    assert [(f.file, f.utterances) for f in verify(shared)] == [
        (CHUNK, ()),
        ("utterances/id/c/0", ()),
    ]


# --- repair ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["missing", "wrong size", "changed", "extra"])
def test_repair_of_a_share_from_a_path(share, store, shared, how, capsys):
    harm(shared, how)
    assert main(["verify", f"{share}/{NAME}", "--repair", str(store)]) == 0
    assert files_of(shared) == tree_of(store)
    assert not [n for n in Location.parse(share).sizes("") if "pushing" in n]


def test_repair_of_a_share_from_another_share(s3, share, store, shared, tmp_path):
    copies = [f"{s3}/{tmp_path.name}-copy", str(tmp_path / "copy")]
    for copy in copies:
        push(store, copy)
        for source in (copy, f"{copy}/{NAME}", f"{copy}/{RECIPE.digest[:12]}"):
            harm(shared, "changed")
            (fault,) = repair(shared, source)
            assert (fault.file, fault.problem) == (CHUNK, "changed")
            assert files_of(shared) == tree_of(store)


@pytest.mark.parametrize("how", ["missing", "wrong size"])
def test_repair_of_a_share_takes_lost_checksums_from_the_copy(share, store, shared, how):
    harm(shared, how, CHECKSUMS)
    harm(shared, "missing")
    repair(shared, str(store))
    assert files_of(shared) == tree_of(store)


def test_repair_of_a_share_takes_nothing_from_a_wrong_copy(share, shared, tmp_path):
    wrong = build_store(tmp_path / "wrong", {"a": (1, 1), "b": (2, 2)})
    harm(shared, "missing")
    harm(shared, "extra")
    with pytest.raises(ShareError, match="1 files have no intact copy there"):
        repair(shared, str(wrong))
    assert {f.problem for f in verify(shared)} == {"missing"}


def test_repair_of_a_share_from_a_web_server(web, s3, store):
    shared = push(store, f"{s3}/web").target
    harm(shared, "changed", "zarr.json")
    repair(shared, web)
    assert files_of(shared) == tree_of(store)


# --- what is said ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["missing", "changed"])
def test_the_command_that_is_named_mends_the_share(
    share, store, shared, how, tmp_path, monkeypatch
):
    monkeypatch.setenv("SEMANTICMAC_CACHE", str(tmp_path / "mirror"))
    for fails in (
        lambda: pull(resolve_one(share), tmp_path / "pulled"),
        lambda: open_store(f"{share}/{NAME}").select(["a"]),
        lambda: shared.read(CHUNK, Checksums.of(store).files[CHUNK]),
    ):
        harm(shared, how)
        if shared.folder is not None and fails.__code__.co_names[0] == "open_store":
            push(store, share, check=True)  # a folder is opened without reading every byte
            continue
        with pytest.raises(ShareError) as caught:
            fails()
        command = str(caught.value).rpartition("python -m cache ")[2]
        words = [str(store) if word == "STORE" else word for word in shlex.split(command)]
        assert main(words) == 0
        assert files_of(shared) == tree_of(store)


@pytest.mark.parametrize("name", ["zarr.json", "audio/values/zarr.json"])
def test_a_store_that_lacks_its_metadata_names_the_command_too(tmp_path, store, name):
    copy = shutil.copytree(store, tmp_path / "copy" / NAME)
    (store / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing; run: python -m cache") as caught:
        open_store(store).select(["a"])
    words = shlex.split(str(caught.value).rpartition("python -m cache ")[2])
    assert main([str(copy) if word == "COPY" else word for word in words]) == 0
    assert open_store(store).select(["a"])


def test_a_web_server_is_mended_where_it_is_served_from(web, tmp_path, capsys):
    harm(RemoteStore(Location.parse(tmp_path / "share"), *NAME.split("/")), "changed")
    assert main(["pull", web, "--stores", str(tmp_path / "pulled")]) == 1
    assert "mend it where it is served from" in capsys.readouterr().err


# --- names ----------------------------------------------------------------------------------------


def test_a_digest_names_a_store_in_a_folder(tmp_path, store, capsys):
    lab = tmp_path / "lab"
    push(store, str(lab))
    named = f"{lab}/{RECIPE.digest[:12]}"
    check_exists(named)  # as train does with cache=
    with pytest.raises(ValueError, match="does not exist"):
        check_exists(f"{tmp_path}/not mounted/{RECIPE.digest[:12]}")
    assert open_store(named).path == lab / NAME
    assert open_store(Path(named)).path == lab / NAME
    assert open_store(str(lab)).path == lab / NAME
    assert open_store(f"file://{named}").path == lab / NAME
    out = str(tmp_path / "out.npz")
    for command in (
        ["info", named],
        ["verify", named],
        ["diff", named, str(store)],
        ["export", named, out, "--to", "npz"],
        ["push", named, str(tmp_path / "second")],
    ):
        assert main(command) == 0, capsys.readouterr().err
    assert main(["info", f"{lab}/{'0' * 12}"]) == 1
    assert f"No store with digest {'0' * 12} found in {lab}" in capsys.readouterr().err


def test_a_folder_that_exists_is_meant_before_a_digest(tmp_path, store):
    lab = tmp_path / "lab"
    push(store, str(lab))
    mine = shutil.copytree(store, lab / RECIPE.digest[:12])
    assert open_store(mine).path == mine
    assert verify(mine) == []


def test_a_store_on_another_machine_is_not_pushed(s3, store, capsys):
    push(store, f"{s3}/far")
    assert main(["push", f"{s3}/far/{NAME}", f"{s3}/farther"]) == 1
    assert "is not on this machine; pull it, then push the copy" in capsys.readouterr().err


# --- links ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", ["toy", "catalog", "catalog/toy", f"{NAME}.pushing", "elsewhere"])
def test_a_push_writes_through_no_link(tmp_path, store, link, capsys):
    share, victim = tmp_path / "share", tmp_path / "victim"
    victim.mkdir()
    (share / link).parent.mkdir(parents=True)
    (share / link).symlink_to(victim)
    status = main(["push", str(store), str(share)])
    assert status == (link != "elsewhere")
    assert list(victim.iterdir()) == []
    if status:
        assert f"{share / link} is a symlink." in capsys.readouterr().err


@pytest.mark.parametrize("link", ["audio", "audio/values/c"])
def test_a_mend_writes_through_no_link(tmp_path, store, link, capsys):
    share, victim = tmp_path / "share", tmp_path / "victim"
    push(store, str(share))
    shutil.move(share / NAME / link, victim)
    (share / NAME / link).symlink_to(victim)
    for path in victim.rglob("0"):
        path.is_file() and path.unlink()
    before = sorted(victim.rglob("*"))
    assert main(["push", str(store), str(share)]) == 1
    assert f"{share / NAME / link} is a symlink." in capsys.readouterr().err
    assert sorted(victim.rglob("*")) == before


def test_a_linked_file_becomes_a_file(tmp_path, store):
    share, victim = tmp_path / "share", tmp_path / "victim"
    push(store, str(share))
    (share / NAME / CHUNK).unlink()
    victim.write_text("mine")
    (share / NAME / CHUNK).symlink_to(victim)
    assert push(store, str(share)).mended == 1
    assert victim.read_text() == "mine"
    assert verify(share / NAME) == []


def test_the_share_itself_may_be_a_link(tmp_path, store):
    (tmp_path / "disk").mkdir()
    (tmp_path / "share").symlink_to(tmp_path / "disk")
    push(store, str(tmp_path / "share"))
    assert FeatureStore.open(tmp_path / "disk" / NAME).ids
    assert json.loads((tmp_path / "disk" / "catalog.json").read_bytes())["stores"]
