"""Keep secrets out of locations and messages."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from cache.share.back_ends import HUB, SSH, WEB

_WHERE_KEYS_BELONG = {
    "s3": "~/.aws/credentials or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment",
    "gs": "`gcloud auth application-default login` or GOOGLE_APPLICATION_CREDENTIALS",
    **dict.fromkeys(WEB, "~/.netrc, or client_kwargs in ~/.config/fsspec/"),
    HUB: "HF_TOKEN, or `hf auth login`",
    **dict.fromkeys(SSH, "the SSH agent or ~/.ssh"),
}


def redacted(text: str) -> str:
    """Remove credentials and queries of URLs, and secrets of the environment, from a message."""
    text = re.sub(r"(\w://)\S*@", r"\1", text)
    text = re.sub(r"(\w://[^\s?'\"]*)\?[^\s'\"]*", r"\1", text)
    for name, value in os.environ.items():
        if len(value) >= 8 and re.search("SECRET|TOKEN|PASSWORD|ACCESS_KEY", name.upper()):
            text = text.replace(value, "***")
    return text


def check_no_secrets(scheme: str, rest: str) -> None:
    """Raise ValueError for ``user:password@`` and queries, without repeating them."""
    host = urlsplit(f"//{rest}").netloc
    user = host.rpartition("@")[0]
    secret = ":" in user or (user and scheme not in SSH)
    # A password may contain a slash: then its @ comes after what looks like the host.
    secret = secret or (":" in host and "@" in rest.partition("/")[2])
    if secret or "?" in rest or "#" in rest:
        raise ValueError(
            f"this {scheme}:// location contains a user, a password, a key or a query. It "
            f"must not: locations end up in logs. Configure access where {scheme} looks for it: "
            f"{_WHERE_KEYS_BELONG[scheme]}"
        )
