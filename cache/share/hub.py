"""Read a dataset repository of the Hugging Face Hub, and write to it one commit at a time.

Access is configured as `huggingface_hub` does it: ``HF_ENDPOINT``, ``HF_TOKEN`` or ``hf auth
login``, proxies and certificates of the environment.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_token,
    hf_hub_url,
)
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoFile, RepoFolder
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    build_hf_headers,
    disable_progress_bars,
    enable_progress_bars,
    get_session,
)

from cache.share.patience import BUSY, GRACE_S, SLOWEST, TRIES, WebError, pause

MOST_FILES = 1_000_000
"""Files of a folder that are listed; a repository should have at most 100,000."""
MOST_WAIT_S = 330.0
"""Seconds that the Hub may ask to wait: its rate limits are counted in windows of 5 minutes."""
_BATCH = 100  # files whose contents are uploaded between two reports of the progress
_KIND = "dataset"


class HubFiles:
    """The files of a dataset repository, with those methods of an fsspec file system that are used.

    Paths begin with a slash and are relative to the repository.
    """

    def __init__(self, repository: str) -> None:
        """``repository`` is ``datasets/OWNER/NAME``, with ``@REVISION`` or without."""
        name, _, revision = repository.partition("@")
        self._id = name.removeprefix("datasets/")
        self._revision = unquote(revision) or None

    def find(self, path: str, detail: bool = True) -> dict[str, dict[str, Any]]:
        """Map each file below a folder to its size and a tag of its content (``ETag``).

        Raises:
            FileNotFoundError: no such folder.
            WebError: the repository cannot be read.
        """
        files = [item for item in self._list(path, recursive=True) if isinstance(item, RepoFile)]
        return {f"/{item.path}": {"size": item.size, "ETag": item.blob_id} for item in files}

    def ls(self, path: str, detail: bool = False) -> list[str]:
        """List the files and folders in a folder; errors as above."""
        return [f"/{item.path}" for item in self._list(path, recursive=False)]

    def cat_file(self, path: str, start: int, end: int) -> bytes:
        """Read the first ``end`` bytes of a file; ``start`` is 0.

        Raises:
            FileNotFoundError: no such file.
            WebError: it cannot be read, or the Hub is too slow or too busy.
        """
        name = path.lstrip("/")
        with self._clear_errors():
            url = hf_hub_url(self._id, name, repo_type=_KIND, revision=self._revision)
            for attempt in range(TRIES):
                headers = build_hf_headers() | {"Accept-Encoding": "identity"}
                timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
                with get_session().stream(
                    "GET", url, headers=headers, follow_redirects=True, timeout=timeout
                ) as answer:
                    if answer.is_success:
                        return _body(answer, end)
                    if answer.status_code not in BUSY or attempt == TRIES - 1:
                        raise self._error(answer, answer.headers.get("X-Error-Message", ""))
                    asked = _asked_to_wait(answer.headers)
                    wait_s = pause(answer.status_code, asked, attempt, MOST_WAIT_S)
                time.sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")

    def head(self) -> str:
        """Return the last commit of the repository, before it is written to.

        Raises:
            WebError: no token, no such repository, or no access to it.
        """
        with self._clear_errors():
            if get_token() is None:
                raise WebError(
                    "a push needs a token with write access: run hf auth login, or set HF_TOKEN"
                )
            return str(HfApi().dataset_info(self._id, timeout=GRACE_S).sha)

    def commit(
        self,
        files: Mapping[str, Path | bytes],
        deleted: Collection[str],
        message: str,
        parent: str,
    ) -> Iterator[int]:
        """Write and delete files in one commit, and yield the number of bytes sent so far.

        Args:
            files: path in the repository -> a file on this machine, or the content.
            deleted: paths of files in the repository.
            message: first line of the commit's message.
            parent: the last commit, see :meth:`head`; if there is a newer one, nothing is written.

        Raises:
            WebError: no permission, or the repository has changed.
        """
        sent = 0
        with self._clear_errors(), _no_progress_bars():
            api = HfApi()
            additions = [CommitOperationAdd(p.lstrip("/"), data) for p, data in files.items()]
            for start in range(0, len(additions), _BATCH):
                batch = additions[start : start + _BATCH]
                api.preupload_lfs_files(self._id, batch, repo_type=_KIND, free_memory=False)
                sent += sum(addition.upload_info.size for addition in batch)
                yield sent
            deletions = [CommitOperationDelete(p.lstrip("/"), is_folder=False) for p in deleted]
            api.create_commit(
                self._id,
                [*additions, *deletions],
                commit_message=message,
                repo_type=_KIND,
                parent_commit=parent,
            )

    def _list(self, path: str, recursive: bool) -> list[RepoFile | RepoFolder]:
        found: list[RepoFile | RepoFolder] = []
        with self._clear_errors():
            for item in HfApi().list_repo_tree(
                self._id,
                path.strip("/") or None,
                recursive=recursive,
                revision=self._revision,
                repo_type=_KIND,
            ):
                if len(found) == MOST_FILES:
                    raise WebError(f"the repository lists more than {MOST_FILES} files")
                found.append(item)
        return found

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        """Whatever `huggingface_hub` raises, as an error that names the remedy."""
        try:
            yield
        except (WebError, FileNotFoundError):
            raise
        except HfHubHTTPError as error:
            raise self._error(error.response, _one_line(error)) from None
        except Exception as error:
            reason = f"{_one_line(error)} {_one_line(error.__cause__ or '')}".strip()
            raise WebError(reason or type(error).__name__) from None

    def _error(self, answer: Any, message: str) -> Exception:
        """Make the error for an answer of the Hub, from its status and headers."""
        status, code = answer.status_code, answer.headers.get("X-Error-Code", "")
        token = "no token is set" if get_token() is None else "a token is set"
        if code == "GatedRepo":
            return WebError(
                "the repository is gated: ask for access at "
                f"{constants.ENDPOINT}/datasets/{self._id}, and use a token of that account "
                "(hf auth login, or HF_TOKEN)"
            )
        if code == "RevisionNotFound":
            return WebError(f"the repository has no revision {self._revision!r}")
        if code == "RepoNotFound":
            return WebError(
                f"no such dataset repository, or it is private and you have no access ({token}). "
                f"To create it: hf repos create {self._id} --type dataset --private"
            )
        if status == 404:
            return FileNotFoundError(message or "no such file")
        reasons = {
            401: f"no permission ({token}): run hf auth login, or set HF_TOKEN to a valid token",
            403: f"no permission ({token}): the token must be allowed to read the repository, and "
            "to write to it for a push",
            412: "another commit was made to the repository at the same time; push again",
            429: "the rate limit of the Hub is reached; try again later",
        }
        reason = reasons.get(status, "the Hub reports an error")
        return WebError(f"{reason} (status {status}) {message}".rstrip())


def blob_id(data: bytes) -> str:
    """Return the tag of a small file with this content: the id that git gives to it."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _body(answer: Any, count: int) -> bytes:
    """Read the first ``count`` bytes of an answer, within a time that grows with the bytes."""
    packing = answer.headers.get("Content-Encoding", "identity").strip().lower()
    if packing not in ("", "identity"):
        raise WebError(f"the Hub sends {packing!r:.40} content, though it was asked for plain")
    data, began = bytearray(), time.monotonic()
    for block in answer.iter_raw():
        data += block[: count - len(data)]
        if len(data) >= count:
            break
        if time.monotonic() > began + GRACE_S + len(data) / SLOWEST:
            raise WebError(
                f"the Hub is too slow: {GRACE_S:g} s and less than {SLOWEST / 1000:g} kB/s"
            )
    return bytes(data)


def _asked_to_wait(headers: Mapping[str, str]) -> str:
    """Return the seconds until the rate limit is reset, as text; empty if they are not given."""
    reset = re.search(r"\br=0\s*;\s*t=(\d+)", headers.get("RateLimit", ""))
    return headers.get("Retry-After", "") or (reset[1] if reset else "")


def _one_line(error: object) -> str:
    return " ".join(str(error).split())


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Hide the bars of `huggingface_hub`: a push has its own."""
    shown = not are_progress_bars_disabled()
    if shown:
        disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()
