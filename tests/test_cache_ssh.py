"""Sharing over SSH: a real SFTP server on this machine, with a key in an agentless home."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest
from fsspec.implementations.sftp import SFTPFileSystem

from cache import open_store
from cache.__main__ import main
from cache.share.location import Location, ShareError
from cache.share.verify import verify
from tests.stores import RECIPE, build_store, tree_of

NAME = f"toy/{RECIPE.store_name}"


class Door(paramiko.ServerInterface):
    """Accepts one key, and no password."""

    def __init__(self, key: paramiko.PKey) -> None:
        self._key = key

    def get_allowed_auths(self, _username):
        return "publickey"

    def check_auth_publickey(self, _username, key):
        known = key.asbytes() == self._key.asbytes()
        return paramiko.AUTH_SUCCESSFUL if known else paramiko.AUTH_FAILED

    def check_channel_request(self, _kind, _channel):
        return paramiko.OPEN_SUCCEEDED


class Handle(paramiko.SFTPHandle):
    """An open file."""

    def __init__(self, path: str, flags: int) -> None:
        super().__init__(flags)
        self.path = path
        mode = "wb" if flags & os.O_TRUNC else "r+b" if flags & os.O_WRONLY else "rb"
        self.readfile = self.writefile = Path(path).open(mode, buffering=0)  # noqa: SIM115

    def stat(self):
        return paramiko.SFTPAttributes.from_stat(Path(self.path).stat())


def answering(action):
    """The action of a server: what the system refuses becomes the protocol's status."""

    def answer(self, *arguments):
        try:
            result = action(self, *arguments)
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno)
        return paramiko.SFTP_OK if result is None else result

    return answer


class Files(paramiko.SFTPServerInterface):
    """The files of this machine."""

    @answering
    def list_folder(self, path):
        entries = []
        for entry in os.scandir(path):
            attributes = paramiko.SFTPAttributes.from_stat(entry.stat(follow_symlinks=False))
            attributes.filename = entry.name
            entries.append(attributes)
        return entries

    @answering
    def stat(self, path):
        return paramiko.SFTPAttributes.from_stat(Path(path).stat())

    @answering
    def lstat(self, path):
        return paramiko.SFTPAttributes.from_stat(Path(path).lstat())

    @answering
    def open(self, path, flags, _attributes):
        return Handle(path, flags)

    @answering
    def remove(self, path):
        Path(path).unlink()

    @answering
    def rename(self, old, new):
        if Path(new).exists():
            return paramiko.SFTP_FAILURE  # as OpenSSH does
        Path(old).rename(new)
        return None

    @answering
    def posix_rename(self, old, new):
        Path(old).replace(new)

    @answering
    def mkdir(self, path, _attributes):
        Path(path).mkdir()

    @answering
    def rmdir(self, path):
        Path(path).rmdir()


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[str]:
    """An SSH server that accepts one key, stored where SSH looks for it; yields its URL."""
    key = paramiko.RSAKey.generate(2048)
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    key.write_private_key_file(str(home / ".ssh" / "id_rsa"))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    listening = socket.create_server(("127.0.0.1", 0))
    open_transports = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            transport = paramiko.Transport(connection)
            transport.add_server_key(key)
            transport.set_subsystem_handler("sftp", paramiko.SFTPServer, Files)
            transport.start_server(server=Door(key))
            open_transports.append(transport)

    threading.Thread(target=serve, daemon=True).start()
    SFTPFileSystem.clear_instance_cache()
    yield f"ssh://lab@127.0.0.1:{listening.getsockname()[1]}"
    listening.close()
    for transport in open_transports:
        transport.close()


