"""Read and write files at a location: a folder, a bucket, a web server, the Hub, or by SSH.

Access is configured in the back-end's own way (its configuration files or environment variables). A
location must not contain a secret, because it ends up in shell histories, process lists,
configurations and logs.
"""

from __future__ import annotations

import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from cache.names import is_url
from cache.share.back_ends import HUB, PACKAGE, SSH, WEB, file_system, split_host
from cache.share.secrets import check_no_secrets, redacted
from cache.store.disk import (
    LARGEST_LIST,
    IrregularFileError,
    add_mode,
    atomic_write,
    files_below,
    make_folder,
    make_read_only,
    read_regular,
    remove_tree,
)
from cache.store.temp_paths import incomplete_file

# fsspec checks for a folder and then makes it: two threads would both do so.
_making_folders = threading.Lock()


class ShareError(ValueError):
    """A location is unreachable, a permission is missing, or a file is damaged."""


class UnreadableError(ShareError):
    """One file cannot be read or written, for instance without permission; others may be."""


@dataclass(frozen=True)
class Location:
    """A place with files, by URL.

    Attributes:
        scheme: ``file`` (a folder), ``s3``, ``gs``, ``hf``, ``http``, ``https``, ``sftp`` or
            ``ssh``.
        host: bucket, or host with port, or ``datasets/OWNER/NAME[@REVISION]``; empty for a folder.
        path: below that, without a slash at the end.
    """

    scheme: str
    host: str
    path: str

    @classmethod
    def parse(cls, text: str | Path) -> Location:
        """Parse a URL or the path of a folder.

        Raises:
            ValueError: an unknown scheme; a URL with credentials or a query; or an empty text, for
                instance from an unset shell variable.
        """
        text = str(text)
        if not text.strip():
            raise ValueError("the location is empty; the current folder is '.'")
        scheme, _, rest = text.partition("://")
        if not is_url(text) or scheme == "file":
            folder = Path(rest if is_url(text) else text).expanduser().absolute()
            return cls("file", "", folder.as_posix())
        if scheme not in PACKAGE:
            known = ", ".join(f"{s}://" for s in PACKAGE)
            raise ValueError(f"{scheme}:// is not supported; use a folder or one of {known}")
        check_no_secrets(scheme, rest)
        host, path = split_host(scheme, rest)
        return cls(scheme, host, f"/{path}".rstrip("/"))

    def __str__(self) -> str:
        return self.path if self.scheme == "file" else f"{self.scheme}://{self.host}{self.path}"

    def __truediv__(self, name: str) -> Location:
        return replace(self, path=f"{self.path.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> Location:
        """One folder up."""
        return replace(self, path=self.path.rpartition("/")[0])

    @property
    def writable(self) -> bool:
        """Whether the back-end can write; permissions are not checked."""
        return not self.why_read_only

    @property
    def why_read_only(self) -> str:
        """Say why the back-end cannot write, and what is written to instead; empty if it can."""
        if self.scheme in WEB:
            return "a web server is read-only; name the folder or bucket that it serves"
        if self.scheme == HUB and "@" in self.host:
            newest = replace(self, host=self.host.partition("@")[0])
            return f"a revision is read-only; name {newest}"
        return ""

    @property
    def in_commits(self) -> bool:
        """Whether the back-end writes many files at once, see :mod:`cache.share.commit`."""
        return self.scheme == HUB

    @property
    def listable(self) -> bool:
        """Whether the back-end can list files."""
        return self.scheme not in WEB

    @property
    def folder(self) -> Path | None:
        """The location as a folder of this machine, None for other back-ends."""
        return Path(self.path) if self.scheme == "file" else None

    def read(self, name: str = "", at_most: int = LARGEST_LIST) -> bytes:
        """Read a file; of a larger one than expected, the first ``at_most + 1`` bytes.

        Args:
            name: the file, relative to this location.
            at_most: largest expected size in bytes.

        Raises:
            FileNotFoundError: no such file.
            UnreadableError: no permission to read it, or not a regular file.
            ShareError: any other error.
        """
        with self._as_share_error(name):
            return self._read_start(name, at_most + 1)

    def write(self, name: str, data: bytes, temporary: str) -> None:
        """Write a file atomically; in a folder it becomes read-only.

        Args:
            name: the file, relative to this location.
            data: its content.
            temporary: folder for the incomplete file, relative to this location. Object stores do
                not use it: they write atomically.

        Raises:
            ShareError: it could not be written, or a link in the folder leads out of it.
        """
        part = incomplete_file(temporary)
        with self._as_share_error(name, missing=True):
            for below in (name, part):
                self._check_not_linked(below.rpartition("/")[0])
            if self.folder is not None:
                group = self._group_bits()
                for below in (name, part):
                    make_folder((self.folder / below).parent, group)
                atomic_write(self.folder / name, data, self.folder / part, group & ~stat.S_IXGRP)
                make_read_only(self.folder / name)
            elif self.scheme in SSH:
                files = self._files()
                with _making_folders:
                    for below in (name, part):
                        files.makedirs(self._address(below).rpartition("/")[0], exist_ok=True)
                files.pipe_file(self._address(part), data)
                files.mv(self._address(part), self._address(name))
            else:
                self._files().pipe_file(self._address(name), data)

    def sizes(self, name: str) -> dict[str, int]:
        """Map every file below a folder (relative path) to its size in bytes; empty if missing.

        In a folder links are not followed, and what is not a regular file has the size -1. What
        cannot be listed, for instance without permission, is skipped.
        """
        if self.folder is not None:
            root = self.folder / name
            return {p.relative_to(root).as_posix(): _size(p) for p in files_below(root)}
        return {path: int(about["size"]) for path, about in self._find(name).items()}

    def tags(self, name: str) -> dict[str, str]:
        """Map every file below a folder (relative path) to a tag of its content; empty if missing.

        A file that was written again has another tag. It is empty where the back-end has none.
        """
        if self.folder is not None:
            return dict.fromkeys(self.sizes(name), "")
        found = self._find(name).items()
        return {path: str(about.get("ETag") or about.get("etag") or "") for path, about in found}

    def names(self, name: str = "") -> list[str]:
        """List the names in a folder, sorted; empty if it is missing or cannot be listed."""
        with self._as_share_error(name):
            try:
                if self.folder is not None:
                    return sorted(path.name for path in (self.folder / name).iterdir())
                files = self._files()
                if self.scheme in WEB:
                    from cache.share.web import names

                    return names(files, self._address(name))
                found = files.ls(self._address(name), detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
        paths = {path.rstrip("/") for path in found} - {self._address(name).rstrip("/")}
        return sorted(path.rpartition("/")[2] for path in paths)

    def remove(self, name: str) -> None:
        """Remove a file or folder, if it exists and the back-end permits it.

        Of a link in a folder only the link is removed; nothing behind a link is.
        """
        # Remaining files do no harm, and a bucket may forbid deleting.
        with suppress(FileNotFoundError, ShareError), self._as_share_error(name):
            self._check_not_linked(name.rpartition("/")[0])
            if self.folder is None:
                self._files().rm(self._address(name), recursive=True)
                return
            path = self.folder / name
            remove_tree(path) if path.is_dir() else path.unlink()

    def remove_file(self, name: str) -> None:
        """Remove one file, as :meth:`remove` does, but no object below its name."""
        with suppress(FileNotFoundError, ShareError), self._as_share_error(name):
            self._check_not_linked(name.rpartition("/")[0])
            if self.folder is None:
                self._files().rm_file(self._address(name))
            else:
                (self.folder / name).unlink()

    def check(self) -> None:
        """Raise ShareError if a folder does not exist: its file system may not be mounted."""
        if self.folder is not None and not self.folder.is_dir():
            raise ShareError(f"{self}: no such folder")

    def _check_not_linked(self, name: str) -> None:
        """Check that no folder of a relative path is a link, which may lead out of the share.

        Raises:
            ShareError: one is.
        """
        parts = PurePosixPath(name).parts
        for path in (f"{self.path}/{'/'.join(parts[:n])}" for n in range(1, len(parts) + 1)):
            if self._is_link(path):
                raise ShareError(
                    f"{path} is a symlink. Nothing is written through a link in a share; replace "
                    "the link by the folder"
                )

    def _is_link(self, path: str) -> bool:
        if self.folder is not None:
            return Path(path).is_symlink()
        with suppress(FileNotFoundError):
            return self.scheme in SSH and stat.S_ISLNK(self._files().ftp.lstat(path).st_mode or 0)
        return False

    def _find(self, name: str) -> dict[str, dict[str, Any]]:
        """Map every file below a folder to what the back-end says of it.

        The empty objects whose names end with a slash, which some programs make as folders, are
        left out.
        """
        root = self._address(name).rstrip("/") + "/"
        with self._as_share_error(name):
            try:
                found = self._files().find(root.rstrip("/"), detail=True)
            except FileNotFoundError:
                return {}
        return {
            path.removeprefix(root): about
            for path, about in found.items()
            if not path.endswith("/") or about["size"]
        }

    def _read_start(self, name: str, count: int) -> bytes:
        """Read the first bytes of a file."""
        address = self._address(name)
        if self.folder is not None:
            return read_regular(Path(address), count - 1)
        if self.scheme in WEB:
            files = self._files()
            from cache.share.web import read_start

            return read_start(files, address, count)
        try:
            return bytes(self._files().cat_file(address, start=0, end=count))
        except OSError as error:
            if "satisfiable" in str(error):  # an empty object has no range
                return b""
            raise

    def share_with_group(self, folder: Path) -> None:
        """Give the group the same permissions in a new subfolder as in this folder."""
        add_mode(folder, self._group_bits())

    def _group_bits(self) -> int:
        """Permissions of the group in a folder that it shares; 0 if the group may not write.

        New files and folders get them, else one user's narrow umask would exclude the others.
        """
        mode = 0
        if self.folder is not None and self.folder.is_dir():
            mode = self.folder.stat().st_mode
        return mode & stat.S_IRWXG if mode & stat.S_IWGRP else 0

    def _address(self, name: str) -> str:
        """Return the back-end's own path of a file at this location."""
        path = f"{self.path}/{name}" if name else self.path
        if self.scheme in ("s3", "gs"):
            return self.host + path
        return f"{self.scheme}://{self.host}{path}" if self.scheme in WEB else path

    def _files(self) -> Any:
        """The back-end's file system."""
        return file_system(self.scheme, self.host)

    @contextmanager
    def _as_share_error(self, name: str, missing: bool = False) -> Iterator[None]:
        """Whatever a back-end raises, as one error without secrets.

        ``missing``: that something is not there is such an error too.
        """
        try:
            yield
        except FileNotFoundError as error:
            if missing:
                raise ShareError(f"{self / name}: {redacted(str(error))}") from None
            raise
        except ShareError:
            raise
        except PermissionError as error:
            reason = redacted(str(error))
            if self.folder is not None:
                reason = (
                    "Permission denied. If you should have access, ask the owner of "
                    f"{self / name} to run: chmod -R g+rwX {self}; and push with umask 002"
                )
            raise UnreadableError(f"{self / name if name else self}: {reason}") from None
        except IrregularFileError:
            raise UnreadableError(f"{self / name}: not a regular file") from None
        except ValueError as error:  # an invalid configuration: a retry does not help
            raise ValueError(redacted(str(error))) from None
        except Exception as error:
            reason = redacted(str(error)) or type(error).__name__
            raise ShareError(f"{self / name if name else self}: {reason}") from None


def _size(path: Path) -> int:
    """Size of a regular file; -1 for anything else, and for a file that is gone or hidden."""
    try:
        status = path.lstat()
    except OSError:
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) else -1
