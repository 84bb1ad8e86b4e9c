"""The file systems behind URLs, through fsspec, which is imported when one is first needed."""

from __future__ import annotations

from typing import Any

PACKAGE = {"s3": "s3fs", "gs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
PACKAGE |= {"sftp": "paramiko", "ssh": "paramiko"}
"""The scheme of a URL, and the package that it needs."""
WEB = ("http", "https")
SSH = ("sftp", "ssh")

CONNECT_S = 15
"""Seconds until a machine that does not answer counts as unreachable."""


def file_system(scheme: str, host: str) -> Any:
    """Return the fsspec file system of a URL.

    Args:
        scheme: of the URL, one of `PACKAGE`.
        host: bucket, or host with user and port.

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
