"""Several people on one machine: a mirror of a group, and a home that cannot be written."""

import multiprocessing
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cache import FeatureStore
from cache.share import mirror as mirror_module
from cache.share.gc import delete_garbage, find_garbage
from cache.share.mirror import mirror
from cache.share.push import push
from cache.share.verify import verify
from cache.store.disk import make_folder
from cache.store.temp_paths import TempPath
from tests.stores import LENGTHS, RECIPE, build_store, tree_of
from tests.tampering import reseal, unseal

fork = multiprocessing.get_context("fork")
ANN, BOB, LAB = 54001, 54002, 54003
NAME = f"toy/{RECIPE.store_name}"

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="becoming other users needs root")


def _become(user: int, work: Callable[[], object], answer) -> None:
    os.setgroups([LAB])
    os.setgid(user)  # each user's own group
    os.setuid(user)
    os.umask(0o022)
    try:
        answer.put(work())
    except BaseException as error:
        answer.put(error)


def as_user(user: int, work: Callable[[], object]) -> object:
    """What ``work`` returns in a process of another user of the lab, who has the umask 022."""
    answer = fork.Queue()
    process = fork.Process(target=_become, args=(user, work, answer))
    process.start()
    result = answer.get(timeout=120)
    process.join()
    if isinstance(result, BaseException):
        raise result
    return result


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that all users may read, with a share and a mirror that the lab may write."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        (root / "mirror").mkdir()
        if os.getuid() == 0:
            os.chown(root / "mirror", -1, LAB)
        (root / "mirror").chmod(0o2775)
        push(build_store(root / "stores"), str(root / "share"))
        yield root


def fetch(place: Path) -> Path:
    return mirror(f"{place}/share/{NAME}", place / "mirror")


def replace_on_share(place: Path) -> None:
    """Another store with the same recipe."""
    shutil.rmtree(place / "share")
    other = unseal(build_store(place / "others", LENGTHS | {"new": (1, 1)}))
    push(other, str(place / "share"))


def interrupted(place: Path) -> None:
    """A pull that ended before its last file; nothing is read-only yet."""
    target = place / "mirror" / NAME
    left = TempPath.PARTIAL.next_to(target)
    for path in (place / "share" / NAME).rglob("*"):
        if path.is_file() and path.name != "checksums.json":
            copy = left / path.relative_to(place / "share" / NAME)
            make_folder(copy.parent)
            copy.write_bytes(path.read_bytes())
    target.with_name(TempPath.PULL_LOCK.name_for(target.name)).touch()


@needs_root
def test_one_user_uses_replaces_and_deletes_what_another_pulled(place):
    store = as_user(ANN, lambda: fetch(place))
    assert {p.stat().st_uid for p in store.rglob("*")} == {ANN}
    os.utime(store, (1, 1))
    assert as_user(BOB, lambda: FeatureStore.open(fetch(place)).counts)["utterances"] == 5
    assert store.stat().st_mtime > 1  # it was used

    replace_on_share(place)
    as_user(BOB, lambda: fetch(place))
    assert tree_of(store) == tree_of(place / "share" / NAME)
    assert {p.stat().st_uid for p in store.rglob("*")} == {BOB}

    def collect() -> int:
        found = find_garbage(place / "mirror", larger_than=0)
        for garbage in found:
            delete_garbage(garbage)
        return len(found)

    assert as_user(ANN, collect) == 1
    assert list(store.parent.iterdir()) == []
    as_user(ANN, lambda: fetch(place))
    assert verify(store) == []


@needs_root
def test_one_user_resumes_what_another_began(place):
    as_user(ANN, lambda: interrupted(place))
    store = as_user(BOB, lambda: fetch(place))
    assert verify(store) == []
    assert [p.name for p in store.parent.iterdir()] == [store.name]
    assert {stat.S_IMODE(p.stat().st_mode) for p in store.rglob("*") if p.is_file()} == {0o444}


@needs_root
def test_one_user_repairs_what_another_pulled(place):
    store = as_user(ANN, lambda: fetch(place))
    (store / "audio/values/c/0/0").chmod(0o644)
    (store / "audio/values/c/0/0").write_bytes(b"")
    as_user(BOB, lambda: fetch(place))
    assert verify(store) == []


@needs_root
def test_a_mirror_of_one_user_stays_their_own(place):
    (place / "mirror").chmod(0o755)
    os.chown(place / "mirror", ANN, ANN)
    store = as_user(ANN, lambda: fetch(place))
    assert not any(p.stat().st_mode & stat.S_IWGRP for p in store.parent.rglob("*"))
    replace_on_share(place)
    with pytest.raises(ValueError, match=r"Permission denied.*set SEMANTICMAC_CACHE"):
        as_user(BOB, lambda: fetch(place))


def test_folders_of_a_group_are_writable_for_it(place):
    """The same by modes, for a machine without root."""
    umask = os.umask(0o022)
    try:
        store = fetch(place)
    finally:
        os.umask(umask)
    folders = [store.parent, store, *(p for p in store.rglob("*") if p.is_dir())]
    assert all(p.stat().st_mode & 0o070 == 0o070 for p in folders)
    assert {stat.S_IMODE(p.stat().st_mode) for p in store.rglob("*") if p.is_file()} == {0o444}


@needs_root
def test_one_store_without_permission_hides_only_itself(place):
    store = as_user(ANN, lambda: fetch(place))
    hidden = store.with_name(store.name.replace("none", "other"))
    shutil.copytree(store, hidden)
    hidden.chmod(0o700)
    assert as_user(BOB, lambda: FeatureStore.open(fetch(place)).dataset) == "toy"
    found = as_user(BOB, lambda: [g.path for g in find_garbage(place / "mirror", larger_than=0)])
    assert found == [store]


# --- homes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("home", ["/dev/null", "/proc/nothing"])
def test_a_home_that_cannot_be_written_names_the_variable(place, monkeypatch, home):
    for name in ("XDG_CACHE_HOME", mirror_module.FOLDER):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", home)
    with pytest.raises(ValueError, match=f"{home}.*set SEMANTICMAC_CACHE to a folder"):
        mirror(f"{place}/share/{NAME}")


def test_a_user_without_a_home_is_told_the_variable(monkeypatch):
    for name in ("XDG_CACHE_HOME", mirror_module.FOLDER):
        monkeypatch.delenv(name, raising=False)

    def none(_class) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", classmethod(none))
    with pytest.raises(ValueError, match=r"home directory\. .*set SEMANTICMAC_CACHE"):
        mirror_module.mirror_folder()


def test_a_resealed_store_is_not_a_copy(place):
    """What the mirror has under the same name is replaced, whoever made it."""
    store = unseal(fetch(place))
    (store / "zarr.json").write_text((store / "zarr.json").read_text() + " ")
    reseal(store)
    assert tree_of(fetch(place)) == tree_of(place / "share" / NAME)
