"""Claim a store on a share, so that two contents are never written to one place.

Two stores with the same recipe may differ in their last bits but have files of equal sizes, so an
unfinished push of one must not be completed with the other. Each writer writes its claim and then
lists the claims: of two concurrent writers at least one sees the other. Claims are in the folder
``<name>.zarr.pushing/`` next to the store, which has the incomplete files too.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime

from cache.share.location import ShareError
from cache.share.remote_store import RemoteStore
from cache.store.recipe import user_name
from cache.store.temp_paths import TempPath, claim_name, is_claim

_LARGEST_CLAIM = 1000  # bytes


def pushing_folder(target: RemoteStore) -> str:
    """The folder of a store's claims and incomplete files, relative to the share."""
    return f"{target.dataset}/{TempPath.PUSHING.name_for(target.name)}"


def is_only_claim(target: RemoteStore, content: str) -> bool:
    """Whether this content, and no other, is being written to a store's place."""
    return _claims(target) == {claim_name(content)}


def claim(target: RemoteStore, content: str, take_over: bool = False) -> bool:
    """Write a claim that this content is being written; returns whether there was the same before.

    The first to finish removes its claim after publishing, so a push that saw no other claim checks
    again whether a store was published.

    Args:
        target: the store on the share.
        content: SHA-256 of its ``checksums.json``.
        take_over: delete the claims of others, and their incomplete files, first.

    Raises:
        ValueError: other content is being written.
        ShareError: the share is unreachable or not writable.
    """
    folder = pushing_folder(target)
    resumed = is_only_claim(target, content) and not take_over
    if take_over:
        target.share.remove(folder)
    by = {"who": user_name(), "when": datetime.now(UTC).isoformat(timespec="seconds")}
    target.share.write(f"{folder}/{claim_name(content)}", json.dumps(by).encode(), folder)
    others = _claims(target) - {claim_name(content)}
    if others:
        if not resumed:
            withdraw(target, content)
        try:
            other = target.share.read(f"{folder}/{min(others)}", _LARGEST_CLAIM)
        except FileNotFoundError:
            other = b"finished at this moment"
        raise ValueError(
            f"{target}: another push of the same recipe with different content is unfinished "
            f"({other.decode(errors='replace')}); wait for it, or delete its files with "
            "push --take-over"
        )
    return resumed


def withdraw(target: RemoteStore, content: str) -> None:
    """Remove the claim of this content."""
    target.share.remove(f"{pushing_folder(target)}/{claim_name(content)}")


def check_claim(target: RemoteStore, content: str) -> None:
    """Check, before a store is published, that its place is still claimed by this content alone.

    Raises:
        ShareError: another push deleted the claim.
    """
    if not is_only_claim(target, content):
        raise ShareError(f"{target}: another push took over; push again")


def release(target: RemoteStore, content: str) -> None:
    """Remove the folder of claims and incomplete files, unless other content is being written."""
    if _claims(target) <= {claim_name(content)}:
        target.share.remove(pushing_folder(target))


def _claims(target: RemoteStore) -> set[str]:
    return {name for name in target.share.sizes(pushing_folder(target)) if is_claim(name)}
