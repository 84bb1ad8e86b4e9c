"""What goes wrong on a command line is one clear line, whatever system it runs on."""

import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import rich.progress  # noqa: F401 - not importable where Python's own files are not readable

from cache import find
from cache.__main__ import main
from cache.share import catalog
from cache.share.location import Location
from cache.share.mirror import mirror
from cache.share.push import push
from cache.share.verify import verify
from cache.store.checksums import CHECKSUMS
from cache.store.recipe import user_name
from tests.stores import RECIPE, build_store, recipe_of

fork = multiprocessing.get_context("fork")
NAME = f"toy/{RECIPE.store_name}"


@pytest.fixture
def store(tmp_path) -> Path:
    return build_store(tmp_path / "stores")


# --- users without a name -------------------------------------------------------------------------


@pytest.fixture
def nameless(monkeypatch):
    """A container whose user number has no name."""
    import pwd

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.usefixtures("nameless")
def test_users_without_a_name_go_by_their_number(store, tmp_path):
    assert user_name() == str(os.getuid())
    push(store, str(tmp_path / "share"))
    (entry,) = catalog.entries(Location.parse(tmp_path / "share"))
    assert entry.who == str(os.getuid())


# --- no right -------------------------------------------------------------------------------------


def by_anybody(folder: Path, action: Callable[[], int | None]) -> tuple[int, str, str]:
    """Call a function in a folder, as a user whom permissions hold; what it returns and prints."""
    folder.chmod(0o755)
    streams = [folder / "out", folder / "err"]

    def run() -> None:
        os.chdir(folder)
        for number, path in enumerate(streams, 1):
            os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
        sys.stdout, sys.stderr = (os.fdopen(n, "w") for n in (1, 2))
        logging.getLogger().handlers.clear()  # the tests' own, so warnings go where users see them
        if not os.getuid():
            os.setuid(65534)
        status = action()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status or 0)

    process = fork.Process(target=run)
    process.start()
    process.join(60)
    out, err = (path.read_text() for path in streams)
    return process.exitcode, out, err


