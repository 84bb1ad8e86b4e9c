"""The file systems behind URLs, whose packages are imported when one is first needed."""

from __future__ import annotations

import re
from typing import Any

PACKAGE = {"s3": "s3fs", "gs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
PACKAGE |= {"sftp": "paramiko", "ssh": "paramiko", "hf": "huggingface_hub"}
"""The scheme of a URL, and the package that it needs."""
WEB = ("http", "https")
SSH = ("sftp", "ssh")
HUB = "hf"

CONNECT_S = 15
"""Seconds until a machine that does not answer counts as unreachable."""


def split_host(scheme: str, rest: str) -> tuple[str, str]:
    """Split what follows ``SCHEME://`` into the host, bucket or repository, and the path in it.

    Raises:
        ValueError: it names none.
    """
    if scheme == HUB:
        found = re.fullmatch(r"(datasets/[\w.-]+/[\w.-]+(?:@[^/@]+)?)(?:/(.*))?", rest)
        if found is None:
            raise ValueError(
                f"hf://{rest} is not a dataset repository; its form is hf://datasets/OWNER/NAME, "
                "or with a revision hf://datasets/OWNER/NAME@REVISION (a slash in it as %2F)"
            )
        return found[1], found[2] or ""
    host, _, path = rest.partition("/")
    if not host:
        raise ValueError(f"{scheme}:// needs a {'bucket' if scheme in 's3 gs' else 'host'}")
    return host, path


def file_system(scheme: str, host: str) -> Any:
    """Return the file system of a URL: fsspec's, or one with those of its methods that are used.

    Args:
        scheme: of the URL, one of `PACKAGE`.
        host: bucket, or host with user and port, or ``datasets/OWNER/NAME[@REVISION]``.

    Raises:
        ValueError: a package is missing.
    """
    import fsspec

    options: dict[str, Any] = {}
    if scheme in ("s3", "gs"):
        options["use_listings_cache"] = False  # others write there too
    if scheme in SSH:
        user, _, host = host.rpartition("@")
        host, _, port = host.partition(":")
        options |= {"host": host, "timeout": CONNECT_S}
        if user:
            options["username"] = user
        if port:
            options["port"] = int(port)
    try:
        if scheme == HUB:
            from cache.share.hub import HubFiles  # imports huggingface_hub

            return HubFiles(host)
        if scheme in WEB:
            from cache.share.web import make_session  # imports aiohttp

            configured = fsspec.config.conf.get(scheme, {}).get("client_kwargs", {})
            options["client_kwargs"] = {"connect_s": CONNECT_S, **configured}
            options["get_client"] = make_session
        return fsspec.filesystem(scheme, **options)
    except ImportError:
        package = PACKAGE[scheme]
        raise ValueError(
            f"{scheme}:// needs a missing package; run: pip install {package}"
        ) from None
