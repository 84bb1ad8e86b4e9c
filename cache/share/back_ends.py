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
            import aiohttp

            configured = fsspec.config.conf.get(scheme, {}).get("client_kwargs", {})
            patience = aiohttp.ClientTimeout(total=None, connect=CONNECT_S, sock_read=60)
            # trust_env: proxies from the environment, passwords from ~/.netrc
            kwargs = {"timeout": patience, "trust_env": True, **configured}
            options["client_kwargs"] = kwargs
        return fsspec.filesystem(scheme, **options)
    except ImportError:
        package = PACKAGE[scheme]
        raise ValueError(
            f"{scheme}:// needs a missing package; run: pip install {package}"
        ) from None