def as_anybody(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """``python -m cache ...`` in a folder, by a user whom permissions hold."""
    return by_anybody(folder, lambda: main(list(arguments)))


def test_verify_names_an_unreadable_file(store):
    (store / "audio/values/c/0/0").chmod(0)
    status, out, err = as_anybody(store.parent, "verify", store.name)
    assert (status, err) == (1, "")
    assert "audio/values/c/0/0: unreadable (utterances a, b, c)" in out
    assert "1 faults" in out


def test_push_of_an_unreadable_file_is_a_clear_error(store, tmp_path, monkeypatch, capsys):
    read = Path.read_bytes

    def refused(path: Path) -> bytes:
        if path.parts[-5:] == ("audio", "values", "c", "0", "0"):
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    assert main(["push", str(store), str(tmp_path / "share")]) == 1
    output = capsys.readouterr().err
    assert "audio/values/c/0/0 cannot be read: Permission denied" in output
    assert output.count("\n") == 1


@pytest.fixture
def lab() -> Iterator[Path]:
    """A folder that every user can come to, as they cannot to the tests' own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_an_entry_that_is_not_ours_to_read_hides_no_other(store, lab):
    share = lab / "share"
    push(store, str(share))
    theirs = share / "catalog" / "toy" / "theirs.zarr.json"
    theirs.write_text("{}")
    theirs.chmod(0)
    for folder in (share, share / "catalog"):
        folder.chmod(0o755)
    status, output, warned = as_anybody(lab, "list", "share")
    assert status == 0
    assert RECIPE.digest[:12] in output
    assert "skipping an entry" in warned
    assert "chmod -R g+rwX" in warned


OTHER = recipe_of(weights="01", dataset="other")


@pytest.mark.parametrize(
    ("hidden", "catalogue"),
    [
        ("other", True),
        ("other", False),
        (f"other/{OTHER.store_name}", True),
        (f"other/{OTHER.store_name}", False),
        ("catalog/other", True),
    ],
)
def test_what_is_not_ours_to_read_in_a_share_hides_only_itself(lab, store, hidden, catalogue):
    share = lab / "share"
    for pushed in (store, build_store(lab / "stores", recipe=OTHER)):
        push(pushed, str(share))
    open_to_all(share)
    if not catalogue:
        shutil.rmtree(share / "catalog")
    (share / hidden).chmod(0)
    status, output, _ = as_anybody(lab, "list", "share")
    assert status == 0
    assert RECIPE.digest[:12] in output
    (lab / "mine").mkdir()
    (lab / "mine").chmod(0o777)
    status, output, errors = as_anybody(lab, "pull", "share", "--all", "--stores", "mine")
    assert (lab / "mine" / NAME / CHECKSUMS).is_file()
    hidden_but_listed = catalogue and not hidden.startswith("catalog")
    assert status == int(hidden_but_listed)
    assert ("Permission denied" in errors) == (not hidden.startswith("catalog"))


def open_to_all(root: Path) -> None:
    for folder in (root, *root.glob("**/")):
        folder.chmod(0o755)


def test_what_is_not_ours_to_read_in_a_mirror_hides_only_itself(lab, store):
    mirrored, *hidden = (
        shutil.copytree(store, lab / "mirror" / dataset / RECIPE.store_name)
        for dataset in ("toy", "second", "third")
    )
    open_to_all(lab / "mirror")
    hidden[0].chmod(0)
    hidden[1].parent.chmod(0)
    status, output, errors = as_anybody(lab, "gc", "--mirror", "mirror", "--older-than", "0")
    assert (status, output.count("unused for")) == (0, 1), errors
    assert "skipping a store" in errors
    offline = str(lab / "not mounted" / RECIPE.digest[:12])
    status, output, errors = by_anybody(lab, lambda: print(mirror(offline, lab / "mirror")))
    assert (status, output) == (0, f"{mirrored}\n"), errors


@pytest.mark.parametrize("hidden", ["", "zarr.json"])
def test_a_store_that_is_not_ours_to_read_is_passed_over_where_there_are_others(lab, store, hidden):
    root = lab / "stores"
    other = build_store(root, recipe=recipe_of(weights="01"))
    theirs = shutil.copytree(store, root / NAME)
    open_to_all(root)
    (theirs / hidden).chmod(0)
    status, output, errors = by_anybody(lab, lambda: print(find("toy", root)))
    assert (status, output) == (0, f"{other}\n"), errors
    assert "skipping a store" in errors


@pytest.mark.parametrize("where", [".", "features"])
def test_a_narrow_umask_excludes_no_member_of_the_group(store, tmp_path, where):
    share = tmp_path / "share"
    share.mkdir()
    share.chmod(0o2775)
    before = os.umask(0o077)
    try:
        push(store, str(share / where))
    finally:
        os.umask(before)
    for path in share.rglob("*"):
        wanted = 0o070 if path.is_dir() else 0o040
        assert path.stat().st_mode & 0o070 == wanted, path


def test_a_folder_of_one_person_stays_theirs(store, tmp_path):
    share = tmp_path / "share"
    share.mkdir()
    share.chmod(0o755)
    before = os.umask(0o077)
    try:
        push(store, str(share))
    finally:
        os.umask(before)
    assert not any(path.stat().st_mode & 0o077 for path in share.rglob("*"))


def test_permission_denied_names_the_remedy(store, lab):
    push(store, str(lab / "share"))
    (lab / "share" / "toy").chmod(0)
    status, _, output = as_anybody(lab, "pull", f"share/{NAME}", "--stores", "mine")
    (lab / "share" / "toy").chmod(0o755)
    assert status == 1
    assert f"to run: chmod -R g+rwX {lab / 'share'}" in output
    assert "umask 002" in output


def test_push_where_no_folder_can_be_made_is_a_clear_error(store, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["push", str(store), str(tmp_path / "file" / "share")]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path}/file/share: Not a directory\n"


def test_push_does_not_make_a_mount_point(store, tmp_path, capsys):
    assert main(["push", str(store), str(tmp_path / "mnt" / "lab")]) == 1
    output = capsys.readouterr().err
    assert f"no such folder: {tmp_path}/mnt; is it mounted?" in output
    assert not (tmp_path / "mnt").exists()
    (tmp_path / "mnt").mkdir()
    assert main(["push", str(store), str(tmp_path / "mnt" / "lab")]) == 0
    assert verify(tmp_path / "mnt" / "lab" / NAME) == []


# --- a closed pipe --------------------------------------------------------------------------------


def test_a_closed_pipe_is_not_an_error(store, tmp_path):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "cache", "push", str(store), str(tmp_path / "share")]
    done = subprocess.run(
        command, stdout=write, stderr=subprocess.PIPE, check=False, cwd=Path(__file__).parent.parent
    )
    os.close(write)
    assert done.stderr == b""
    assert done.returncode == 141
    assert verify(tmp_path / "share" / NAME) == []