def test_push_list_pull_and_repair(server, tmp_path, capsys):
    store, share = build_store(tmp_path / "stores"), f"{server}{tmp_path}/share"
    assert main(["push", str(store), share]) == 0, capsys.readouterr().err
    assert tree_of(tmp_path / "share" / NAME) == tree_of(store)
    assert not list((tmp_path / "share" / "toy").glob("*.pushing/**/*"))
    assert main(["push", str(store), share]) == 0
    assert "already there" in capsys.readouterr().out
    assert main(["list", share]) == 0
    assert RECIPE.digest[:12] in capsys.readouterr().out

    digest = RECIPE.digest[:12]
    assert main(["pull", f"{share}/{digest}", "--stores", str(tmp_path / "pulled")]) == 0
    pulled = tmp_path / "pulled" / NAME
    assert tree_of(pulled) == tree_of(store)

    path = pulled / "audio/values/c/0/0"
    path.chmod(0o644)
    path.write_bytes(b"?" + path.read_bytes()[1:])
    assert main(["verify", str(pulled)]) == 1
    assert main(["verify", str(pulled), "--repair", f"{share}/{NAME}"]) == 0
    assert verify(pulled) == []
    assert tree_of(pulled) == tree_of(store)


def test_damage_is_found_and_mended(server, tmp_path, capsys):
    store, share = build_store(tmp_path / "stores"), f"{server}{tmp_path}/share"
    assert main(["push", str(store), share]) == 0
    path = tmp_path / "share" / NAME / "audio/values/c/0/0"
    for repair in (["push", str(store), share, "--check"], ["verify", share, "--repair", store]):
        path.write_bytes(bytes(path.stat().st_size))
        (path.parent / "notes.txt").write_text("extra")
        (tmp_path / "share" / NAME / "utterances/id/zarr.json").unlink()
        capsys.readouterr()
        assert main(["verify", share]) == 1
        found = capsys.readouterr().out
        assert "audio/values/c/0/0: changed" in found
        assert "audio/values/c/0/notes.txt: extra" in found
        assert "utterances/id/zarr.json: missing" in found
        assert main([str(word) for word in repair]) == 0
        (path.parent / "notes.txt").unlink(missing_ok=True)
        assert tree_of(tmp_path / "share" / NAME) == tree_of(store)
        assert not list((tmp_path / "share" / "toy").glob("*.pushing/**/*"))


@pytest.mark.parametrize("link", ["toy", "catalog", f"{NAME}.pushing", f"{NAME}/audio"])
def test_a_push_writes_through_no_link(server, tmp_path, link, capsys):
    store, share = build_store(tmp_path / "stores"), f"{server}{tmp_path}/share"
    victim = tmp_path / "victim"
    victim.mkdir()
    (tmp_path / "share" / link).parent.mkdir(parents=True)
    (tmp_path / "share" / link).symlink_to(victim)
    assert main(["push", str(store), share]) == 1
    assert f"{tmp_path}/share/{link} is a symlink" in capsys.readouterr().err
    assert list(victim.iterdir()) == []


def test_an_interrupted_push_is_invisible_and_resumes(server, tmp_path, capsys, monkeypatch):
    store, share = build_store(tmp_path / "stores"), f"{server}{tmp_path}/share"
    write, written = Location.write, []

    def failing(self, name, data, waiting):
        if len(written) == 5:
            raise ShareError("the line went dead")
        written.append(name)
        write(self, name, data, waiting)

    monkeypatch.setattr(Location, "write", failing)
    assert main(["push", str(store), share]) == 1
    assert "the line went dead" in capsys.readouterr().err
    monkeypatch.setattr(Location, "write", write)
    assert main(["pull", share, "--stores", str(tmp_path / "early")]) == 1
    assert main(["push", str(store), share]) == 0
    assert tree_of(tmp_path / "share" / NAME) == tree_of(store)


def test_reading_through_the_mirror(server, tmp_path, monkeypatch):
    monkeypatch.setenv("SEMANTICMAC_CACHE", str(tmp_path / "mirror"))
    store, share = build_store(tmp_path / "stores"), f"{server}{tmp_path}/share"
    assert main(["push", str(store), share]) == 0
    assert open_store(f"{share}/{NAME}").path == tmp_path / "mirror" / NAME


def test_a_stranger_is_refused_in_one_line(server, tmp_path, capsys):
    key = paramiko.RSAKey.generate(2048)
    key.write_private_key_file(str(Path.home() / ".ssh" / "id_rsa"))
    assert main(["list", f"{server}{tmp_path}/share"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ssh://")
    assert "uthentication failed" in error
    assert error.count("\n") == 1
